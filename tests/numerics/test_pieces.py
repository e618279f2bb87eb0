"""Families whose own code works on tiles, clips or frames, run piece by piece: the same bits in less memory."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from remote_vae.core import pieces
from remote_vae.core.canvas import Canvas
from remote_vae.core.decode import decode
from remote_vae.core.executor import Executor, RunOptions
from remote_vae.core.layout import fit_latent
from remote_vae.core.live_bytes import LiveBytes
from remote_vae.core.pixels import pictures_of
from remote_vae.errors import DeadlineExceeded, TooLarge
from remote_vae.models.families import MODELS, family_of
from remote_vae.models.vae import DiffusersVAE
from remote_vae.values import Output, Scaling, ScalingMode

from .cases import CASES

H3, ALLEGRO, SVD, KVAE = "minimax-h3", "allegro", "svd", "kvae-3d"
COGVIDEOX, EASYANIMATE = "cogvideox", "easyanimate"
LATENTS = {  # one clip or tile, several, and numbers of frames and cells that leave the last ones overlapping more
    H3: ((1, 24, 3, 2, 3), (1, 24, 9, 17, 20), (2, 24, 12, 2, 17), (1, 24, 4, 29, 1)),
    ALLEGRO: ((1, 4, 6, 16, 16), (1, 4, 10, 17, 22), (2, 4, 6, 16, 16), (1, 4, 14, 17, 16)),
    KVAE: ((1, 16, 1, 4, 6), (1, 16, 10, 3, 5), (2, 16, 6, 4, 6), (1, 16, 15, 2, 3)),
    COGVIDEOX: ((1, 16, 1, 2, 3), (1, 16, 5, 3, 5), (2, 16, 4, 2, 3), (1, 16, 2, 4, 6), (1, 16, 7, 4, 6)),
    EASYANIMATE: ((1, 16, 1, 2, 3), (1, 16, 4, 3, 5), (2, 16, 2, 4, 6)),
}
PIXELS = {
    H3: ((1, 3, 1, 32, 48), (1, 3, 5, 272, 32), (2, 3, 22, 32, 48), (1, 3, 22, 32, 272)),
    ALLEGRO: ((1, 3, 24, 128, 128), (2, 3, 40, 136, 128)),
    KVAE: ((1, 3, 1, 32, 48), (2, 3, 21, 32, 48), (1, 3, 37, 16, 24)),
    COGVIDEOX: ((1, 3, 1, 16, 24), (1, 3, 5, 16, 24), (2, 3, 17, 24, 40), (1, 3, 16, 32, 48), (1, 3, 13, 16, 24)),
    EASYANIMATE: ((1, 3, 1, 16, 24), (2, 3, 9, 24, 40), (1, 3, 13, 32, 48)),
    SVD: ((1, 3, 1, 32, 48), (2, 3, 3, 32, 48)),
}
CALLS = [(name, shape, True) for name in LATENTS for shape in LATENTS[name]] + [
    (name, shape, False) for name in PIXELS for shape in PIXELS[name]
]


def served(name: str, **config: Any) -> DiffusersVAE:
    torch.manual_seed(7)
    module, family = CASES[name].module().eval(), family_of(MODELS[name])
    family.prepare(module)
    return DiffusersVAE(module, source="m", revision="", family=family)


def given(shape: tuple[int, ...], *, decoding: bool) -> torch.Tensor:
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    return noise if decoding else noise.clamp(-1, 1)


def executor_of(vae: DiffusersVAE, *, decoding: bool) -> Executor:
    return next(way for way in (vae.decoders if decoding else vae.encoders) if way.name == "pieces")


def through(executor: Executor, z: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    canvas = Canvas(len(like), like.shape[2], lambda block: block, row_axis=2)
    executor.run(z, canvas.put, lambda: None)
    return canvas.output


def reference(vae: DiffusersVAE, z: torch.Tensor, *, decoding: bool) -> torch.Tensor:
    """Each video of a batch by the module's own code."""
    call = vae.decode if decoding else vae.encode
    return torch.cat([pictures_of(call(z[index : index + 1])) for index in range(len(z))])


@pytest.mark.parametrize(("name", "shape", "decoding"), CALLS)
@torch.inference_mode()
def test_the_very_bits(name: str, shape: tuple[int, ...], decoding: bool) -> None:
    """Pieces give the bits of the module's own code, and take the memory that is predicted."""
    vae, z = served(name), given(shape, decoding=decoding)
    executor, expected = executor_of(vae, decoding=decoding), reference(vae, z, decoding=decoding)
    found = through(executor, z, expected)
    # The frames of SVD are apart in its own code too, but there they run as a batch, which rounds otherwise.
    assert torch.equal(found, expected) if name != SVD else torch.allclose(found, expected, atol=1e-6)
    with LiveBytes() as live:
        executor.run(z.clone(), lambda *block: None, lambda: None)
    predicted = executor.peak_bytes(shape, z.dtype, 0)
    assert predicted is not None
    assert abs(predicted / live.peak - 1) < 0.15


