"""The command line as it is called, in this process."""

import logging
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from remote_vae.cli.main import main
from remote_vae.server.logs import JsonHandler


@dataclass(frozen=True)
class Said:
    """Exit code, and what went to stdout and stderr; `text` is both with all white space made single spaces."""

    code: int
    out: str
    err: str

    @property
    def text(self) -> str:
        return " ".join((self.out + " " + self.err).split())


Command = Callable[..., Said]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Command]:
    for name in ("REMOTE_VAE_ENDPOINT", "REMOTE_VAE_API_KEY"):
        monkeypatch.delenv(name, raising=False)

    def run(*words: object) -> Said:
        monkeypatch.setattr(sys, "argv", ["remote-vae", *map(str, words)])
        with pytest.raises(SystemExit) as caught:
            main()
        captured = capsys.readouterr()
        code = caught.value.code
        return Said(code if isinstance(code, int) else 0 if code is None else 1, captured.out, captured.err)

    yield run
    for handler in logging.root.handlers[:]:  # a server's log would go on writing to this test's captured stderr
        if isinstance(handler, JsonHandler):
            logging.root.removeHandler(handler)
