"""benchmarks/roofline.py: what it counts, its rules, how near it comes to published times, and what ours launch."""

import json
import subprocess
import sys
from math import prod
from pathlib import Path

import pytest
import roofline
import torch
from roofline_account import by_operator, counted
from roofline_cards import CARDS, HOST_SECONDS, KERNEL_SECONDS, Kernel, cost, device_seconds
from roofline_cases import PUBLISHED, Case, Published, count, model_without_values, ways

from remote_vae.core import steps
from remote_vae.core.decode import decode
from remote_vae.core.executor import RunOptions
from remote_vae.core.layout import fit_latent
from remote_vae.models.spec import ModelSpec
from remote_vae.values import Output, Scaling

H200 = CARDS["H200"]


@pytest.mark.parametrize("last", [False, True])
def test_convolution(last: bool) -> None:
    """Products and bytes of a convolution; only one that is not channels last moves its tensors to another layout."""
    layout = torch.channels_last if last else torch.contiguous_format
    given, weight = (
        torch.empty(shape, device="meta").to(memory_format=layout) for shape in ((1, 64, 8, 8), (64, 64, 3, 3))
    )
    with torch.inference_mode(), counted() as account:
        found = torch.nn.functional.conv2d(given, weight, torch.empty(64, device="meta"), padding=1)
    kernels = {kernel.name: kernel for kernel in account.kernels}
    layouts = [kernel.name for kernel in account.kernels if kernel.kind.endswith("layout")]
    assert found.is_contiguous(memory_format=layout)
    assert layouts == ([] if last else ["to channels last", "to channels last", "from channels last"])
    assert kernels["convolution"].flops == 2 * 64 * 64 * 64 * 9
    assert kernels["convolution"].read == 4 * (given.numel() + weight.numel())
    assert kernels["bias of a convolution"].read == 4 * (found.numel() + 64)


def test_what_launches_nothing_and_what_waits() -> None:
    """Views launch nothing; a norm is three kernels; attention is one; values that come to the host wait."""
    x = torch.empty(2, 8, 4, 4, device="meta")
    with torch.inference_mode(), counted() as account:
        x.permute(0, 2, 3, 1).reshape(2, -1)[:1].view(-1)
        torch.empty(3, device="meta").new_empty(0).zero_()
        torch.zeros(4).add_(1).sum().item()
        launched = [len(account.kernels)]
        torch.nn.functional.group_norm(x, 4)
        torch.nn.functional.scaled_dot_product_attention(x, x, x)
        launched.append(len(account.kernels))
        waits = [account.waits]
        bool(x.sum() > 0)
        waits.append(account.waits)
        assert x.cpu().shape == x.shape
        waits.append(account.waits)
    assert by_operator(account.kernels)["clone"] == 1, "the reshape"
    assert launched == [1, 5]
    assert waits == [0, 1, 2]


def test_overlap() -> None:
    """Small kernels take what the host takes to launch them; large ones what the device takes; waiting adds both."""
    small = Kernel("a", "values", "float16", read=64)
    large = Kernel("b", "values", "float16", read=2 * 10**9)
    many = [kernel for _ in range(50) for kernel in (small, Kernel("c", "values", "float16", read=64))]
    assert cost(many, H200).total == pytest.approx(100 * HOST_SECONDS + KERNEL_SECONDS)
    device = device_seconds(large, H200)
    assert cost([large, large], H200).total == pytest.approx(2 * device + HOST_SECONDS)
    wait = Kernel("item", "wait", "")
    assert cost([large, wait, large, wait], H200).total > cost([large, large], H200).total


def test_what_the_cache_holds() -> None:
    """Bytes are near if they were used shortly before or are freed soon, and far if others pass through the cache."""
    mega = 10**6

    def passed(between: int) -> list[float]:
        """Of two kernels, one of which reads what the other has written, the seconds on an RTX 4090."""
        with torch.inference_mode(), counted() as account:
            first = torch.empty(2 * mega, device="meta")
            first.fill_(1)
            torch.empty(between, device="meta").fill_(1)
            second = first + 1
            del first, second
        return [device_seconds(kernel, CARDS["RTX 4090"]) for kernel in account.kernels if kernel.read + kernel.written]

    near, far = passed(1), passed(25 * mega)
    assert far[0] > 2 * near[0]
    assert far[2] > 2 * near[2]


@pytest.mark.parametrize(
    "one", PUBLISHED, ids=lambda one: f"{one.card} {one.way} {one.case.model} {one.case.direction} {one.case.size}"
)
def test_published_times(one: Published) -> None:
    """What others measured with diffusers' code is calculated to within 25 %."""
    seconds = cost(count(one.case, one.way).account.work, CARDS[one.card]).total
    assert seconds == pytest.approx(one.seconds, rel=0.25)