@pytest.mark.parametrize("name", LATENTS)
@torch.inference_mode()
def test_the_very_bits_in_16_bits(name: str) -> None:
    """In half precision the tiles are blended in the precision in which the class blends them."""
    vae, shape = served(name), LATENTS[name][1]
    for part, weight in vae.module.named_parameters():
        if not set(part.split(".")) & set(family_of(MODELS[name]).float32):
            weight.data = weight.bfloat16()
    z = given((1, *shape[1:]), decoding=True).bfloat16()
    expected = reference(vae, z, decoding=True)
    assert torch.equal(through(executor_of(vae, decoding=True), z, expected), expected)


@pytest.mark.parametrize("name", LATENTS)
def test_no_more_than_the_whole(name: str) -> None:
    """A step's caches take the place of the last step's, so steps are not predicted to take more than the whole."""
    shape = LATENTS[name][-1]
    vae = served(name)
    peaks = {way.name: way.peak_bytes(shape, torch.float32, 0) for way in vae.decoders}
    assert peaks["pieces"] is not None
    assert peaks["whole"] is not None
    assert peaks["pieces"] <= peaks["whole"]


def no_fade(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_blend", lambda a, b, extent, dim: b)


def forgotten_frame(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    module.frame_overlap -= 1


def forgotten_row(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    split = module._split_tiles
    monkeypatch.setattr(
        module, "_split_tiles", lambda *sides: (*split(*sides)[:2], [side - 1 for side in split(*sides)[2]])
    )


def small_groups(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    module.num_latent_frames_batch_size = 1


def no_memory(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    module.decoder.register_forward_pre_hook(lambda part, given: module._clear_conv_cache())


def no_weights(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    place = "diffusers.models.autoencoders.autoencoder_kl_allegro._prepare_for_blend"
    monkeypatch.setattr(place, lambda frames, rows, columns, tile: tile)


@pytest.mark.parametrize(
    ("name", "plant"),
    [
        (H3, no_fade),
        (H3, forgotten_frame),
        (H3, forgotten_row),
        (ALLEGRO, no_weights),
        (COGVIDEOX, small_groups),
        (EASYANIMATE, no_memory),
    ],
)
@torch.inference_mode()
def test_planted_errors(name: str, plant: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    """The sizes of these tests show an overlap that is forgotten, or is one too small, in time or in rows."""
    vae, shape = served(name), LATENTS[name][1]
    z = given((1, *shape[1:]), decoding=True)
    expected = reference(vae, z, decoding=True)
    plant(vae.module, monkeypatch)
    try:
        found = through(executor_of(vae, decoding=True), z, expected)
    except RuntimeError:
        return  # blocks that do not fit together are seen as well
    assert not torch.equal(found, expected)


@pytest.mark.parametrize(
    ("name", "shape", "step", "decoding"),
    [
        (H3, (1, 24, 12, 2, 3), 5, True),
        (H3, (1, 3, 39, 32, 48), 17, False),
        (ALLEGRO, (1, 4, 14, 16, 16), 4, True),
        (SVD, (1, 3, 3, 32, 48), 1, False),
        (KVAE, (1, 16, 17, 2, 3), 4, True),
        (KVAE, (1, 3, 49, 16, 24), 16, False),
        (COGVIDEOX, (1, 16, 7, 2, 3), 2, True),
        (COGVIDEOX, (1, 3, 25, 16, 24), 8, False),
        (EASYANIMATE, (1, 16, 3, 2, 3), 1, True),
    ],
)
@torch.inference_mode()
def test_any_length(name: str, shape: tuple[int, ...], step: int, decoding: bool) -> None:
    """A longer video takes no more memory than its own input does."""
    vae, peaks, inputs = served(name), [], []
    executor = executor_of(vae, decoding=decoding)
    for frames in (shape[2], shape[2] + 4 * step):
        z = given((*shape[:2], frames, *shape[3:]), decoding=decoding)
        with LiveBytes() as live:
            executor.run(z, lambda *block: None, lambda: None)
        peaks.append(live.peak)
        inputs.append(z.nbytes)
    assert peaks[1] - peaks[0] <= inputs[1] - inputs[0]


@pytest.mark.parametrize("name", [H3, ALLEGRO])
@torch.inference_mode()
def test_first_frames_early(name: str) -> None:
    """Frames come as soon as they are finished, in order."""
    vae = served(name)
    firsts: list[tuple[int, int]] = []
    z = given((1, *LATENTS[name][-1 if name == ALLEGRO else 2][1:]), decoding=True)
    executor_of(vae, decoding=True).run(z, lambda first, row, block: firsts.append((first, row)), lambda: None)
    assert firsts == sorted(firsts)
    assert len({first for first, _ in firsts}) >= 2


@pytest.mark.parametrize("name", [H3, ALLEGRO])
@torch.inference_mode()
def test_cancelled_between_pieces(name: str) -> None:
    """A job that is cancelled gives its memory back, and the next one is done as ever."""
    vae, z = served(name), given((1, *LATENTS[name][1][1:]), decoding=True)
    executor, expected = executor_of(vae, decoding=True), reference(vae, z, decoding=True)
    layers = blocks = 0

    def sink(first: int, row: int, block: torch.Tensor) -> None:
        nonlocal blocks
        blocks += 1

    def cancel() -> None:
        nonlocal layers
        layers += 1
        if blocks == 2:
            raise DeadlineExceeded("nobody waits")

    with LiveBytes() as live, pytest.raises(DeadlineExceeded):
        executor.run(z, sink, cancel)
    assert live.current == 0
    assert layers > 2
    assert torch.equal(through(executor, z, expected), expected)


@pytest.mark.parametrize("output", [Output.UINT8, Output.RAW])
@pytest.mark.parametrize("name", [H3, ALLEGRO])
def test_a_whole_job(name: str, output: Output) -> None:
    """The planner takes pieces, and predicts the memory of the job within 15 %, its output included."""
    vae, recipe, shape = served(name), replace(MODELS[name].recipe), LATENTS[name][1]
    z = given(shape, decoding=True)
    fit = fit_latent(recipe, vae.info, shape, model="m", height=None, width=None)
    with LiveBytes() as live:
        found = decode(
            vae, recipe, z, fit=fit, scaling=Scaling(ScalingMode.NONE), output=output,
            options=RunOptions(budget=lambda: 2**40),
        )  # fmt: skip
    assert found.plan == "pieces"
    assert found.peak_bytes is not None
    assert abs(found.peak_bytes / live.peak - 1) < 0.15
    with pytest.raises(TooLarge, match=r"needs \d+ MB of memory with plan pieces; 1 MB are free"):
        decode(
            vae, recipe, z, fit=fit, scaling=Scaling(ScalingMode.NONE), output=output,
            options=RunOptions(budget=lambda: 10**6),
        )  # fmt: skip


@torch.inference_mode()
def test_the_whole_on_request() -> None:
    """The module's own code runs if a request names it."""
    vae, recipe = served(H3), MODELS[H3].recipe
    z = given(LATENTS[H3][0], decoding=True)
    fit = fit_latent(recipe, vae.info, tuple(z.shape), model="m", height=None, width=None)
    found = decode(vae, recipe, z, fit=fit, scaling=Scaling(), output=Output.RAW, options=RunOptions("whole"))
    assert found.plan == "whole"
    assert vae.info.plans == ("pieces", "whole")


@torch.inference_mode()
def test_what_is_rehearsed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A prediction runs the net once for each size of its pieces, and of a long video no more than its first clips."""
    vae, ran, split = served(H3), [], 0
    own = vae.module._split_tiles

    def counted(*sides: int) -> Any:
        nonlocal split
        split += 1
        return own(*sides)

    monkeypatch.setattr(vae.module, "_split_tiles", counted)
    vae.module.decoder.register_forward_pre_hook(lambda module, args: ran.append(args[0].shape))
    executor = executor_of(vae, decoding=True)
    long, short = (executor.peak_bytes((1, 24, frames, 40, 40), torch.float32, 0) for frames in (102, 12))
    assert ran == [torch.Size((1, 24, 7, 16, 16))] * 2
    assert split == 2 * (3 + 2)  # sides, clips
    assert long is not None
    assert short is not None
    assert long - short == 4 * 24 * 90 * 40 * 40


@torch.inference_mode()
def test_pictures_apart() -> None:
    """A batch that does not fit at once runs one picture after the other, with the memory of one."""
    name = "sana"
    vae, recipe = served(name), MODELS[name].recipe
    z = given((6, 4, 5, 7), decoding=True)
    fit = fit_latent(recipe, vae.info, tuple(z.shape), model="m", height=None, width=None)

    def run(budget: int) -> Any:
        options = RunOptions(budget=lambda: budget)
        with LiveBytes() as live:
            found = decode(vae, recipe, z, fit=fit, scaling=Scaling(), output=Output.RAW, options=options)
        return found, live.peak

    (together, most), one = run(2**40), vae.decoders[0].peak_bytes((1, 4, 5, 7), torch.float32, 0)
    assert one is not None
    apart, least = run(2 * one)
    assert (together.plan, apart.plan) == ("whole", "whole")
    assert least < most / 3
    assert abs(apart.peak_bytes / least - 1) < 0.15
    torch.testing.assert_close(apart.tensor, together.tensor, atol=1e-5, rtol=1e-5)
    with pytest.raises(TooLarge):
        run(one - 1)


def test_noise_is_drawn_at_once() -> None:
    """A model that takes a seed is never given its pictures one by one: each would get the same noise."""
    vae = served("ltx-0.9.1")
    assert not any(isinstance(executor, pieces.Apart) for executor in vae.decoders)
