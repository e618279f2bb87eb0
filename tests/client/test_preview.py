"""Previews of a generation: the newest step, now and then, at next to no cost, and never in its way."""

import threading
import time
from typing import Any

import numpy as np
import pytest
import torch

from remote_vae import preview_callback


def latents(step: int) -> dict[str, Any]:
    return {"latents": torch.full((1, 3, 4, 4), float(step))}


def wait_for(condition: Any) -> bool:
    deadline = time.monotonic() + 10
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.005)
    return bool(condition())


def test_the_newest_step_is_shown_and_older_ones_are_dropped(serve: Any, answers: Any) -> None:
    """While one preview is on its way, of the steps that follow only the last is kept."""
    reached, opened, shown = threading.Event(), threading.Event(), list[int]()

    def hold(connection: Any) -> None:
        reached.set()
        opened.wait(10)
        connection.sendall(answers.picture(form="jpeg"))

    server = serve(hold)
    with preview_callback(server.url, lambda step, image: shown.append(step), model="taesd", share=1.0) as previews:
        for step in range(5):
            kept = previews(None, step, None, latents(step))
            assert kept["latents"].shape == (1, 3, 4, 4)
            assert reached.wait(10)
        opened.set()
        assert wait_for(lambda: shown == [0, 4])
        assert (previews.shown, previews.dropped) == (2, 3)
    assert [np.frombuffer(seen.body, np.float32)[0] for seen in server.seen] == [0.0, 4.0]
    assert all("do_scaling=True" in seen.target and seen.target.startswith("/taesd/decode") for seen in server.seen)


@pytest.mark.alone
def test_the_callback_waits_for_nobody(serve: Any) -> None:
    """A server that does not answer costs a step nothing; closing waits for it no longer than a preview may take."""
    server = serve(lambda connection: time.sleep(0.5))
    previews = preview_callback(server.url, lambda step, image: None)
    started = time.monotonic()
    for step in range(100):
        previews(None, step, None, latents(step))
    assert time.monotonic() - started < 0.2
    previews.close()
    assert previews.shown == 0
    assert previews.dropped >= 98


def test_it_rests_after_each_preview(serve: Any, answers: Any) -> None:
    """Previews take no more than their share of one core: what one has cost is paid for by rest before the next."""

    def work(step: int, image: Any) -> None:
        until = time.thread_time() + 0.05
        while time.thread_time() < until:
            pass
        times.append(time.monotonic())

    times: list[float] = []
    server = serve(answers.picture(form="jpeg"))
    with preview_callback(server.url, work, share=0.1) as previews:
        while len(times) < 2:
            previews(None, len(times), None, latents(0))
            time.sleep(0.01)
    assert times[1] - times[0] > 0.45


def test_a_failure_does_not_end_a_generation(serve: Any, answers: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A server's error, or one of `show`, is kept and logged once; the next preview is tried all the same."""
    shown: list[int] = []
    server = serve(answers.error(500, "internal_error"), answers.picture(form="jpeg"))

    def show(step: int, image: Any) -> None:
        shown.append(step)
        raise ZeroDivisionError("mine")

    with preview_callback(server.url, show, share=1.0) as previews:
        previews(None, 0, None, latents(0))
        assert wait_for(lambda: previews.error is not None)
        previews(None, 1, None, latents(1))
        assert wait_for(lambda: isinstance(previews.error, ZeroDivisionError))
    assert shown == [1]
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "no preview of step 0: what was wrong" in caplog.text


def test_nothing_is_shown_or_left_after_the_end(serve: Any, answers: Any) -> None:
    """Closing drops what has not begun and ends the thread, however often it is called."""
    server = serve(answers.picture(form="jpeg"))
    previews = preview_callback(server.url, lambda step, image: None)
    previews.close()
    previews.close()
    previews(None, 0, None, latents(0))
    assert not any(thread.name == "remote-vae-previews" for thread in threading.enumerate())
    assert server.seen == []
