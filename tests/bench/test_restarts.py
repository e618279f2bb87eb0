"""The restart drill: a server is killed under everything that calls it."""

import pytest
import restarts

from remote_vae.client.retry import Tries


def test_two_restarts() -> None:
    """If the server is killed, queues, RemoteVAE and the ComfyUI nodes lose nothing and get nothing wrong or twice."""
    found = _drill(2)
    assert [fault for caller in found.values() for fault in caller.faults] == []
    assert all(caller.right for caller in found.values())


def test_what_is_lost_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """If calls are not sent again, the drill says for each caller what it lost."""
    monkeypatch.setattr(Tries, "pause_after", lambda *_: None)
    assert all(caller.faults for caller in _drill(1).values())


def test_what_comes_twice_is_found() -> None:
    """A result that comes twice, or in place of another one, is a fault."""
    expected = [restarts.torch.full((1,), float(index)) for index in range(restarts.INPUTS)]
    caller = restarts.Caller()
    for index, (number, value) in enumerate([(0, 0), (0, 0), (2, 3)]):
        restarts._take(restarts.Item(number, expected[value]), index, caller, expected)
    assert caller.right == 1
    assert caller.faults == ["number 0 came as number 1", "number 2 has another result"]


def _drill(times: int) -> dict[str, restarts.Caller]:
    server = restarts.Server()
    try:
        return restarts.drill(server, times)[0]
    finally:
        server.process.terminate()
        server.process.wait()