@pytest.mark.parametrize("model", ["sd1", "sdxl", "flux1", "flux2"])
def test_what_ours_launch(model: str) -> None:
    """A picture of 1024 pixels is decoded in at most 155 launches, one change of layout, and no wait before the end."""
    account = count(Case(model, 1024, 1024), "whole").account
    assert len(account.kernels) <= 155
    assert sum(kernel.kind.endswith("layout") for kernel in account.kernels) <= 1
    assert account.waits == 0


@pytest.mark.parametrize("way", ["frames", "rows"])
def test_what_local_networks_launch(way: str) -> None:
    """Of a video, only the four frames of the latent change their layout, and nothing waits before the end."""
    account = count(Case("wan2.1", 64, 64, 13), way).account
    changed = [kernel.shape for kernel in account.kernels if kernel.kind.endswith("layout")]
    assert sum(map(prod, changed)) <= 16 * 4 * 8 * 8
    assert account.waits == 0


def test_what_a_picture_of_qwen_image_launches() -> None:
    """A convolution of a local network takes seven launches: it, its bias, the norm, and the rows around its window.

    A residual sum may copy the few rows that wait for the next block.
    """
    account = count(Case("qwen-image", 1024, 1024), "frames").account
    launched = by_operator(account.kernels)
    assert len(account.kernels) <= 7 * launched["convolution"] + launched["add_"]
    assert launched["convolution"] <= 80
    assert launched["divide"] <= launched["convolution"]


@pytest.mark.parametrize("model", ["ltx2", "hunyuanvideo-1.5", "hunyuanvideo"])
@pytest.mark.parametrize("direction", ["decode", "encode"])
def test_other_families_run_too(model: str, direction: str) -> None:
    """Every plan of families whose own functions lay blocks otherwise runs by the kernels of CUDA devices."""
    case = Case(model, 128, 128, 9, direction=direction)
    plans = [way for way in ways(case) if not way.startswith("diffusers")]
    assert plans
    for plan in plans:
        launched = by_operator(count(case, plan).account.kernels)
        assert launched["normalise"] + launched["divide"] > 0


@pytest.mark.parametrize("direction", ["decode", "encode"])
def test_norms_with_statistics_of_their_own(direction: str) -> None:
    """Stage A of Stable Cascade, whose encoder has one, is counted both ways; rows hold less than its own code."""
    case = Case("stable-cascade", 256, 256, direction=direction)
    own, rows = (count(case, way) for way in ("diffusers", "rows"))
    assert own.account.kernels
    assert rows.peak_bytes < own.peak_bytes


def test_a_decode_waits_at_its_end() -> None:
    """The host waits for the device when all is launched: once to see that the pixels are finite, and once for them."""
    vae, recipe = model_without_values("sd1", "bfloat16"), ModelSpec("sd1").resolve_recipe()
    latent = torch.zeros(1, 4, 64, 64)
    fit = fit_latent(recipe, vae.info, tuple(latent.shape), model="", height=None, width=None)
    options = RunOptions("whole")
    with counted() as account:
        found = decode(vae, recipe, latent, fit=fit, scaling=Scaling(), output=Output.UINT8, options=options)
    kinds = [kernel.kind for kernel in account.work if kernel is not None]
    assert found.tensor.shape == (1, 512, 512, 3)
    assert kinds.count("wait") == 2
    assert kinds.index("wait") > len(kinds) - 1 - kinds[::-1].index("convolution")


def test_peaks_are_those_that_the_planner_predicts() -> None:
    """The most bytes that are alive are what `benchmarks/memory.py` measured on real tensors."""
    measured = {
        row["plan"]: row["peak_bytes"]
        for row in json.loads((Path(roofline.__file__).parent / "results/memory.json").read_text())
    }
    for way in ("diffusers", "whole"):
        assert count(Case("sd1", 1024, 1024), way).peak_bytes == pytest.approx(measured[way], rel=0.01)


def test_the_peak_of_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    """The planner counts what attention by products holds, here the scores of all positions."""
    monkeypatch.setattr(steps, "QUERIES", 2**14)
    found = count(Case("flux1", 1024, 1024), "strips").peak_bytes
    monkeypatch.setattr(steps, "by_products", lambda channels, dtype, device: True)
    executors = model_without_values("flux1", "bfloat16").decoders
    executor = next(executor for executor in executors if executor.name == "strips")
    assert found == pytest.approx(executor.peak_bytes((1, 16, 128, 128), torch.bfloat16, 0), rel=0.03)


def test_the_command(tmp_path: Path) -> None:
    """It prints a table for each card, and writes rows that say that they are calculated."""
    file = tmp_path / "rows.json"
    words = ["--models", "flux1", "--sizes", "512", "--no-check", "--operators", "--json", str(file)]
    ran = subprocess.run([sys.executable, roofline.__file__, *words], capture_output=True, text=True, check=True)
    found = json.loads(file.read_text())
    assert all(f"{name}, calculated" in ran.stdout for name in CARDS)
    assert "calculated" in found["note"]
    assert [row["way"] for row in found["calculated"]] == [
        "diffusers",
        "diffusers-channels-last",
        "whole",
        "strips",
        "strips-recompute",
    ]
