"""The decisions about another try, without a network."""

import json
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from remote_vae.client import retry
from remote_vae.client.exchange import Failure, HttpReply
from remote_vae.client.retry import Tries, retry_after
from remote_vae.errors import ConnectionFailed


@pytest.fixture(autouse=True)
def real_pauses(short_pauses, monkeypatch):
    monkeypatch.setattr(retry, "FIRST_PAUSE", 0.5)


def overloaded(**headers):
    return HttpReply(503, {name.replace("_", "-"): value for name, value in headers.items()}, bytearray())


def test_pauses_double_up_to_a_limit():
    """The pause before try n is half to all of 0.5 s doubled n - 2 times, at most 8 s."""
    tries = Tries(most=9, budget=300)
    longest = [0.5, 1, 2, 4, 8, 8, 8, 8]
    for bound in longest:
        assert bound / 2 <= tries.pause_after(Failure(ConnectionFailed("x"), passing=True)) <= bound
    assert tries.pause_after(Failure(ConnectionFailed("x"), passing=True)) is None


@pytest.mark.parametrize(("headers", "pause"), [({"retry_after": "7"}, 7), ({"retry_after": "60"}, 60)])
def test_what_the_server_asks_replaces_the_own_pause(headers, pause):
    """Retry-After up to a minute is obeyed to the second."""
    assert Tries(most=3, budget=300).pause_after(overloaded(**headers)) == pause


def test_a_longer_wait_than_a_minute_is_not_begun():
    """Whoever is asked to come back in an hour tells his caller now."""
    assert Tries(most=3, budget=86400).pause_after(overloaded(retry_after="3600")) is None


def test_a_wait_beyond_the_budget_is_not_begun():
    """A pause as long as the time left ends the call."""
    assert Tries(most=3, budget=5).pause_after(overloaded(retry_after="6")) is None


@pytest.mark.parametrize("status", [200, 400, 404, 408, 413, 422, 500])
def test_other_statuses_are_final(status):
    """Only 429, 503 and what a proxy says are tried again."""
    assert Tries(most=3, budget=300).pause_after(HttpReply(status, {"retry-after": "1"}, bytearray())) is None


@pytest.mark.parametrize("status", [502, 504])
def test_the_servers_own_gateway_statuses_are_final(status):
    """A 504 that a Remote VAE server wrote says that the time is over, and another try has no more of it."""
    body = bytearray(b'{"error": "too late", "error_type": "deadline_exceeded"}')
    assert Tries(most=3, budget=300).pause_after(HttpReply(status, {}, body)) is None


@pytest.mark.parametrize("body", [b"", b"<html>", b"null", b'{"message": "Endpoint request timed out"}', b"[" * 5000])
def test_what_a_proxy_says_is_tried_again(body, monkeypatch):
    """A proxy's 502 means that nothing listens behind it, which passes, and so does a 504 that comes soon.

    A late 504 may have cost a decode: three tries.
    """
    bad, late = (HttpReply(status, {"content-type": "text/html"}, bytearray(body)) for status in (502, 504))
    tries = Tries(most=10_000, budget=300)
    assert all(tries.pause_after(bad) for _ in range(20))
    tries = Tries(most=10_000, budget=300)
    assert all(tries.pause_after(late) for _ in range(20))
    monkeypatch.setattr(retry, "LATE_SECONDS", -60)  # every one is late, though no time passes here
    tries = Tries(most=10_000, budget=300)
    assert [tries.pause_after(late) is not None for _ in range(3)] == [True, True, False]


def test_a_server_that_always_says_in_a_second_is_asked_less_and_less_often():
    """Within its 300 s an item that the server refuses for now is sent a few dozen times, not hundreds of times."""
    tries, waited, count = Tries(most=10_000, budget=300), 0.0, 0
    while waited < 300:
        waited += tries.pause_after(overloaded(retry_after="1"))
        count += 1
    assert count < 90


@pytest.mark.parametrize("text", ["", "soon", "-1", "1.5", "٣", "1e3", "9" * 30, "Thu, 99 Foo 2032 00:00:00 GMT"])
def test_unreadable_retry_after(text):
    """A Retry-After that is neither digits nor a date counts as none."""
    assert retry_after({"retry-after": text}) is None


def test_date_is_measured_by_the_servers_clock():
    """A date is taken against the reply's own Date, so that a wrong clock here does no harm."""
    at = datetime(2001, 1, 1, 12, 0, 30, tzinfo=UTC)
    headers = {"retry-after": format_datetime(at, usegmt=True)}
    assert retry_after(headers) == 0
    assert retry_after({**headers, "date": format_datetime(at - timedelta(seconds=30), usegmt=True)}) == 30


def test_date_without_a_servers_clock():
    """Without a Date header the own clock is taken."""
    at = datetime.now(UTC) + timedelta(seconds=20)
    assert retry_after({"retry-after": format_datetime(at, usegmt=True)}) == pytest.approx(19.5, abs=1.5)


def test_what_only_a_restart_says():
    """The time counts too for a server that is loading, and for one that has answered before and is gone now."""
    refused = Failure(ConnectionFailed("x"), passing=True)
    loading = HttpReply(503, {}, bytearray(json.dumps({"error_type": "not_ready"}).encode()))
    tries = Tries(most=None, budget=300)
    assert all(tries.pause_after(each) for each in (refused, refused, loading, loading, refused))
    tries = Tries(most=None, budget=300, known=True)
    assert all(tries.pause_after(refused) for _ in range(5))


def test_without_a_number_only_a_restart_is_waited_for():
    """Without `retries` a refused connection and a 503 cost three tries; after a sign of a restart the time counts."""
    refused, hung_up = (Failure(ConnectionFailed("x"), passing=True, hung_up=each) for each in (False, True))
    for outcome in (refused, overloaded()):
        tries = Tries(most=None, budget=300)
        assert [tries.pause_after(outcome) is not None for _ in range(3)] == [True, True, False]
    for sign in (hung_up, HttpReply(502, {}, bytearray(b"<html>"))):
        tries = Tries(most=None, budget=300)
        assert all(tries.pause_after(each) for each in (sign, refused, overloaded(), sign, refused, overloaded()))
    tries = Tries(most=None, budget=300)
    assert [tries.pause_after(hung_up) is not None for _ in range(10)] == [True] * 9 + [False]
