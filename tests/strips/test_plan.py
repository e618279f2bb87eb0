"""The planner: what it predicts is what runs, what it picks fits, and what does not fit is refused with the numbers."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from remote_vae.core.decode import decode
from remote_vae.core.encode import encode
from remote_vae.core.executor import RUN_OPTIONS, Choice, RunOptions, choose
from remote_vae.core.layout import fit_latent
from remote_vae.core.live_bytes import LiveBytes
from remote_vae.core.strips import WHOLE_BYTES, Strips, is_light, predict, run, strip_executors
from remote_vae.core.sweep import MapSize, StripPlan
from remote_vae.engine.memory import Budget, total_bytes
from remote_vae.errors import ConfigurationError, NonFiniteOutput, Overloaded, RemoteVAEError, TooLarge
from remote_vae.models.families import MODELS, family_of, find_recipe
from remote_vae.models.stages.autoencoder_kl import describe_decoder, describe_encoder
from remote_vae.models.vae import DiffusersVAE
from remote_vae.values import Output, Posterior, Scaling

from .models import small

WIDTHS = (16, 32, 64, 64)
PLANS = {
    "whole": StripPlan(WHOLE_BYTES),
    "strips": StripPlan(64 * 1024),
    "strips-recompute": StripPlan(64 * 1024, recompute=True),
}
GENEROUS = 2**40


@pytest.fixture(autouse=True)
def small_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    """As small beside these maps as the true ones are beside a large picture's."""
    for room in ("attention", "steps"):
        monkeypatch.setattr(f"remote_vae.core.{room}.CHUNK_BYTES", 64 * 1024)


@pytest.fixture
def every_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small pictures are decoded by strips too."""
    monkeypatch.setattr("remote_vae.core.strips.SMALL_BYTES", 0)


@pytest.fixture(scope="module")
def vae() -> DiffusersVAE:
    return DiffusersVAE(small(WIDTHS, layers=2), source="seeded", revision="", family=family_of(MODELS["sd1"]))


def planned(vae: DiffusersVAE, shape: tuple[int, ...], *, device: str = "cpu", workers: int = 1, **options: Any) -> Any:
    """What the planner chooses among the strips of a device, names of executors and peaks."""
    assert vae.decoder is not None
    return tuple(choose(strip_executors(vae.decoder, device, workers), shape, torch.float32, **options))


def name_of(choice: Choice) -> str:
    return choice.executor.name


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("direction", ["decode", "encode"])
def test_prediction(name: str, direction: str, vae: DiffusersVAE) -> None:
    """The predicted peak is within 15 % of the live bytes that a run is seen to hold, and all are freed after it."""
    plan = PLANS[name]
    decoding = direction == "decode"
    program = describe_decoder(vae.module) if decoding else describe_encoder(vae.module)
    assert program is not None
    shape = (1, 4, 32, 40) if decoding else (1, 3, 256, 320)
    with LiveBytes() as live:
        run(program, torch.randn(shape), plan, lambda row, strip: None)
    assert live.current == 0
    predicted = predict(program, MapSize(shape[2], shape[3], shape[1], 4), plan)
    assert abs(predicted / live.peak - 1) < 0.15


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("name", ["strips", "strips-recompute"])
def test_prediction_of_several_at_a_time(name: str, count: int, vae: DiffusersVAE) -> None:
    """Strips that are computed side by side hold what is predicted, or less when not all hold their most at once."""
    shape = (1, 4, 32, 40)
    choice, *_ = planned(vae, shape, wanted=name, workers=count)
    assert isinstance(choice.executor, Strips)
    assert choice.executor.workers == count
    assert choice.peak_bytes is not None
    with LiveBytes() as live:
        choice.executor.run(torch.randn(shape), lambda first, row, strip: None, lambda: None)
    ends = time.monotonic() + 60
    while live.current and time.monotonic() < ends:
        time.sleep(0.01)  # a worker's thread lets go of the maps a moment after its work is done
    assert live.current == 0
    assert -0.1 < choice.peak_bytes / live.peak - 1 < 0.35


def test_fewer_at_a_time(vae: DiffusersVAE) -> None:
    """If strips side by side take more memory than there is, one at a time is tried before a request is refused."""
    shape = (1, 4, 32, 40)
    most, *rest = planned(vae, shape, workers=16, budget=GENEROUS)
    assert (most.executor.workers, rest[-1].executor.workers) == (16, 1)
    least = rest[-1].peak_bytes
    (found,) = planned(vae, shape, workers=16, budget=least)
    assert found == rest[-1]
    with pytest.raises(TooLarge):
        planned(vae, shape, workers=16, budget=least - 1)


def test_no_plan_is_tried_twice(vae: DiffusersVAE, every_size: None) -> None:
    """`whole`, which is the same for any number of workers, is fallen back on once."""
    names = [name_of(choice) for choice in planned(vae, (1, 4, 8, 8), workers=16)]
    assert names == ["strips", "whole", "strips", "strips-recompute"]


def test_strips_save_memory(vae: DiffusersVAE) -> None:
    """Of what diffusers' own decode holds, strips hold less than 45 % and recomputing strips less than 30 %."""
    z = torch.randn(1, 4, 32, 40)
    program = describe_decoder(vae.module)
    assert program is not None
    peaks = []
    for plan in (None, PLANS["strips"], PLANS["strips-recompute"]):
        with torch.inference_mode(), LiveBytes() as live:
            if plan is None:
                vae.decode(z)
            else:
                run(program, z, plan, lambda row, strip: None)
        peaks.append(live.peak)
    assert peaks[1] < 0.45 * peaks[0]
    assert peaks[2] < 0.30 * peaks[0]


