"""Videos that are encoded: pixels in eight bits travel as they are."""

import base64
import json
from typing import Any

import numpy as np
import pytest
import torch

from remote_vae import Client
from remote_vae.client.model import RemoteModel

FRAMES, HEIGHT, WIDTH = 5, 24, 32
LEVELS = np.random.default_rng(11).integers(0, 256, (1, FRAMES, HEIGHT, WIDTH, 3), dtype=np.uint8)


def mean_of(live: Any, levels: np.ndarray) -> torch.Tensor:
    """The latent by the module itself. *Shapes*: [B,F,H,W,3] -> [B,C,f,h,w]."""
    pixels = torch.from_numpy(levels).permute(0, 4, 1, 2, 3) / 127.5 - 1
    with torch.no_grad():
        mean: torch.Tensor = live.modules["video"].encode(pixels).latent_dist.mean
    return mean


def close(found: Any, expected: torch.Tensor) -> None:
    torch.testing.assert_close(torch.as_tensor(found).float(), expected, atol=2e-3, rtol=1e-3)


LAYOUTS = {
    "channels last": LEVELS,
    "channels first": np.ascontiguousarray(LEVELS.transpose(0, 4, 1, 2, 3)),
    "without a batch": np.ascontiguousarray(LEVELS[0].transpose(3, 0, 1, 2)),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("form", ["raw", "JSON"])
def test_frames_of_eight_bits(live: Any, layout: str, form: str) -> None:
    """uint8 frames are scaled by the server as a picture's are, in each layout and in both forms of a body."""
    levels = LAYOUTS[layout]
    about: dict[str, Any] = {"shape": list(levels.shape), "dtype": "uint8", "posterior": "mode"}
    if form == "raw":
        reply = live.post("/video/encode", params=about, data=levels.tobytes(), headers={"accept": "tensor/binary"})
    else:
        document = {"inputs": base64.b64encode(levels).decode(), "parameters": {**about, "do_scaling": False}}
        headers = {"content-type": "application/json", "accept": "tensor/binary"}
        reply = live.post("/video/encode", data=json.dumps(document), headers=headers)
    assert reply.status_code == 200, reply.text
    shape = json.loads(reply.headers["shape"])
    close(np.frombuffer(reply.content, reply.headers["dtype"]).reshape(shape).copy(), mean_of(live, LEVELS))


def test_three_frames_are_not_channels(live: Any) -> None:
    """Three frames with their channels last are three frames."""
    with Client(live.url) as client:
        close(client.encode(LEVELS[:, :3], model="video", posterior="mode"), mean_of(live, LEVELS[:, :3]))


def test_frames_that_are_no_video(live: Any) -> None:
    """A shape that is none of the layouts is refused with all of them."""
    reply = live.post("/video/encode?shape=1,5,24,32,4&dtype=uint8", data=bytes(5 * 24 * 32 * 4))
    assert reply.status_code == 422
    assert "of a video [B,3,F,H,W], or uint8 [B,F,H,W,3]" in reply.json()["error"]


def test_the_clients_model_sends_eight_bits(live: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pixels in [-1, 1] of a video of eight bits travel as uint8, a quarter of their bytes, to the same latent."""
    sent: list[Any] = []
    real = Client.encode

    def watched(client: Client, image: Any, **options: Any) -> Any:
        sent.append(image)
        return real(client, image, **options)

    monkeypatch.setattr(Client, "encode", watched)
    with RemoteModel(live.url, model="video") as model:
        pixels = torch.from_numpy(LEVELS).permute(0, 4, 1, 2, 3).float() / 255 * 2 - 1
        close(model.encode(pixels, posterior="mode"), mean_of(live, LEVELS))
        model.encode(pixels * 0.999, posterior="mode")
    assert [str(pixels.dtype) for pixels in sent] == ["torch.uint8", "torch.float32"]
