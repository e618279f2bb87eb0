"""A model that runs by its own code: its very bits, how much memory it takes, and that it can be stopped."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLHunyuanVideo,
    AutoencoderKLQwenImage,
    AutoencoderKLQwenImage21,
    AutoencoderTiny,
)

from remote_vae.core import kept
from remote_vae.core.canvas import Canvas
from remote_vae.core.decode import decode
from remote_vae.core.encode import encode
from remote_vae.core.executor import RunOptions
from remote_vae.core.layout import fit_latent
from remote_vae.core.live_bytes import LiveBytes
from remote_vae.core.own_code import OwnCode, meta_copy
from remote_vae.errors import TooLarge
from remote_vae.models.families import MODELS as REGISTRY
from remote_vae.models.families import family_of, find_recipe
from remote_vae.models.vae import DiffusersVAE
from remote_vae.values import Output, Posterior, Scaling, ScalingMode

VIDEO = {
    "block_out_channels": (16, 32, 32, 32),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "latent_channels": 4,
}
PREVIEW = {
    "encoder_block_out_channels": (16,) * 4,
    "decoder_block_out_channels": (16,) * 4,
    "latent_channels": 4,
}
PICTURE = {
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "block_out_channels": (16, 32, 32),
    "norm_num_groups": 8,
    "latent_channels": 4,
}
MODELS: dict[str, tuple[Callable[[], torch.nn.Module], str, tuple[tuple[int, ...], ...]]] = {
    "video": (
        lambda: AutoencoderKLHunyuanVideo(**VIDEO),
        "hunyuanvideo",
        ((1, 4, 3, 8, 8), (1, 4, 2, 14, 9)),
    ),
    "preview": (lambda: AutoencoderTiny(**PREVIEW), "taesd", ((1, 4, 24, 24), (2, 4, 9, 30))),
    "picture": (lambda: AutoencoderKL(**PICTURE), "sd1", ((1, 4, 24, 24), (2, 4, 9, 30))),
    "layers": (
        lambda: AutoencoderKLQwenImage(base_dim=16, num_res_blocks=1, input_channels=4),
        "qwen-image-layered",
        ((1, 16, 1, 12, 10), (3, 16, 1, 9, 7)),
    ),
    "transparent": (
        lambda: AutoencoderKLQwenImage21(base_dim=16, decoder_base_dim=16, num_res_blocks=1),
        "qwen-image-2.1",
        ((1, 64, 1, 6, 5), (2, 64, 1, 4, 3)),
    ),
}
SHAPES = [(name, shape) for name, (_, _, shapes) in MODELS.items() for shape in shapes]
Z = torch.randn(1, 4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def build(name: str) -> DiffusersVAE:
    """A small model; layers that strips could run have a part that is unknown, so that only its own code can run it."""
    torch.manual_seed(0)
    module: Any = MODELS[name][0]()
    if name in ("picture", "video"):
        module.encoder.conv_act = torch.nn.ReLU()
    elif name in ("layers", "transparent"):
        module.encoder.mid_block.resnets[0].nonlinearity = torch.nn.ReLU()
    return DiffusersVAE(module.eval(), source="seeded", revision="", family=family_of(REGISTRY[MODELS[name][1]]))


def own(vae: DiffusersVAE, *, decoding: bool = True) -> OwnCode:
    return next(way for way in (vae.decoders if decoding else vae.encoders) if isinstance(way, OwnCode))


def through(vae: DiffusersVAE, z: torch.Tensor, options: RunOptions, output: Output = Output.RAW) -> Any:
    recipe = find_recipe("hunyuanvideo")
    fit = fit_latent(recipe, vae.info, tuple(z.shape), model="test", height=None, width=None)
    return decode(vae, recipe, z, fit=fit, scaling=Scaling(), output=output, options=options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("name", "shape"), SHAPES)
def test_prediction(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """The peak that is counted on meta tensors is within 15 % of what real tensors hold, in both directions."""
    vae = build(name)
    torch.nn.Module.to(vae.module, dtype)
    frames = (vae.info.frames.of_latent(shape[2]),) if len(shape) == 5 else ()
    sides = (side * vae.info.spatial_compression_ratio for side in shape[-2:])
    pixels = (shape[0], vae.info.pixel_channels, *frames, *sides)
    for executor, given in ((own(vae), shape), (own(vae, decoding=False), pixels)):
        with torch.inference_mode(), LiveBytes() as live:
            executor.run(torch.randn(given).to(dtype), lambda *block: None, lambda: None)
        predicted = executor.peak_bytes(given, dtype, 0)
        assert predicted is not None
        assert abs(predicted / live.peak - 1) < 0.15


@pytest.mark.parametrize("output", [Output.UINT8, Output.RAW])
def test_prediction_of_a_job(output: Output) -> None:
    """The reply names the peak of the whole job, its output included, within 15 % of what is held."""
    vae = build("video")
    with LiveBytes() as live:
        found = through(vae, Z, RunOptions(budget=lambda: 2**40), output)
    assert abs(found.peak_bytes / live.peak - 1) < 0.15


def test_what_cannot_fit_is_refused() -> None:
    """A video that is too large is refused with the numbers, before any layer of the model runs, both ways."""
    vae, ran = build("video"), []
    for part in (vae.module.decoder, vae.module.encoder):
        part.register_forward_pre_hook(lambda module, given: ran.append(given[0].device.type))
    options = RunOptions(budget=lambda: 10**6)
    with pytest.raises(
        TooLarge, match=r"needs \d+ MB .* plan whole; 1 MB are free; send a smaller or shorter video"
    ) as caught:
        through(vae, Z, options)
    assert caught.value.detail["peak_bytes"] > caught.value.detail["budget_bytes"] == 10**6
    with pytest.raises(TooLarge):
        encode(
            vae, find_recipe("hunyuanvideo"), torch.rand(1, 3, 9, 64, 64), scaling=Scaling(),
            posterior=Posterior.MODE, options=options,
        )  # fmt: skip
    assert "cpu" not in ran


def test_predicted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shape is predicted once, whatever its batch, and no more than a bounded number of shapes is kept."""
    vae, copies = build("preview"), 0
    executor = own(vae)
    predict = executor._predict

    def counted(shape: tuple[int, ...], dtype: torch.dtype) -> int | None:
        nonlocal copies
        copies += 1
        return predict(shape, dtype)

    monkeypatch.setattr(executor, "_predict", counted)
    monkeypatch.setattr(kept, "MOST", 2)
    one, again, two = (executor.peak_bytes((batch, 4, 8, 8), torch.float32, 7) for batch in (1, 1, 2))
    assert one == again
    assert copies == 1
    assert (two or 0) - 7 == 2 * ((one or 0) - 7)
    for side in (9, 10, 8):
        executor.peak_bytes((1, 4, side, 8), torch.float32, 0)
    assert copies == 4


