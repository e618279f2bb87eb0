"""A VAE for ComfyUI's own nodes and other people's: the surface of `comfy.sd.VAE`, at work on a server."""

from typing import Any

import torch

from remote_vae.client.model import RemoteModel
from remote_vae.errors import LatentMismatch

Ratio = int | tuple[Any, int, int]


class FirstStageModel:
    """The bare VAE, which some nodes call past the VAE object: no pixel range, channels first."""

    def __init__(self, model: RemoteModel) -> None:
        self._model = model

    def decode(self, latent: torch.Tensor, **_: Any) -> torch.Tensor:
        """*Shapes*: [B,C,h,w] -> [B,P,H,W] in [-1, 1]; videos have a frame axis after the channels."""
        return self._model.decode(latent).float()

    def encode(self, pixels: torch.Tensor, **_: Any) -> torch.Tensor:
        """The posterior's mode, as ComfyUI's VAEs give it. *Shapes*: [B,P,H,W] in [-1, 1] -> [B,C,h,w]."""
        return self._model.encode(pixels, posterior="mode").float()

    def to(self, *_: Any, **__: Any) -> "FirstStageModel":
        return self

    def eval(self) -> "FirstStageModel":
        return self


class RemoteComfyVAE:
    """What a VAE output carries. Latents are raw, as samplers give them; pictures are [B,H,W,C] in [0, 1].

    Tile sizes are accepted and not used: the server decodes large pictures in exact strips.
    """

    vae_dtype = torch.float32
    working_dtypes = (torch.bfloat16, torch.float32)
    device = output_device = torch.device("cpu")
    crop_input = True
    disable_offload = not_video = handles_tiling = False
    extra_1d_channel = size = None

    def __init__(self, model: RemoteModel) -> None:
        if "batch_norm_eps" in model.card["config"]:
            raise LatentMismatch(
                f"model {model.name!r} is FLUX.2's VAE. Its latents in ComfyUI are patches of {4 * model.channels} "
                "channels; these nodes do not take them yet",
                model=model.name,
            )
        self._model = model
        self.first_stage_model = FirstStageModel(model)
        self.latent_channels = model.channels
        self.output_channels = model.pixel_channels
        self.latent_dim = 3 if model.is_video else 2
        s, t = model.ratio, model.frames_ratio
        many = model.frames
        self.upscale_ratio: Ratio = (lambda frames: max(0, many.of_latent(frames)), s, s) if model.is_video else s
        self.downscale_ratio: Ratio = (lambda frames: max(0, many.latent(frames)), s, s) if model.is_video else s
        self.upscale_index_formula = self.downscale_index_formula = (t, s, s) if model.is_video else None

    def decode(self, samples_in: torch.Tensor, vae_options: object = None) -> torch.Tensor:
        """*Shapes*: [B,C,h,w] -> [B,H,W,P], or [B,C,f,h,w] -> [B,F,H,W,P]; P is 4 with transparency."""
        return self.process_output(self.first_stage_model.decode(samples_in)).movedim(1, -1)

    def decode_tiled(self, samples: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        """`decode`: nothing is tiled."""
        return self.decode(samples)

    def encode(self, pixel_samples: torch.Tensor) -> torch.Tensor:
        """*Shapes*: [B,H,W,C] -> [B,C,h,w]; for a video model the batch is its frames, [F,H,W,C] -> [1,C,f,h,w]."""
        pixels = self.vae_encode_crop_pixels(self._with_channels(pixel_samples)).movedim(-1, 1)
        if self.latent_dim == 3 and pixels.ndim == 4:
            pixels = pixels.movedim(0, 1).unsqueeze(0)
        return self.first_stage_model.encode(self.process_input(pixels.float()))

    def _with_channels(self, pixels: torch.Tensor) -> torch.Tensor:
        """The channels that the model takes: others are left out, and without transparency a picture is opaque."""
        if pixels.shape[-1] == 3 and self.output_channels == 4:
            return torch.nn.functional.pad(pixels, (0, 1), value=1.0)
        return pixels[..., : self.output_channels]

    def encode_tiled(self, pixel_samples: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        """`encode`: nothing is tiled."""
        return self.encode(pixel_samples)

    def vae_encode_crop_pixels(self, pixels: torch.Tensor) -> torch.Tensor:
        """The middle of the picture, in whole latent cells. *Shapes*: [...,H,W,C]."""
        for axis in (-3, -2):
            spare = pixels.shape[axis] % self._model.ratio
            pixels = pixels.narrow(axis, spare // 2, pixels.shape[axis] - spare)
        return pixels

    @staticmethod
    def process_input(image: torch.Tensor) -> torch.Tensor:
        return image * 2.0 - 1.0

    @staticmethod
    def process_output(image: torch.Tensor) -> torch.Tensor:
        return ((image + 1.0) / 2.0).clamp(0.0, 1.0)

    def spacial_compression_decode(self) -> int:
        return self._model.ratio

    def spacial_compression_encode(self) -> int:
        return self._model.ratio

    def temporal_compression_decode(self) -> int | None:
        return self._model.frames_ratio if self._model.is_video else None

    def memory_used_decode(self, shape: object, dtype: object) -> int:
        """Bytes of this machine's device: none."""
        return 0

    def memory_used_encode(self, shape: object, dtype: object) -> int:
        """Bytes of this machine's device: none."""
        return 0

    def throw_exception_if_invalid(self) -> None:
        """It was valid when it was loaded."""

    def get_sd(self) -> dict[str, torch.Tensor]:
        raise LatentMismatch(f"the weights of model {self._model.name!r} are on the server and cannot be saved here")
