"""One model of a server, with the facts on its card, for the VAE objects of pipelines and workflows."""

import weakref
from typing import Any, Final
from urllib.parse import urlsplit, urlunsplit

from remote_vae.client.calls import find_card
from remote_vae.client.clients import Client
from remote_vae.client.endpoint import split_endpoint
from remote_vae.client.latents import AnyTensor
from remote_vae.client.network import PathText, run
from remote_vae.client.watching import Tell
from remote_vae.errors import InvalidReply, InvalidValue, LatentMismatch, NotReady, UnknownModel
from remote_vae.python310 import Self
from remote_vae.values import RGB, Frames

FRAMES_AXES: Final = 4  # of the frames of one video, which some pipelines hand over as a batch
FRAMES_FIRST: Final = "b f c h w"
NEEDED: Final = (
    "latent_channels",
    "spatial_compression_ratio",
    "temporal_compression_ratio",
    "latent_layouts",
    "deterministic",
    "normalised",
    "config",
)


class RemoteModel:
    """A model at `endpoint`, which is http://host:8000/<model>, or http://host:8000 with `model` or the first model.

    *Units*: timeout in seconds, for a whole call with all its tries.
    *Raises* UnknownModel if the model is not served there, NotReady if it is still loading, and the errors of `Client`.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        model: str | None = None,
        token: str | None = None,
        timeout: float = 300.0,
        retries: int | None = None,
        ca_file: PathText | None = None,
    ) -> None:
        base, name = split_endpoint(endpoint, model)
        self._client = Client(base, token=token, timeout=timeout, retries=retries, ca_file=ca_file)
        self.place = _host_of(base)
        try:
            self.card = _find(run(self._client.model_list()), name, self.place)
        except BaseException:
            self._client.close()
            raise
        self._begin()

    def _begin(self) -> None:
        # Users do not close a pipeline's VAE, so the connection is closed when this object is collected.
        self.close = weakref.finalize(self, self._client.close)
        self.name = str(self.card["name"])
        self._client.know(self.card)

    def __getstate__(self) -> tuple[Any, ...]:
        return self._client, self.place, self.card

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """A pickle or copy has the address and the card, and opens a connection of its own."""
        self._client, self.place, self.card = state
        self._begin()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def channels(self) -> int:
        return int(self.card["latent_channels"])

    @property
    def pixel_channels(self) -> int:
        """Channels of its pictures; a server that does not say has models of three."""
        return int(self.card.get("pixel_channels", RGB))

    @property
    def ratio(self) -> int:
        """Pixels per latent cell and side."""
        return int(self.card["spatial_compression_ratio"])

    @property
    def frames_ratio(self) -> int:
        """Frames per latent frame after the first; 1 for images."""
        return int(self.card["temporal_compression_ratio"])

    @property
    def frames(self) -> Frames:
        """How latent frames become frames; a server that does not say has causal models."""
        found = self.card.get("frames")
        return Frames.from_json(found) if found else Frames(group=self.frames_ratio)

    @property
    def is_video(self) -> bool:
        """Whether its latents have an axis of frames."""
        return any("f" in layout.split() for layout in self.card["latent_layouts"])

    @property
    def takes_frames(self) -> bool:
        """Whether its pipelines hand over the frames of one video as if they were a batch of pictures."""
        return "f c h w" in self.card["latent_layouts"]

    @property
    def is_normalised(self) -> bool:
        """Whether the VAE itself takes normalised latents, as previews do."""
        return bool(self.card["normalised"])

    def decode(
        self,
        latent: AnyTensor,
        *,
        do_scaling: bool = False,
        timestep: float | None = None,
        seed: int | None = None,
        progress: bool | Tell = False,
    ) -> AnyTensor:
        """The VAE's raw output, in about [-1, 1]; *raises* LatentMismatch for a latent of another model.

        `progress` is that of `Client.decode`.
        A decoder that is told a timestep adds no noise to the latent; `seed` is for one that takes noise itself.
        *Shapes*: [B,C,h,w] -> [B,P,H,W], or [B,C,f,h,w] -> [B,P,F,H,W], P pixel channels; [f,C,h,w] -> [F,P,H,W] if
        the model takes frames.
        """
        self._check_latent(tuple(latent.shape))
        how: Any = {"model": self.name, "do_scaling": do_scaling, "output_type": "pt", "progress": progress}
        if self.takes_frames and len(latent.shape) == FRAMES_AXES:
            [video] = self._client.decode(latent, **how)
            return video.swapaxes(0, 1)
        return self._client.decode(self._turned(latent), seed=seed, **how, **_at(timestep))

    def decode_levels(
        self, latent: AnyTensor, *, timestep: float | None = None, progress: bool | Tell = False
    ) -> AnyTensor:
        """Finished pixels in eight bits, a quarter of the bytes of float32; *raises* LatentMismatch.

        *Shapes*: [B,C,h,w] -> uint8 [B,H,W,P], or [1,C,f,h,w] -> [F,H,W,P].
        """
        self._check_latent(tuple(latent.shape))
        how: Any = {"model": self.name, "output_type": "pt", "partial_postprocess": True, "progress": progress}
        return self._client.decode(self._turned(latent), **how, **_at(timestep))

    def encode(
        self, pixels: AnyTensor, *, posterior: str, do_scaling: bool = False, progress: bool | Tell = False
    ) -> AnyTensor:
        """The latent of pixels in [-1, 1], or the posterior's parameters: mean and log-variance, twice the channels.

        *Shapes*: [B,P,H,W] -> [B,C,h,w], or [B,P,F,H,W] -> [B,C,f,h,w]; sides are multiples of the model's ratio.
        *Raises* LatentMismatch, InvalidValue.
        """
        shape = tuple(pixels.shape)
        self._check_pixels(shape)
        how: Any = {"model": self.name, "posterior": posterior, "do_scaling": do_scaling, "progress": progress}
        latent = self._client.encode(_as_sent(pixels), **how)
        if posterior != "parameters":  # which have the order of the VAE itself
            latent = self._turned(latent)
        sides = tuple(side // self.ratio for side in shape[-2:])
        if tuple(latent.shape[-2:]) != sides:
            raise InvalidValue(
                f"model {self.name!r} made a latent of {list(latent.shape[-2:])} cells of a picture of "
                f"{list(shape[-2:])} pixels, so it took a smaller picture; give sides that are multiples of "
                f"{2 * self.ratio}",
                shape=list(shape),
            )
        return latent

    def _turned(self, latent: AnyTensor) -> AnyTensor:
        """[B,C,f,h,w] as [B,f,C,h,w], or the reverse, if the model's latents travel with frames before channels."""
        turns = latent.ndim == 5 and self.card["latent_layouts"][0] == FRAMES_FIRST
        return latent.swapaxes(1, 2) if turns else latent

    def _check_latent(self, shape: tuple[int, ...]) -> None:
        axes, layout = (5, "B,{},f,h,w") if self.is_video else (4, "B,{},h,w")
        frames = self.takes_frames and len(shape) == FRAMES_AXES
        if (len(shape) == axes or frames) and shape[1] == self.channels:
            return
        expected = "[" + layout.format(self.channels) + "]"
        channels = f"{shape[1]} channels" if len(shape) > 1 else "no channels"
        raise LatentMismatch(
            f"the latent has {channels} and shape {list(shape)}; model {self.name!r} at {self.place} takes "
            f"{self.channels} channels, {expected}; is it the model of this pipeline?",
            shape=list(shape),
            channels=self.channels,
            model=self.name,
        )

    def _check_pixels(self, shape: tuple[int, ...]) -> None:
        axes, channels = (4, 5) if self.is_video else (4,), self.pixel_channels
        if len(shape) not in axes or shape[1] != channels or any(side % self.ratio for side in shape[-2:]):
            frames = f" or [B,{channels},F,H,W]" if self.is_video else ""
            raise InvalidValue(
                f"a tensor of shape {list(shape)} is no picture for model {self.name!r}; expected [B,{channels},H,W]"
                f"{frames} with H and W multiples of {self.ratio}",
                shape=list(shape),
            )


