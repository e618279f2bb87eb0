"""Forge's VAE on a Remote VAE server: an extension with a panel for the server and its model.

Forge's VAE hands decoding and encoding to a wrapper if its patcher has one. Latents are raw there; pictures are
[B,H,W,3] in [0, 1]. This file speaks the wire by itself, because Forge's Python and Pillow are too old for the client.
"""

import json
import os
from collections.abc import Callable
from typing import Any

import gradio as gr
import numpy as np
import requests
import torch
from modules import scripts

DECODE, ENCODE = "model_vae_decode_wrapper", "model_vae_encode_wrapper"  # Forge's names in a patcher's options
FAMILIES = {"is_sd1": "sd1", "is_sd2": "sd2", "is_sdxl": "sdxl", "is_sd3": "sd3"}
OTHER = "flux1"  # Forge's further models, Flux and Chroma, have one VAE
SECONDS = 300


class RemoteVAEForForge(scripts.Script):
    sorting_priority = 19  # beside Never OOM

    def title(self) -> str:
        return "Remote VAE"

    def show(self, is_img2img: bool) -> Any:
        return scripts.AlwaysVisible

    def ui(self, *_: Any, **__: Any) -> tuple[Any, ...]:
        with gr.Accordion(open=False, label=self.title()):
            enabled = gr.Checkbox(label="Decode and encode on a server (its key: REMOTE_VAE_API_KEY)", value=False)
            url = gr.Textbox(label="Server", value="http://127.0.0.1:8000")
            model = gr.Textbox(label="Model of the server; empty: that of the checkpoint's family", value="")
        return enabled, url, model

    def process(self, p: Any, enabled: bool, url: str, model: str, **_: Any) -> None:
        """Forge calls this once for a generation, with the model loaded, before it encodes. *Raises* RuntimeError."""
        options = p.sd_model.forge_objects.vae.patcher.model_options
        options.pop(DECODE, None)
        options.pop(ENCODE, None)
        if enabled:
            server = Server(url.strip().rstrip("/"), model.strip() or model_of(p.sd_model))
            options[DECODE], options[ENCODE] = remote(server.decode), remote(server.encode)


def model_of(checkpoint: Any) -> str:
    """The server's name for the VAE of a checkpoint's family."""
    return next((model for flag, model in FAMILIES.items() if getattr(checkpoint, flag, False)), OTHER)


def remote(one: Callable[[torch.Tensor], torch.Tensor]) -> Callable[..., torch.Tensor]:
    """A wrapper that sends one item after the other; if the server fails, Forge's own VAE does the work."""

    def wrapper(own: Callable[[torch.Tensor], torch.Tensor], values: torch.Tensor) -> torch.Tensor:
        try:
            return torch.cat([one(value[None]) for value in values])
        except (RuntimeError, requests.RequestException) as exc:
            print(f"Remote VAE: {exc}; Forge's own VAE is used instead")
            return own(values)

    return wrapper


class Server:
    """A model of a server. *Raises* RuntimeError for what the server refuses, and the errors of requests."""

    def __init__(self, url: str, model: str) -> None:
        key = os.environ.get("REMOTE_VAE_API_KEY")
        self._url, self._model = url, model
        self._head = {"authorization": f"Bearer {key}"} if key else {}
        found = self._checked(requests.get(f"{url}/models", headers=self._head, timeout=10)).json()["models"]
        if not any(model.lower() in (card["name"].lower(), *card["aliases"]) for card in found):
            raise RuntimeError(f"model {model} is not served at {url}; served are {[card['name'] for card in found]}")

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        """*Shapes*: [1,C,h,w] -> [1,H,W,3]."""
        pixels = self._post("decode", latent, output_type="pt")
        return ((pixels + 1) / 2).clamp(0, 1).movedim(1, -1)

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """A sample of the posterior, as Forge's own VAE gives it. *Shapes*: [1,H,W,3] -> [1,C,h,w]."""
        return self._post("encode", pixels.movedim(-1, 1).clamp(0, 1), posterior="sample")

    def _post(self, operation: str, value: torch.Tensor, **query: str) -> torch.Tensor:
        sent = value.detach().float().cpu().contiguous()
        query.update(shape=",".join(map(str, sent.shape)), dtype="float32", do_scaling="False")
        head = {"content-type": "tensor/binary", "accept": "tensor/binary", **self._head}
        url = f"{self._url}/{self._model}/{operation}"
        reply = self._checked(requests.post(url, sent.numpy().tobytes(), params=query, headers=head, timeout=SECONDS))
        found = np.frombuffer(bytearray(reply.content), reply.headers["dtype"])
        return torch.from_numpy(found.reshape(json.loads(reply.headers["shape"]))).float()

    def _checked(self, reply: requests.Response) -> requests.Response:
        if not reply.ok:
            raise RuntimeError(f"the server at {self._url} answered {reply.status_code}: {reply.text[:500]}")
        return reply
