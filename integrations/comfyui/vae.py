"""A VAE for ComfyUI's own nodes and other people's: the surface of `comfy.sd.VAE`, at work on a server."""

from typing import Any

import torch

from remote_vae.client.model import RemoteModel
from remote_vae.errors import LatentMismatch

from .latents import ComfyLatents
from .waiting import waited

Ratio = int | tuple[Any, int, int]


class FirstStageModel:
    """The bare VAE, which some nodes call past the VAE object: no pixel range, channels first."""

    def __init__(self, model: RemoteModel) -> None:
        self._model = model
        self.latents = ComfyLatents(model)

    def decode(self, latent: torch.Tensor, **_: Any) -> torch.Tensor:
        """*Shapes*: [B,C,h,w] -> [B,P,H,W] in [-1, 1]; an axis of frames stays after the channels."""
        if latent.ndim == 5 and self.latents.dims == 2:
            latent = latent[:, :, 0]  # as ComfyUI's VAEs for pictures do
        sent, timestep = self.latents.to_model(latent), self.latents.timestep
        pixels = waited(lambda tell: self._model.decode(sent, timestep=timestep, progress=tell)).float()
        if latent.ndim == pixels.ndim:
            return pixels
        return pixels.unflatten(0, (len(latent), latent.shape[2])).movedim(1, 2)

    def decode_levels(self, video: torch.Tensor) -> torch.Tensor:
        """*Shapes*: [1,C,f,h,w] -> uint8 [F,H,W,P]."""
        sent, timestep = self.latents.to_model(video), self.latents.timestep
        return waited(lambda tell: self._model.decode_levels(sent, timestep=timestep, progress=tell))

    def encode(self, pixels: torch.Tensor, **_: Any) -> torch.Tensor:
        """The posterior's mode, as ComfyUI's VAEs give it. *Shapes*: [B,P,H,W] in [-1, 1] -> [B,C,h,w]."""
        # A model whose latents travel as patches gives cells only of the posterior's parameters.
        posterior = "mode" if self.latents.patch == 1 else "parameters"
        found = waited(lambda tell: self._model.encode(pixels, posterior=posterior, progress=tell)).float()
        return self.latents.from_model(found if self.latents.patch == 1 else found.chunk(2, dim=1)[0])

    def to(self, *_: Any, **__: Any) -> "FirstStageModel":
        return self

    def eval(self) -> "FirstStageModel":
        return self


class RemoteComfyVAE:
    """What a VAE output carries. Latents are as samplers give them; pictures are [B,H,W,P] in [0, 1].

    Tile sizes are accepted and not used: the server decodes large pictures in exact strips.
    """

    vae_dtype = torch.float32
    working_dtypes = (torch.bfloat16, torch.float32)
    device = output_device = torch.device("cpu")
    crop_input = True
    disable_offload = handles_tiling = False
    extra_1d_channel = size = None
    pad_channel_value = 1.0  # opaque

    def __init__(self, model: RemoteModel) -> None:
        self._model = model
        self.first_stage_model = FirstStageModel(model)
        latents, many = self.first_stage_model.latents, model.frames
        self.latent_channels, self.latent_dim = latents.channels, latents.dims
        self.output_channels = model.pixel_channels
        self.not_video = latents.on_a_videos_vae  # a batch is pictures
        self._side = s = model.ratio * latents.patch
        t = model.frames_ratio if model.is_video else 1
        self.upscale_ratio: Ratio = s
        self.downscale_ratio: Ratio = s
        self.upscale_index_formula = self.downscale_index_formula = None if latents.dims == 2 else (t, s, s)
        if model.is_video and latents.dims == 3:
            self.upscale_ratio = lambda frames: max(0, many.of_latent(frames)), s, s
            self.downscale_ratio = lambda frames: max(0, many.latent(frames)), s, s
        elif latents.dims == 3:
            self.upscale_ratio = self.downscale_ratio = lambda frames: frames, s, s

    def decode(self, samples_in: torch.Tensor, vae_options: object = None) -> torch.Tensor:
        """*Shapes*: [B,C,h,w] -> [B,H,W,P], or [B,C,f,h,w] -> [B,F,H,W,P]."""
        return self.process_output(self.first_stage_model.decode(samples_in)).movedim(1, -1)

    def decode_tiled(self, samples: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        """`decode`: nothing is tiled."""
        return self.decode(samples)

    def encode(self, pixel_samples: torch.Tensor) -> torch.Tensor:
        """*Shapes*: [B,H,W,P] -> [B,C,h,w], or [B,F,H,W,P] -> [B,C,f,h,w]; [F,H,W,P] is one video to a video's model.

        Frames beyond those that the model can encode are dropped, as ComfyUI's VAEs drop them.
        """
        pixels = self.vae_encode_crop_pixels(pixel_samples).movedim(-1, 1)
        if self._model.is_video and pixels.ndim == 4:
            pixels = pixels.movedim(0, 1).unsqueeze(0)
        if self._model.is_video:
            pixels = pixels[:, :, : self._model.frames.counts.nearest(pixels.shape[2])[0]]
        return self.first_stage_model.encode(self.process_input(pixels.float()))

    def _with_channels(self, pixels: torch.Tensor) -> torch.Tensor:
        """The channels that the model takes: others are left out, and without transparency a picture is opaque."""
        if pixels.shape[-1] == 3 and self.output_channels == 4:
            return torch.nn.functional.pad(pixels, (0, 1), value=self.pad_channel_value)
        return pixels[..., : self.output_channels]

    def encode_tiled(self, pixel_samples: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        """`encode`: nothing is tiled."""
        return self.encode(pixel_samples)

    def vae_encode_crop_pixels(self, pixels: torch.Tensor) -> torch.Tensor:
        """The middle of the picture, in whole cells and with the model's channels. *Shapes*: [...,H,W,C]."""
        for axis in (-3, -2):
            spare = pixels.shape[axis] % self._side
            pixels = pixels.narrow(axis, spare // 2, pixels.shape[axis] - spare)
        return self._with_channels(pixels)

    @staticmethod
    def process_input(image: torch.Tensor) -> torch.Tensor:
        return image * 2.0 - 1.0

    @staticmethod
    def process_output(image: torch.Tensor) -> torch.Tensor:
        return ((image + 1.0) / 2.0).clamp(0.0, 1.0)

    def spacial_compression_decode(self) -> int:
        return self._side

    def spacial_compression_encode(self) -> int:
        return self._side

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
