"""benchmarks/gpu_run.py: its rehearsal on a CPU, and what it says of what could not be measured."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import gpu_run
import pytest
import torch
from decode_cases import OURS
from gpu_plan import EAGER, FULL, REHEARSAL, RIVALS, Item, Job


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    folder = tmp_path_factory.mktemp("gpu")
    command = [sys.executable, gpu_run.__file__, "--rehearse", "--folder", str(folder)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=280)
    assert ran.returncode == 0, ran.stderr
    return json.loads((folder / "gpu-rehearsal.json").read_text()), folder


def test_everything_is_measured(report: tuple[dict[str, Any], Path]) -> None:
    """Each way of each item has a row with its time and memory, and ours shows eager's pixels."""
    found = {(row["model"], row["direction"], row["way"]): row for row in report[0]["rows"]}
    expected = [(job.model, item.direction, way) for job in REHEARSAL.jobs for item in job.items for way in item.ways]
    assert sorted(found) == sorted(expected)
    for (_, direction, way), row in found.items():
        assert row["error"] is None
        assert min(row["seconds"], row["first seconds"], row["peak bytes"]) > 0
        if way == OURS:
            assert row["plan"]
            assert row["largest difference"] <= (1 if direction == "decode" else 1e-3)
    assert (report[1] / "gpu-rehearsal.png").read_bytes().startswith(b"\x89PNG")


def test_the_server_is_loaded(report: tuple[dict[str, Any], Path]) -> None:
    """Each number of clients has a row, and every answer is right."""
    rows = report[0]["service"]
    assert [row["clients"] for row in rows] == list(REHEARSAL.services[0].clients)
    assert all(row["answers a second"] > 0 and row["wrong"] == row["lost"] == row["refused"] == 0 for row in rows)


def test_what_was_not_measured_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """If a process ends early, each way that it did not come to has a row with the reason."""
    job = Job("demo", (Item("decode", 64, 64),), 5)
    start = subprocess.Popen

    def in_its_place(command: list[str], **options: Any) -> Any:
        row = {"variant": EAGER, "model": "demo", "direction": "decode", "size": 64, "dtype": "float32", "seconds": 1.0}
        program = f"import sys; open({command[-1]!r}, 'w').write({json.dumps(row)!r} + chr(10)); sys.exit('no room')"
        return start([sys.executable, "-c", program], **options)

    monkeypatch.setattr(gpu_run.subprocess, "Popen", in_its_place)
    rows = list(gpu_run.measured(job, torch.device("cpu"), 5))
    assert [(row.variant, row.error) for row in rows if row.error] == [
        (way, "no room") for way in (OURS, *RIVALS) if way != EAGER
    ]
    assert [row.seconds for row in rows if row.variant == EAGER] == [1.0]


def test_rows_come_while_a_job_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A row is there before its process has ended, so that a run that is killed leaves what it had; and it is ended."""
    start, started = subprocess.Popen, []

    def in_its_place(command: list[str], **options: Any) -> Any:
        row = {"variant": EAGER, "model": "demo", "direction": "decode", "size": 64, "dtype": "float32", "seconds": 1.0}
        program = f"import time; open({command[-1]!r}, 'w').write({json.dumps(row)!r} + chr(10)); time.sleep(600)"
        started.append(start([sys.executable, "-c", program], **options))
        return started[-1]

    monkeypatch.setattr(gpu_run.subprocess, "Popen", in_its_place)
    rows = gpu_run.measured(Job("demo", (Item("decode", 64, 64),), 600), torch.device("cpu"), 600)
    assert next(rows).seconds == 1.0
    assert started[0].poll() is None
    rows.close()
    assert started[0].poll() is not None


def test_it_is_over_in_nine_minutes() -> None:
    """The longest that all parts may take is less than nine minutes."""
    loads = sum(service.seconds * 1.2 * len(service.clients) + 15 for service in FULL.services)
    assert FULL.tests + loads + sum(job.seconds for job in FULL.jobs) < 540
    assert gpu_run.LONGEST + 20 <= 540
