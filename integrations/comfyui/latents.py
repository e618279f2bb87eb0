"""What ComfyUI keeps in a LATENT, and what the server's model takes of it.

Samplers hand out what ComfyUI's own VAE takes. That is the raw latent for most families; some VAEs hold the statistics
by which they normalise, so their latents are normalised, and FLUX.2's are patches of 2 by 2 cells too. Pictures on the
VAE of a video have an axis of frames. *Source*: ComfyUI's comfy/latent_formats.py and comfy/sd.py.
"""

from typing import Any, Final

import torch
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from remote_vae.client.model import RemoteModel
from remote_vae.errors import LatentMismatch

PATCHES: Final = "AutoencoderKLFlux2"
NORMALISED: Final = (PATCHES, "AutoencoderKLLTXVideo", "AutoencoderKLLTX2Video", "AutoencoderKLMiniMaxH3")
OTHERWISE: Final = ("AutoencoderKLCosmos",)  # normalised by frame too
PREVIEWS: Final = ("taef2", "taeh3")  # of VAEs above, so a server that takes latents for raw would normalise them again
ON_A_VIDEOS_VAE: Final = ("AutoencoderKLWan", "AutoencoderKLQwenImage")
# ComfyUI's own numbers for decoders that take a timestep; diffusers' pipelines mix their noise in elsewhere.
TIMESTEP, NOISE = 0.05, 0.025
HALVES: Final = {"float16": torch.float16, "bfloat16": torch.bfloat16}


class ComfyLatents:
    """Between ComfyUI's latents and those of a server's model, which are raw.

    `patch` is the number of cells per side that ComfyUI keeps as channels of one. `dims` are the axes of a latent after
    batch and channels. If `as_batch`, the batch is the frames of one video. `timestep` is what the decoder is told, if
    it takes one. *Raises* LatentMismatch for a model whose latents ComfyUI keeps in another way.
    """

    def __init__(self, model: RemoteModel) -> None:
        name = model.card["config"].get("_class_name")
        self._model = model
        self.patch = 2 if name == PATCHES else 1
        self.channels = model.channels * self.patch**2
        self.on_a_videos_vae = not model.is_video and name in ON_A_VIDEOS_VAE
        self.as_batch = model.takes_frames
        self.dims = 3 if (model.is_video and not self.as_batch) or self.on_a_videos_vae else 2
        self.timestep = TIMESTEP if "decode_timestep" in model.card.get("takes", ()) else None
        self._half = HALVES.get(model.card.get("dtype", ""))
        self._mean, self._std = self._statistics() if name in NORMALISED else (0.0, 1.0)
        previews = model.card.get("recipe") in PREVIEWS
        if previews or name in OTHERWISE or any("(i j c)" in layout for layout in model.card["latent_layouts"]):
            raise LatentMismatch(
                f"latents of model {model.name!r} are kept in another way by ComfyUI, which these nodes do not know; "
                "see the models in docs/comfyui.md",
                model=model.name,
            )

    def to_model(self, latent: torch.Tensor) -> torch.Tensor:
        """*Shapes*: a picture's axis of frames goes into the batch; [B,4C,h,w] -> [B,C,2h,2w] of patches.

        For a model in half precision the latent travels in it, half of the bytes: the model would round it there.
        """
        self._check(latent)
        if latent.ndim == 5 and not self._model.is_video:
            latent = latent.movedim(2, 1).flatten(0, 1)
        if self.timestep is not None:
            noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(0)).to(latent)
            latent = (1 - NOISE) * latent + NOISE * noise
        if isinstance(self._mean, torch.Tensor):
            latent = latent.float() * self._like(self._std, latent) + self._like(self._mean, latent)
        latent = latent if self.patch == 1 else pixel_shuffle(latent, self.patch)
        return latent if self._half is None else latent.to(self._half)

    def from_model(self, latent: torch.Tensor) -> torch.Tensor:
        """The inverse; a picture on the VAE of a video gets an axis of one frame.

        *Shapes*: [1,C,f,h,w] -> [f,C,h,w] if the batch is the frames.
        """
        latent = latent if self.patch == 1 else pixel_unshuffle(latent, self.patch)
        if isinstance(self._mean, torch.Tensor):
            latent = (latent - self._like(self._mean, latent)) / self._like(self._std, latent)
        if self.as_batch:
            return latent.movedim(2, 1).flatten(0, 1)
        return latent.unsqueeze(2) if self.on_a_videos_vae else latent

    def _check(self, latent: torch.Tensor) -> None:
        axes = "[B,{},f,h,w]" if self.dims == 3 else "[B,{},h,w]"
        fits = latent.ndim == 5 or (latent.ndim == 4 and (self.as_batch or not self._model.is_video))
        if not fits or latent.shape[1] != self.channels:
            raise LatentMismatch(
                f"the latent has {latent.shape[1]} channels and shape {list(latent.shape)}; model "
                f"{self._model.name!r} takes {self.channels} channels, {axes.format(self.channels)}",
                shape=list(latent.shape),
                model=self._model.name,
            )

    def _statistics(self) -> tuple[torch.Tensor, torch.Tensor]:
        mean, std = (torch.tensor(self._model.card[name]) for name in ("latents_mean", "latents_std"))
        return mean, std

    @staticmethod
    def _like(values: Any, latent: torch.Tensor) -> torch.Tensor:
        """Values by channel, beside a latent."""
        found: torch.Tensor = values.view(1, -1, *(1 for _ in latent.shape[2:]))
        return found
