"""The previews of videos, against a computation of the whole clip that is led by the names of the tensors alone."""

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

from remote_vae.models.previews.taehv import TAEHV

from .case import Case
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
    """The latent of frames, which are filled up to whole groups with the last one."""
    group = torch.tensor(module.config.encoder_strides).prod().item()
    frames = list(((pixels + 1) / 2).unbind(2))
    frames += [frames[-1]] * (-len(frames) % group)
    patches = [functional.pixel_unshuffle(frame, module.config.patch_size) for frame in frames]
    return torch.stack(run(patches, module, "encoder", ENCODER), 2)


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
    "taehv1.5": case(tiny(latent_channels=32, patch_size=2), (1, 32, 2, 2, 3), size=(32, 48)),
}
