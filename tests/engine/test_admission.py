"""Who comes in, and what a refusal says: by numbers, without a process."""

import pytest

from remote_vae.engine.admission import LONGEST_RETRY, Admission, Limits, Permit
from remote_vae.errors import Overloaded, RemoteVAEError, TooManyRequests

from .running import job


def enter(admission: Admission, side: int = 4, client: str | None = None, model: str = "m", **how: float) -> Permit:
    return admission.enter(model, job(side=side), client=client, seconds=how.get("seconds"))


def refused(admission: Admission, side: int = 4, client: str | None = None, **how: float) -> RemoteVAEError:
    with pytest.raises(RemoteVAEError) as caught:
        enter(admission, side, client, **how)
    return caught.value


def test_jobs() -> None:
    """A model takes so many jobs and no more; another model has its own; a job that is done makes room."""
    admission = Admission(Limits(jobs=2))
    first, _ = enter(admission), enter(admission)
    assert isinstance(refused(admission), Overloaded)
    enter(admission, model="other")
    first.worked()
    enter(admission)


def test_pixels() -> None:
    """A model takes so many pixels and no more, but one job always, however large."""
    admission = Admission(Limits(pixels=100))
    large = enter(admission, side=50)
    assert isinstance(refused(admission, side=1), Overloaded)
    large.worked()
    enter(admission, side=8)
    enter(admission, side=6)
    assert isinstance(refused(admission, side=1), Overloaded)


def test_replies() -> None:
    """A reply's bytes count until it is sent, also after its work is done; one job always comes in."""
    admission = Admission(Limits(reply_bytes=10_000))
    first = enter(admission, side=100)
    first.worked()
    assert isinstance(refused(admission, side=4), Overloaded)
    first.release()
    enter(admission, side=4)


def test_a_share() -> None:
    """One client takes its share of jobs and pixels and is told 429 beyond it, while others come in."""
    admission = Admission(Limits(jobs=10, pixels=1000, client_share=0.3))
    for _ in range(3):
        enter(admission, client="a")
    assert isinstance(refused(admission, client="a"), TooManyRequests)
    enter(admission, client="b", side=15)
    assert isinstance(refused(admission, client="b", side=10), TooManyRequests)
    enter(admission, client="c")
    for _ in range(4):
        enter(admission)


def test_when_to_come_back() -> None:
    """Retry-After is the time that the work in hand takes at the pace measured lately, within 1 and 60 seconds."""
    admission = Admission(Limits(jobs=4))
    for _ in range(4):
        enter(admission, side=10)
    assert refused(admission).retry_after == 1
    pace = admission.of("m").pace
    pace.note(100, 2.5)
    assert refused(admission).retry_after == 10
    pace.replicas = 2
    assert refused(admission).retry_after == 5
    pace.replicas = 1
    pace.note(100, 1000.0)
    assert refused(admission).retry_after == LONGEST_RETRY


def test_pace_follows() -> None:
    """The pace is that of the last batches, by their pixels."""
    pace = Admission(Limits()).of("m").pace
    for _ in range(100):
        pace.note(1000, 1.0)
    for _ in range(50):
        pace.note(1000, 4.0)
    assert pace.seconds(1000) == pytest.approx(4.0, rel=0.05)


def test_tiny_jobs_say_nothing_of_large_ones() -> None:
    """After a run of tiny jobs a large one in hand is not taken for hours of work; what is measured is believed."""
    admission = Admission(Limits())
    for _ in range(1000):
        admission.of("m").pace.note(64, 0.003)
    large = enter(admission, side=4096, seconds=300)
    for side in (8, 4096):
        enter(admission, side=side, seconds=10).worked()
    admission.of("m").pace.note(4096**2, 40.0)
    assert isinstance(refused(admission, side=8, seconds=30), Overloaded)
    enter(admission, side=8, seconds=50)
    for _ in range(1000):
        admission.of("m").pace.note(64, 0.003)
    assert isinstance(refused(admission, side=8, seconds=30), Overloaded)
    large.worked()
    enter(admission, side=8, seconds=1)


def test_one_slow_job_says_nothing() -> None:
    """One job that was slow, the first after loading or one beside a busy neighbour, is not what all are judged by."""
    for seconds in ([1000.0, 1.0], [*[1.0] * 5, 1000.0], [*[1.0] * 5, 1000.0, 1.0]):
        pace = Admission(Limits()).of("m").pace
        for measured in seconds:
            pace.note(512**2, measured)
        assert pace.seconds(512**2) < 300, seconds
        assert pace.seconds(256**2) < 300
        assert pace.seconds(512**2) >= 1


def test_sizes_that_were_not_measured() -> None:
    """A job with a constant part and a part for each pixel is expected to take four times its true time at most."""
    pace, measured = Admission(Limits()).of("m").pace, (100, 3000, 10**6)

    def true(pixels: int) -> float:
        return 1 + pixels / 1000

    for pixels in measured:
        pace.note(pixels, true(pixels))
    for pixels in (1, 10, 100, 300, 1000, 3000, 10**4, 10**5, 10**6, 10**8):
        assert 0 < pace.seconds(pixels) <= 4 * true(pixels), pixels
    for pixels in measured:
        assert pace.seconds(pixels) == pytest.approx(true(pixels))
    assert pace.seconds(10) < true(10)
    assert pace.seconds(10**8) < true(10**8)


def test_in_vain() -> None:
    """A job that would not be done in the time that its client waits is refused at once."""
    admission = Admission(Limits())
    admission.of("m").pace.note(100, 1.0)
    enter(admission, side=20, seconds=1.0)
    assert refused(admission, seconds=3.0).retry_after == 1
    enter(admission, seconds=5.0)


def test_nothing_is_left() -> None:
    """After every permit is released, twice or after an error, nothing is counted."""
    admission = Admission(Limits())
    with pytest.raises(KeyError), enter(admission, client="a"):
        raise KeyError
    with enter(admission, client="a") as kept:
        pass
    assert not admission.empty
    kept.release()
    kept.release()
    held = admission.of("m")
    assert admission.empty
    assert (held.jobs, held.pixels, admission.reply_bytes) == (0, 0, 0)
    assert not held.client_jobs
    assert not held.client_pixels
