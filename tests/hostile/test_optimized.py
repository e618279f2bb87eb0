"""The same refusals from a server that runs under `python -O`, where an assert checks nothing."""

import pytest
import requests

from .conftest import Raw
from .test_bad_input import ALL, GOOD, LATENT, RAW
from .test_connections import REFUSED, TAKEN

pytestmark = pytest.mark.timeout(1500)  # Python has no compiled files for -O, so the server compiles all it imports


def test_the_same_refusals(optimized: str) -> None:
    """Every bad request gets the status and code that it gets elsewhere, and every good one works."""
    wrong = {}
    for name, bad in ALL.items():
        reply = requests.post(optimized + bad.path, bad.body, headers=bad.headers, timeout=30)
        if (reply.status_code, reply.json().get("error_type")) != (bad.status, bad.code):
            wrong[name] = reply.text
    for name, query in GOOD.items():
        if requests.post(f"{optimized}/sd?{query}", LATENT, headers=RAW, timeout=30).status_code != 200:
            wrong[name] = "refused"
    assert wrong == {}


def test_the_same_connections(optimized: str, expected: bytes) -> None:
    """Every connection that is refused elsewhere is refused, and every lawful one gives its pixels."""
    raw = Raw(optimized)
    found = {name: raw.exchange(data).statuses for name, (data, _) in REFUSED.items()}
    assert found == {name: [status] for name, (_, status) in REFUSED.items()}
    assert [name for name, data in TAKEN.items() if raw.exchange(data).body != expected] == []
