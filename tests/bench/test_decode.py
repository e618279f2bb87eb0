"""benchmarks/decode.py: what it measures, what its numbers mean, and that nothing which fails is left out."""

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import decode as command_module
import pytest
import torch
from command import run
from decode import decode
from decode_cases import DIRECTIONS, VARIANTS, Case, Row
from decode_measure import measure
from decode_report import write_plot
from diffusers import AutoencoderKL

from remote_vae.errors import RemoteVAEError
from remote_vae.models.spec import parse_spec

FIELDS = (
    *("variant", "model", "direction", "size", "dtype", "plan", "device", "seconds"),
    *("peak_bytes", "psnr_db", "max_abs"),
)
FAILING = "diffusers-cpu-offload"  # on a CPU


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a tiny seeded VAE, as --models takes it."""
    torch.manual_seed(0)
    module = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 16, 16, 16),
        layers_per_block=1,
        norm_num_groups=8,
        sample_size=32,
    )
    folder = tmp_path_factory.mktemp("tiny")
    module.save_pretrained(folder)
    return f"mine={folder},recipe=sd1"


@pytest.fixture(scope="module")
def done(model: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict[str, Any]], Path]:
    """The rows of one run, and the folder of the files that it wrote."""
    folder = tmp_path_factory.mktemp("bench")
    words = ["--models", model, "--sizes", "64", "--direction", "decode", "--repeats", "1"]
    words += ["--device", "cpu", "--dtype", "float32", "--rivals", FAILING, "--threads", "2"]
    for kind in ("json", "csv"):
        words += [f"--{kind}", str(folder / f"rows.{kind}")]
    said = subprocess.run([sys.executable, command_module.__file__, *words], capture_output=True, text=True, check=True)
    (folder / "said.txt").write_text(said.stdout)
    return json.loads((folder / "rows.json").read_text()), folder


def test_every_variant_has_its_row(done: tuple[list[dict[str, Any]], Path]) -> None:
    """There is a row per plan of ours, one for the planner's own choice, the reference's, and one per rival."""
    ours = [(row["plan"], row["chosen"]) for row in done[0] if row["variant"] == "ours"]
    assert ours == [("whole", False), ("strips", False), ("strips-recompute", False), ("whole", True)]
    assert [row["variant"] for row in done[0] if row["variant"] != "ours"] == ["diffusers", FAILING]


def test_fields(done: tuple[list[dict[str, Any]], Path]) -> None:
    """Every row has the promised fields; one that was measured has a time, bytes and a difference, others a reason."""
    for row in done[0]:
        assert set(FIELDS) <= set(row)
        assert (row["model"], row["size"], row["device"], row["threads"]) == ("mine", 64, "cpu", 2)
        if row["error"] is None:
            assert row["seconds"] > 0
            assert row["first_seconds"] > 0
            assert row["peak_bytes"] > 0
            assert row["max_abs"] >= 0
        else:
            assert row["seconds"] is row["peak_bytes"] is row["max_abs"] is None


def test_what_cannot_run_says_why(done: tuple[list[dict[str, Any]], Path]) -> None:
    """A rival that makes no sense on the device is a row with its reason, in the table too."""
    rows = [row for row in done[0] if row["variant"] == FAILING]
    assert [row["error"] for row in rows] == ["runs on cuda only"]
    assert (done[1] / "said.txt").read_text().count("runs on cuda only") == 1


def measured(model: str, variant: str, direction: str, folder: Path, plan: str | None = None) -> dict[str, Any]:
    """One case, in this process."""
    spec = parse_spec(model, device="cpu", dtype=VARIANTS[variant].dtype or "float32").to_json()
    return measure(Case(variant, direction, 64, plan, 1, str(folder / f"{direction}.npy"), spec))


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_quality(direction: str, model: str, tmp_path: Path) -> None:
    """The reference differs from itself by nothing, which has no PSNR; exact plans by rounding; tiles by much more."""
    reference = measured(model, "diffusers", direction, tmp_path)
    assert (reference["max_abs"], reference["psnr_db"]) == (0, None)
    for plan in ("strips", "strips-recompute"):
        exact = measured(model, "ours", direction, tmp_path, plan)
        assert (exact["plan"], exact["max_abs"] < 1e-5) == (plan, True)
    rounded = [
        measured(model, name, direction, tmp_path)["psnr_db"]
        for name in ("diffusers-bf16", "diffusers-bf16-channels-last", "diffusers-sliced", "openvino-bf16")
    ]
    tiled = measured(model, "diffusers-tiled", direction, tmp_path)["psnr_db"]
    assert exact["psnr_db"] > max(rounded) + 20
    assert min(rounded) > tiled + 10


def test_a_compilers_memory_is_not_guessed(model: str, tmp_path: Path) -> None:
    """Where torch does not see a rival's tensors, peak_bytes is empty and the process's growth is told."""
    found = measured(model, "openvino-bf16", "decode", tmp_path)
    assert found["peak_bytes"] is None
    assert found["rss_bytes"] > 0


def test_csv_is_the_json(done: tuple[list[dict[str, Any]], Path]) -> None:
    """CSV and JSON hold the same rows and fields."""
    rows, folder = done
    with (folder / "rows.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    assert found == [{key: "" if value is None else str(value) for key, value in row.items()} for row in rows]


def run_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *words: str) -> list[dict[str, Any]]:
    file = tmp_path / "rows.json"
    given = ["--rivals", "none", "--direction", "decode", "--repeats", "1", "--json", str(file), *words]
    monkeypatch.setattr(sys, "argv", ["decode.py", *given])
    with pytest.raises(SystemExit) as caught:
        run(decode)
    assert not caught.value.code
    rows: list[dict[str, Any]] = json.loads(file.read_text())
    return rows


def test_a_case_that_dies_or_takes_too_long(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A measuring process that is killed, fails or does not end leaves a row that says so, and the rest goes on."""
    program = (
        "import json, os, signal, sys, time; plan = json.loads(sys.argv[1])['plan']\n"
        "if plan == 'whole': os.kill(os.getpid(), signal.SIGKILL)\n"
        "if plan == 'strips': sys.exit('no room')\n"
        "if plan == 'strips-recompute': time.sleep(60)\n"
        "open(sys.argv[2], 'w').write(json.dumps({'seconds': 1.5}))\n"
    )
    run = subprocess.run

    def in_its_place(command: list[str], **options: Any) -> Any:
        return run([sys.executable, "-c", program, *command[2:]], **options)

    monkeypatch.setattr(command_module.subprocess, "run", in_its_place)
    rows = run_here(monkeypatch, tmp_path, "--models", model, "--sizes", "64", "--timeout", "3")
    reasons = [row["error"] for row in rows]
    assert reasons[1:4] == [
        "killed, as systems do when memory runs out",
        "ended with code 1: no room",
        "took more than 3 s",
    ]
    assert [row["seconds"] for row in rows] == [1.5, None, None, None, 1.5]