def _at(timestep: float | None) -> dict[str, Any]:
    """The options of a decoder that is told a timestep and adds no noise."""
    return {} if timestep is None else {"decode_timestep": timestep, "decode_noise_scale": 0.0}


def _host_of(endpoint: str) -> str:
    """The address as errors may show it: a path can hold a key too."""
    parts = urlsplit(endpoint)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], "", "", ""))


def _find(listed: dict[str, Any], name: str | None, place: str) -> dict[str, Any]:
    """The card of a name or alias, with all that is needed; *raises* NotReady, UnknownModel, InvalidReply."""
    card = find_card(listed, name)
    if card is None:
        wanted = name or listed.get("default")
        if wanted in listed.get("loading", ()):
            raise NotReady(f"model {wanted!r} at {place} is still loading; try again in a moment", model=wanted)
        served = ", ".join(card["name"] for card in listed["models"]) or "none"
        raise UnknownModel(f"model {name!r} is not served at {place}; served are {served}", model=name)
    missing = [key for key in NEEDED if card.get(key) is None or card[key] in ([], {})]
    if missing:
        raise InvalidReply(
            f"the card of model {card['name']!r} at {place} lacks {', '.join(missing)}; is the server older than "
            "this client?",
            model=card["name"],
        )
    return card


def _as_sent(pixels: AnyTensor) -> AnyTensor:
    """The same pixels in the fewest bytes, with a range that the server cannot mistake.

    Pixels of an 8-bit image are sent as uint8, which the server reads as the pipelines do, to the last bit. Other
    floats the server takes for [-1, 1] only if one of them is negative; if none is, they are sent in [0, 1].
    *Shapes*: [B,P,H,W] or [B,P,F,H,W] -> the same, or uint8 [B,H,W,P] or [B,F,H,W,P].
    """
    if str(pixels.dtype) == "torch.float32":
        levels = ((pixels + 1) * 127.5).round().clamp(0, 255).byte()
        if bool((levels.float() / 255 * 2 - 1 == pixels).all()):
            return levels.movedim(1, -1)
    return pixels if float(pixels.min()) < 0 else (pixels.float() + 1) / 2
