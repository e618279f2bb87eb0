"""The previews of videos, against a computation of the whole clip that is led by the names of the tensors alone."""

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

from remote_vae.models.previews.taehv import TAEHV

from .case import Case
from .video import frames_second
from .wan import unpacked

Frames = list[torch.Tensor]
CLAMP, RELU, DOUBLE, SHUFFLE = "clamp", "relu", "double", "shuffle"
ENCODER = {1: RELU}
DECODER = {0: CLAMP, 2: RELU, 6: DOUBLE, 12: DOUBLE, 18: DOUBLE, 21: RELU}
SUPER = {5: RELU, 6: SHUFFLE, 12: RELU, 13: SHUFFLE, 19: RELU, 20: SHUFFLE}
PLAIN: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    CLAMP: lambda frame: torch.tanh(frame / 3) * 3,
    RELU: lambda frame: frame.relu(),
    DOUBLE: lambda frame: frame.repeat_interleave(2, -1).repeat_interleave(2, -2),
    SHUFFLE: lambda frame: functional.pixel_shuffle(frame, 2),
}


def tiny(**config: Any) -> Callable[[], Any]:
    """A tiny module whose pixels are neither black nor cut off."""

    def build() -> Any:
        module = TAEHV(**{"widths": (8, 8, 6, 6), "encoder_width": 6, **config})
        for part in module.modules():
            if isinstance(part, torch.nn.Conv2d):
                part.weight.data *= 1.6
        last = max(int(name.split(".")[1]) for name in module.state_dict() if name.startswith("decoder"))
        module.decoder[last].bias.data += 0.5
        return module

    return build


def layers(weights: dict[str, torch.Tensor], without: dict[int, str]) -> list[tuple[str, dict[str, torch.Tensor]]]:
    """What each layer is, by the number that its tensors have; `without` names those that have none."""
    found = []
    for number in range(1 + max(int(name.split(".")[0]) for name in weights)):
        own = {name.split(".", 1)[1]: each for name, each in weights.items() if name.split(".")[0] == str(number)}
        found.append((without.get(number, "") if not own else "", own))
    return found


