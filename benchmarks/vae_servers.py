"""Other ways to serve the demo VAE: `vae_servers.py NAME PORT` runs one until it is told to stop.

Each takes a float16 latent of shape [1,16,h,w], h and w from the query or its length, and answers with a JPEG.

toolkit   the way of a handler on an inference toolkit: diffusers in the server's process, one request at a time
litserve  LitServe with batching on: latents that wait together and have one size are decoded as one batch
"""

import asyncio
import io
import math
import sys
from typing import Any

import torch
from PIL import Image

CHANNELS = 16


def load() -> Any:
    """The demo VAE as diffusers has it."""
    from remote_vae.models.loader import load as load_model
    from remote_vae.models.spec import ModelSpec

    return load_model(ModelSpec("demo", device="cpu", dtype="float32")).module


def read(body: bytes) -> torch.Tensor:
    """A square latent."""
    side = math.isqrt(len(body) // 2 // CHANNELS)
    return torch.frombuffer(bytearray(body), dtype=torch.float16).reshape(1, CHANNELS, side, side).float()


@torch.inference_mode()
def decode(module: Any, latent: torch.Tensor) -> torch.Tensor:
    """uint8 pixels, channels last."""
    config = module.config
    z = latent / config.scaling_factor + (config.shift_factor or 0)
    pixels = module.decode(z, return_dict=False)[0]
    return (pixels / 2 + 0.5).clamp(0, 1).mul(255).round().byte().permute(0, 2, 3, 1)


def write(pixels: torch.Tensor) -> bytes:
    """One picture as a JPEG."""
    file = io.BytesIO()
    Image.fromarray(pixels.numpy()).save(file, "JPEG", quality=95)
    return file.getvalue()


def toolkit(port: int) -> None:
    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

    module, turn = load(), asyncio.Lock()

    def work(body: bytes) -> bytes:
        return write(decode(module, read(body))[0])

    async def post(request: Request) -> Response:
        body = await request.body()
        async with turn:
            return Response(await asyncio.to_thread(work, body), media_type="image/jpeg")

    async def live(request: Request) -> Response:
        return Response("ok")

    routes = [Route("/live", live), Route("/health", live), Route("/predict", post, methods=["POST"])]
    uvicorn.run(Starlette(routes=routes), host="127.0.0.1", port=port, log_level="error", access_log=False)


def litserve(port: int) -> None:
    import vae_litserve

    vae_litserve.run(port)


SERVERS = {server.__name__: server for server in (toolkit, litserve)}

if __name__ == "__main__":
    SERVERS[sys.argv[1]](int(sys.argv[2]))