def test_a_prediction_leaves_the_model_alone() -> None:
    """Predicting copies no weights and changes nothing: the next decode gives the same bits."""
    vae = build("video")
    before = vae.decode(Z)
    with LiveBytes() as live:
        copied = meta_copy(vae.module)
        assert live.peak <= 2 * vae.info.weight_bytes  # of meta tensors, which hold no memory
    assert {tensor.device.type for tensor in (*copied.parameters(), *copied.buffers())} == {"meta"}
    own(vae).peak_bytes(tuple(Z.shape), torch.float32, 0)
    assert torch.equal(vae.decode(Z), before)


def test_code_that_asks_for_values() -> None:
    """Code that cannot run without values has no prediction, and runs whatever the budget is."""

    def call(module: torch.nn.Module, z: torch.Tensor) -> torch.Tensor:
        return module(z) if float(z.sum()) else z

    executor = OwnCode(torch.nn.Identity(), call)
    assert executor.peak_bytes((1, 3, 4, 4), torch.float32, 0) is None
    canvas = Canvas(1, 4, lambda block: block, row_axis=2)
    executor.run(torch.ones(1, 3, 4, 4), canvas.put, lambda: None)
    assert torch.equal(canvas.output, torch.ones(1, 3, 4, 4))


@pytest.mark.parametrize("name", MODELS)
def test_very_bits(name: str) -> None:
    """A job that runs by the model's own code gives the bits of the module."""
    vae, (_, recipe_name, (shape, _)) = build(name), MODELS[name]
    z = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    recipe = find_recipe(recipe_name)
    fit = fit_latent(recipe, vae.info, shape, model="test", height=None, width=None)
    scaling = Scaling(ScalingMode.MODEL if name == "preview" else ScalingMode.NONE)  # neither changes the latent
    options = RunOptions(plan="whole")
    found = decode(vae, recipe, z, fit=fit, scaling=scaling, output=Output.RAW, options=options)
    assert found.plan == "whole"
    expected = vae.module.decode(z, return_dict=False)[0]
    assert torch.equal(found.tensor, expected[:, :, 0] if recipe.one_frame else expected)


@pytest.mark.parametrize("name", MODELS)
def test_stopped_between_layers(name: str) -> None:
    """The checkpoint is called before each layer: what it raises ends the job, and no hook is left behind."""
    vae, calls, layers = build(name), 0, 0
    z = torch.randn(MODELS[name][2][0])

    def checkpoint() -> None:
        nonlocal calls
        calls += 1
        if calls == 20:
            raise KeyboardInterrupt

    def count(module: torch.nn.Module, given: object) -> None:
        nonlocal layers
        layers += not list(module.children())

    handles = [part.register_forward_pre_hook(count) for part in vae.module.modules()]
    with torch.inference_mode(), pytest.raises(KeyboardInterrupt):
        own(vae).run(z, lambda *block: None, checkpoint)
    assert calls == 20
    assert layers <= 20
    for handle in handles:
        handle.remove()
    vae.module.decode(z)
    assert calls == 20


def test_blocks_make_up_the_output() -> None:
    """Blocks of frames and of rows are put where they belong, and a first frame alone takes no others."""
    whole = torch.randn(4, 3, 6, 5)
    for pictures in (4, 1):
        canvas = Canvas(pictures, 6, lambda block: block.permute(0, 2, 3, 1), row_axis=1)
        for first, row in ((0, 0), (0, 2), (2, 0), (2, 2)):
            canvas.put(first, row, whole[first : first + 2, :, row : row + (2 if row == 0 else 4)])
        assert torch.equal(canvas.output, whole[:pictures].permute(0, 2, 3, 1))
