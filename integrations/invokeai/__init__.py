"""Nodes for InvokeAI that decode and encode on a Remote VAE server.

InvokeAI imports this folder under the folder's own name, so the folder must not be called remote_vae.
"""

from typing import Any

import numpy as np
import torch
from PIL import Image

from invokeai.invocation_api import (
    BaseInvocation,
    Bottleneck,
    FieldDescriptions,
    ImageField,
    ImageOutput,
    Input,
    InputField,
    InvocationContext,
    LatentsField,
    LatentsOutput,
    WithBoard,
    WithMetadata,
    invocation,
)
from remote_vae import Client

SERVER = "http://127.0.0.1:8000"
URL = "The server. Images keep it in their workflow, so leave keys out of it: they come from REMOTE_VAE_API_KEY."
MODEL = "The server's name of the model: sd1, sdxl, flux1, cogview4 or another."
MULTIPLE = 8  # InvokeAI's latents have a cell for 8 by 8 pixels


@invocation(
    "remote_vae_l2i",
    title="Latents to Image - Remote VAE",
    tags=["latents", "image", "vae", "l2i", "remote"],
    category="latents",
    version="1.0.0",
    bottleneck=Bottleneck.Network,
)
class RemoteLatentsToImageInvocation(BaseInvocation, WithMetadata, WithBoard):
    """Generates an image from latents, on a server."""

    latents: LatentsField = InputField(description=FieldDescriptions.latents, input=Input.Connection)
    url: str = InputField(default=SERVER, description=URL)
    model: str = InputField(default="sdxl", description=MODEL)

    def invoke(self, context: InvocationContext) -> ImageOutput:
        latents = context.tensors.load(self.latents.latents_name)
        if len(latents) != 1:
            raise ValueError(
                f"the batch has {len(latents)} latents, and this node makes one image; decode them one by one"
            )
        context.util.signal_progress("Decoding on the server")
        with Client(self.url) as client:
            picture = client.decode(latents, model=self.model, do_scaling=True)
        return ImageOutput.build(context.images.save(image=picture))


@invocation(
    "remote_vae_i2l",
    title="Image to Latents - Remote VAE",
    tags=["latents", "image", "vae", "i2l", "remote"],
    category="latents",
    version="1.0.0",
    bottleneck=Bottleneck.Network,
)
class RemoteImageToLatentsInvocation(BaseInvocation):
    """Encodes an image into latents, on a server."""

    image: ImageField = InputField(description="The image to encode")
    url: str = InputField(default=SERVER, description=URL)
    model: str = InputField(default="sdxl", description=MODEL)
    seed: int = InputField(default=0, ge=0, description="Seed of the sample that the VAE's posterior gives.")

    def invoke(self, context: InvocationContext) -> LatentsOutput:
        pixels = _on_the_grid(context.images.get_pil(self.image.image_name).convert("RGB"))
        context.util.signal_progress("Encoding on the server")
        with Client(self.url) as client:
            latents: Any = client.encode(pixels, model=self.model, do_scaling=True, seed=self.seed)
        return LatentsOutput.build(latents_name=context.tensors.save(tensor=latents), latents=latents, seed=self.seed)


def _on_the_grid(picture: Image.Image) -> torch.Tensor:
    """Made smaller by less than a cell, as InvokeAI's own nodes do it. *Shapes*: uint8 [1,H,W,3]."""
    sides = (picture.width - picture.width % MULTIPLE, picture.height - picture.height % MULTIPLE)
    return torch.from_numpy(np.array(picture.resize(sides, Image.Resampling.LANCZOS)))[None]