def convolved(frame: torch.Tensor, weights: dict[str, torch.Tensor], name: str, **options: int) -> torch.Tensor:
    weight = weights[name + "weight"]
    return functional.conv2d(frame, weight, weights.get(name + "bias"), padding=weight.shape[-1] // 2, **options)


def remembered(frame: torch.Tensor, before: torch.Tensor, weights: dict[str, torch.Tensor]) -> torch.Tensor:
    both = torch.cat([frame, before], dim=1)
    if weights["conv.0.weight"].shape[1] == 1:  # the super decoder's
        x = convolved(both, weights, "conv.0.", groups=both.shape[1])
        x = convolved(x, weights, "conv.1.").relu()
        return convolved(x, weights, "conv.3.") + frame
    x = convolved(both, weights, "conv.0.").relu()
    x = convolved(x, weights, "conv.2.").relu()
    return (convolved(x, weights, "conv.4.") + frame).relu()


def run(frames: Frames, module: Any, part: str, without: dict[int, str]) -> Frames:
    """All frames through one layer after the other."""
    weights = {name.removeprefix(part + "."): each for name, each in module.state_dict().items() if part in name}
    for kind, own in layers(weights, without):
        if kind:
            frames = [PLAIN[kind](frame) for frame in frames]
        elif "conv.0.weight" in own:
            before = [torch.zeros_like(frames[0]), *frames]
            frames = [remembered(frame, past, own) for frame, past in zip(frames, before, strict=False)]
        elif "conv.weight" in own:
            made, given = own["conv.weight"].shape[:2]
            stride = max(given // made, 1)
            frames = [torch.cat(frames[start : start + stride], 1) for start in range(0, len(frames), stride)]
            wide = [functional.conv2d(frame, own["conv.weight"]) for frame in frames]
            frames = [piece for frame in wide for piece in frame.split(min(made, given), 1)]
        else:
            halves = part == "encoder" and "bias" not in own
            frames = [convolved(frame, own, "", stride=2 if halves else 1) for frame in frames]
    return frames


def decoded(module: Any, z: torch.Tensor) -> torch.Tensor:
    """Frames in [-1, 1], without the first ones that the decoder gives."""
    config = module.config
    without = SUPER if config.super_decoder else DECODER
    frames = run(list(z.unbind(2)), module, "decoder", without)
    group = len(frames) // z.shape[2]
    span = group * (config.clip or z.shape[2])
    if not (config.even_whole and z.shape[2] % 2 == 0):
        frames = [frame for index, frame in enumerate(frames) if index % span >= group - 1]
    video = torch.stack([functional.pixel_shuffle(frame, config.patch_size) for frame in frames], 2)
    return video.clamp(0, 1) * 2 - 1


def encoded(module: Any, pixels: torch.Tensor) -> torch.Tensor:
    """The latent of frames, which are filled up to whole groups with the last one.

    With clips they are filled up to whole clips, each of which follows black frames, and the last latent frames go.
    """
    config, frames = module.config, list(((pixels + 1) / 2).unbind(2))
    group = int(torch.tensor(config.encoder_strides).prod())
    ahead = [torch.zeros_like(frames[0])] * (group - 1 if config.clip else 0)
    clip = group * config.clip - len(ahead) if config.clip else group * len(frames)
    frames += [frames[-1]] * (-len(frames) % (clip if config.clip else group))
    found: Frames = []
    for start in range(0, len(frames), clip):
        patches = [functional.pixel_unshuffle(frame, config.patch_size) for frame in ahead + frames[start:][:clip]]
        found += run(patches, module, "encoder", ENCODER)
    kept = len(found) - config.dropped if pixels.shape[2] > 1 else 1  # a picture is one latent frame
    return torch.stack(found[:kept], 2)


def channels_first(z: torch.Tensor) -> torch.Tensor:
    """Kandinsky 5's latents, with or without a batch, have their channels last."""
    if z.shape[-1] == 16:
        z = z.movedim(-1, -4)
    return z if z.ndim == 5 else z[None]


def case(module: Callable[[], Any], *latents: tuple[int, ...], size: tuple[int, int], frames: int = 6) -> Case:
    return Case(
        module,
        latents,
        size,
        lambda module, z: z if z.ndim == 5 else z[None],
        lambda module, z: z,
        frames=frames,
        decode=decoded,
        encode=encoded,
    )


CASES = {
    "taew2.1": case(tiny(), (1, 16, 3, 2, 3), (16, 2, 2, 3), (2, 16, 3, 2, 3), (1, 16, 1, 2, 3), size=(16, 24)),
    "taew2.1-image": Case(
        tiny(),
        ((1, 6, 64), (1, 16, 1, 4, 6), (2, 16, 4, 6)),
        (32, 48),
        lambda module, z: unpacked(z),
        lambda module, z: z[:, :, 0],
        one_frame=True,
        decode=decoded,
        encode=encoded,
    ),
    "taew2.2-image": Case(
        tiny(latent_channels=48, patch_size=2),
        ((1, 48, 1, 2, 3), (2, 48, 2, 3), (1, 6, 48)),
        (32, 48),
        lambda module, z: z.view(1, 2, 3, 48).permute(0, 3, 1, 2).unsqueeze(2) if z.ndim == 3 else unpacked(z),
        lambda module, z: z[:, :, 0],
        one_frame=True,
        decode=decoded,
        encode=encoded,
    ),
    "taew2.2": case(
        tiny(latent_channels=48, patch_size=2), (1, 48, 3, 2, 3), (2, 48, 1, 2, 3), size=(32, 48), frames=5
    ),
    "taew2.2-super": case(
        tiny(latent_channels=48, patch_size=2, super_decoder=True), (2, 48, 3, 2, 3), size=(32, 48), frames=8
    ),
    "taehv": case(tiny(), (2, 16, 3, 2, 3), size=(16, 24), frames=1),
    "taehv-kandinsky5": Case(
        tiny(),
        ((1, 3, 2, 4, 16), (2, 1, 2, 4, 16), (2, 2, 4, 16), (1, 16, 3, 2, 4)),
        (16, 32),
        lambda module, z: channels_first(z),
        lambda module, z: z,
        frames=5,
        decode=decoded,
        encode=encoded,
    ),
    "taecvx": Case(
        tiny(even_whole=True, scaling_factor=0.7),
        ((1, 3, 16, 2, 3), (2, 2, 16, 2, 3), (1, 16, 4, 2, 3), (1, 16, 2, 3), (16, 3, 2, 3)),
        (16, 24),
        lambda module, z: frames_second(z) / 0.7,
        lambda module, z: z.transpose(1, 2) * 0.7,
        frames=9,
        decode=decoded,
        encode=encoded,
    ),
    "taeltx2": Case(
        tiny(latent_channels=128, patch_size=4, encoder_strides=(2, 2, 2), decoder_strides=(2, 2, 2)),
        ((1, 128, 3, 2, 3), (2, 128, 1, 2, 3), (1, 18, 128)),
        (64, 96),
        lambda module, z: z.view(1, 3, 2, 3, 128).permute(0, 4, 1, 2, 3) if z.ndim == 3 else z,
        lambda module, z: z,
        frames=10,
        decode=decoded,
        encode=encoded,
    ),
    "taeh3": case(
        tiny(latent_channels=24, patch_size=2, clip=5, dropped=3),
        *((1, 24, 7, 2, 3), (1, 24, 3, 2, 3), (2, 24, 5, 2, 3), (1, 24, 12, 2, 2), (1, 24, 6, 2, 3)),
        size=(32, 48),
        frames=22,
    ),
    "taehv1.5": case(tiny(latent_channels=32, patch_size=2), (1, 32, 2, 2, 3), size=(32, 48)),
}