@pytest.mark.parametrize(
    ("size", "variant", "reason"),
    [(60, "diffusers", "size 60 is not a multiple of 8"), (64, "openvino-bf16", "openvino is not installed")],
)
def test_reasons(model: str, size: int, variant: str, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A size that the model does not have, or a rival that is not installed, is told in a sentence."""
    monkeypatch.setitem(sys.modules, "openvino", None)
    spec = parse_spec(model, device="cpu", dtype="float32").to_json()
    with pytest.raises(RemoteVAEError, match=reason):
        measure(Case(variant, "decode", size, None, 1, "", spec))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--sizes", "512,big"), "--sizes 'big' is not a number of pixels"),
        (("--plans", "fast"), "--plans 'fast' is not one of whole, strips, strips-recompute, chosen"),
        (("--rivals", "fastest"), "--rivals 'fastest' is not one of diffusers, diffusers-channels-last"),
        (("--models", "nonsense"), "model 'nonsense' is not in the registry"),
        (("--json", "rows.txt"), "rows.txt has suffix '.txt'; expected one of .json"),
    ],
)
def test_wrong_words(words: tuple[str, ...], sentence: str, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """What cannot be measured is one sentence, before anything is loaded."""
    monkeypatch.setattr(sys, "argv", ["decode.py", *words])
    with pytest.raises(SystemExit) as caught:
        run(decode)
    assert caught.value.code == 1
    assert sentence in " ".join(capsys.readouterr().err.split())


def test_plot(done: tuple[list[dict[str, Any]], Path], tmp_path: Path) -> None:
    """The plot is a picture, also of rows that all failed."""
    rows = [Row(**row) for row in done[0]]
    for name, given in (("some.png", rows), ("none.png", [row for row in rows if row.error])):
        write_plot(given, tmp_path / name)
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
