"""Other ways to serve the demo VAE: `vae_servers.py NAME PORT` runs one until it is told to stop.

Each takes a float16 latent of shape [1,16,h,w], h and w from the query or its length, and answers with a JPEG.

toolkit   the way of a handler on an inference toolkit: diffusers in the server's process, one request at a time
litserve  LitServe with batching on: latents that wait together and have one size are decoded as one batch
"""

import asyncio
import sys

from demo_vae import decode, load, read, write


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