def test_choice(vae: DiffusersVAE) -> None:
    """The fastest plan that fits is taken, with smaller ones to fall back on; a named plan is taken as it is."""
    shape = (1, 4, 64, 64)
    peaks = {name: planned(vae, shape, device="cuda", wanted=name, budget=GENEROUS)[0].peak_bytes for name in PLANS}
    assert peaks["strips-recompute"] < peaks["strips"] < peaks["whole"]
    names = [name_of(choice) for choice in planned(vae, shape, device="cuda", budget=peaks["whole"])]
    assert names == ["whole", "strips", "strips-recompute"]
    names = [name_of(choice) for choice in planned(vae, shape, device="cuda", budget=peaks["whole"] - 1)]
    assert names == ["strips", "strips-recompute"]
    assert name_of(planned(vae, shape, budget=GENEROUS)[0]) == "strips"


@pytest.mark.parametrize(("light", "count"), [(2**62, 1), (0, 3)])
def test_light_pictures(light: int, count: int, vae: DiffusersVAE, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small picture whose convolutions are light runs on one core, another on all that torch may use."""
    monkeypatch.setattr("remote_vae.core.strips.LIGHT", light)
    seen: list[int] = []
    hook = vae.module.decoder.register_forward_hook(lambda *_: seen.append(torch.get_num_threads()))
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        through(vae, torch.randn(1, 4, 8, 8))
        assert (seen, torch.get_num_threads()) == ([count], 3)
    finally:
        hook.remove()
        torch.set_num_threads(before)


def test_what_is_light() -> None:
    """Products of an average convolution decide, and how many more cores would share them: a wide model's smallest
    picture is not light.
    """
    narrow, wide = (describe_decoder(small(widths, layers=1)) for widths in (WIDTHS, (256, 512)))
    assert narrow is not None
    assert wide is not None
    assert is_light(narrow, (1, 4, 8, 8), 16)
    assert not is_light(narrow, (1, 4, 64, 64), 2)
    assert not is_light(wide, (1, 4, 8, 8), 2)
    side = next(side for side in range(8, 64) if not is_light(narrow, (1, 4, side, side), 16))
    assert is_light(narrow, (1, 4, side, side), 2)


def test_who_runs_a_model(vae: DiffusersVAE) -> None:
    """A model's card says whose code runs it, and for one with an unknown part no plan is offered but `whole`."""
    unknown = small(WIDTHS)
    unknown.encoder.conv_act = torch.nn.ReLU()
    other = DiffusersVAE(unknown, source="seeded", revision="", family=family_of(MODELS["sd1"]))
    assert (vae.info.executor, vae.info.plans) == ("strips", ("strips", "whole", "strips-recompute", "tiles"))
    assert (other.info.executor, other.info.plans) == ("diffusers", ("whole", "tiles"))
    z = torch.randn(1, 4, 64, 64)
    fit = fit_latent(find_recipe("sd1"), other.info, tuple(z.shape), model="sd1", height=None, width=None)
    found = decode(other, find_recipe("sd1"), z, fit=fit, scaling=Scaling(), output=Output.RAW)
    assert found.plan == "whole"
    assert torch.equal(found.tensor, unknown.decode(z).sample)


def test_nothing_fits(vae: DiffusersVAE) -> None:
    """A latent too large for every plan is refused with what it needs and what there is; tiles are never taken."""
    with pytest.raises(
        TooLarge, match=r"needs \d+ MB .* strips-recompute; 1 MB are free; send a smaller picture"
    ) as caught:
        choose(vae.decoders, (1, 4, 512, 512), torch.float32, budget=10**6)
    assert caught.value.detail["budget_bytes"] == 10**6
    with pytest.raises(RemoteVAEError, match="not one of"):
        choose(vae.decoders, (1, 4, 8, 8), torch.float32, wanted="fast")


def through(
    vae: DiffusersVAE, z: torch.Tensor, output: Output = Output.RAW, options: RunOptions = RUN_OPTIONS
) -> torch.Tensor:
    fit = fit_latent(find_recipe("sd1"), vae.info, tuple(z.shape), model="sd1", height=None, width=None)
    return decode(vae, find_recipe("sd1"), z, fit=fit, scaling=Scaling(), output=output, options=options).tensor


@pytest.mark.parametrize("output", list(Output))
def test_outputs_agree(output: Output, vae: DiffusersVAE) -> None:
    """Every output of a batch is the same whether it is finished strip by strip or as a whole."""
    z = torch.randn(3, 4, 6, 5, generator=torch.Generator().manual_seed(0))
    strips, own = (through(vae, z, output, options) for options in (RunOptions("strips"), RunOptions()))
    assert strips.shape == own.shape
    assert strips.dtype == own.dtype
    assert (strips.float() - own.float()).abs().max() <= (1 if strips.dtype is torch.uint8 else 1e-5)


def test_encode_by_plan(vae: DiffusersVAE) -> None:
    """A batch of pictures is encoded in strips as without, and the reply names the plan."""
    picture = torch.rand(2, 3, 48, 40)
    found = [
        encode(vae, find_recipe("sd1"), picture, scaling=Scaling(), posterior=Posterior.PARAMETERS, options=options)
        for options in (RunOptions("strips-recompute"), RunOptions())
    ]
    assert [item.plan for item in found] == ["strips-recompute", "whole"]
    torch.testing.assert_close(found[0].tensor, found[1].tensor, atol=1e-5, rtol=1e-5)


def test_tiles_only_by_name(vae: DiffusersVAE) -> None:
    """Tiles approximate, so they run when they are named, and leave no trace on the next decode."""
    z = torch.randn(1, 4, 24, 24)
    vae.module.tile_latent_min_size, vae.module.tile_sample_min_size = 8, 64
    exact = through(vae, z)
    assert (through(vae, z, options=RunOptions("tiles")) - exact).abs().max() > 1e-3
    assert torch.equal(through(vae, z), exact)


def test_falls_back_when_memory_is_taken(vae: DiffusersVAE, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the device runs out of memory after all, the next smaller exact plan is tried."""
    ran: list[tuple[str, int]] = []

    def poor(self: Strips, *rest: object) -> None:
        ran.append((self.name, self.workers))
        raise torch.OutOfMemoryError("none left")

    monkeypatch.setattr(Strips, "run", poor)
    monkeypatch.setattr("remote_vae.models.vae.cores", lambda device: 2)
    with pytest.raises(Overloaded, match="every exact plan"):
        through(vae, torch.randn(1, 4, 96, 96), options=RunOptions(budget=lambda: GENEROUS))
    assert ran == [("strips", 2), ("strips", 1), ("strips-recompute", 2), ("strips-recompute", 1)]


def test_cancelled_between_strips(vae: DiffusersVAE) -> None:
    """What a checkpoint raises ends the job within one strip, and the job's memory is free again."""
    calls = 0

    def checkpoint() -> None:
        nonlocal calls
        calls += 1
        if calls == 20:
            raise KeyboardInterrupt

    with LiveBytes() as live:
        with pytest.raises(KeyboardInterrupt):
            through(vae, torch.randn(1, 4, 48, 48), options=RunOptions("strips", checkpoint=checkpoint))
        held = live.current
    assert calls == 20
    assert held <= 4 * 48 * 48 * 4 * 2  # the latent, and no map


def test_nothing_leaks(vae: DiffusersVAE) -> None:
    """After many mixed jobs, refused ones among them, no tensor of theirs is alive."""
    with LiveBytes() as live:
        for index in range(60):
            options = RunOptions(("strips", "strips-recompute", "whole", None)[index % 4])
            z = torch.randn(1 + index % 2, 4, 4 + index % 3, 5)
            if index % 5 == 0:
                with bad_weights(vae), pytest.raises(NonFiniteOutput):
                    through(vae, z, options=options)
            else:
                through(vae, z, Output.UINT8, options)
            del z
        assert live.current == 0


@contextmanager
def bad_weights(vae: DiffusersVAE) -> Iterator[None]:
    bias = vae.module.decoder.conv_out.bias
    kept = bias[0].item()
    bias[0] = torch.nan
    yield
    bias[0] = kept


def test_budget() -> None:
    """A budget bounds weights and work together; one that the weights alone exceed is refused at the start."""
    device = torch.device("cpu")
    assert Budget(device, limit=10**6, weights_bytes=4 * 10**5).bytes_now() == 6 * 10**5
    assert Budget(device, limit=1e-4, weights_bytes=5).bytes_now() == int(1e-4 * total_bytes(device)) - 5
    assert (Budget(device, limit=None, weights_bytes=5).bytes_now() or 0) > 10**6
    with pytest.raises(ConfigurationError, match="weights take 2 MB and the memory budget is 1 MB"):
        Budget(device, limit=10**6, weights_bytes=2 * 10**6)
