"""Files from the hub. What goes wrong is one sentence with its cause, and a long download says how far it is."""

import os
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit
from urllib.request import getproxies

from remote_vae.errors import ModelLoadError

CONNECT_SECONDS: Final = 2.5
ANSWER_SECONDS: Final = 5.0
TELL_SECONDS: Final = 5.0  # between two lines about a download


def fetch(repository: str, revision: str | None, patterns: Sequence[str], ignored: Sequence[str] = ()) -> Path:
    """The folder of a commit with the files of these patterns; *raises* ModelLoadError.

    HF_TOKEN, HF_HOME, HF_ENDPOINT, HF_HUB_ETAG_TIMEOUT and HF_HUB_OFFLINE work as usual. Without a network, or without
    an answer, the cache alone is asked.
    """
    from huggingface_hub import constants, snapshot_download

    offline = constants.HF_HUB_OFFLINE
    reachable = not offline and _is_reachable(constants.ENDPOINT) and _answers(repository, revision)
    try:
        folder = snapshot_download(
            repository,
            revision=revision,
            allow_patterns=list(patterns),
            ignore_patterns=list(ignored),
            local_files_only=not reachable,
            tqdm_class=_bar_of_lines(repository),
        )
    except Exception as exc:  # boundary: what the hub's client raises depends on its version and on the network
        cause = _cause(exc, repository, revision, constants.ENDPOINT, offline=offline, reachable=reachable)
        raise ModelLoadError(f"{repository!r} cannot be had from the hub: {cause}", repository=repository) from exc
    return Path(folder)


def _is_reachable(endpoint: str) -> bool:
    """Whether the hub takes a connection within a few seconds. Behind a proxy, only the proxy knows."""
    address, answers = urlsplit(endpoint), list[bool]()
    if address.scheme in getproxies() or "all" in getproxies():
        return True

    def connect() -> None:
        port = address.port or (443 if address.scheme == "https" else 80)
        try:
            socket.create_connection((address.hostname or "", port), CONNECT_SECONDS).close()
        except OSError:
            return
        answers.append(True)

    # A thread, because to look up a name can take much longer than the timeout of a connection.
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(CONNECT_SECONDS)
    return bool(answers)


def _answers(repository: str, revision: str | None) -> bool:
    """Whether the hub answers a first question in time. The hub's client would wait for it without end."""
    from huggingface_hub import HfApi, constants

    seconds = constants.HF_HUB_ETAG_TIMEOUT if "HF_HUB_ETAG_TIMEOUT" in os.environ else ANSWER_SECONDS
    try:
        HfApi().repo_info(repository, revision=revision, timeout=seconds)
    except Exception as exc:  # noqa: BLE001  # boundary: the download tells whatever else goes wrong
        return "TimeoutException" not in [cls.__name__ for cls in type(exc).__mro__]
    return True


def _cause(
    error: BaseException, repository: str, revision: str | None, endpoint: str, *, offline: bool, reachable: bool
) -> str:
    page, needs = f"{endpoint}/{repository}", "HF_TOKEN must be" if "HF_TOKEN" in os.environ else "set HF_TOKEN to"
    if offline:
        return "it is not in the cache, and HF_HUB_OFFLINE forbids a download; unset that once to fetch it"
    if not reachable:
        return (
            f"there is no network, or {endpoint} is down or does not answer, and it is not in the cache; "
            "check HF_ENDPOINT and HTTPS_PROXY"
        )
    causes = {
        "GatedRepoError": f"it is gated; accept its conditions at {page}, and {needs} a token of the same account",
        "RevisionNotFoundError": f"it has no revision {revision!r}; see {page}/tree/main",
        "RepositoryNotFoundError": f"{page} does not exist, or is private; check the name and HF_TOKEN",
        "HFValidationError": "this is not the name of a repository, which is OWNER/NAME",
        "TransportError": f"the connection to {endpoint} broke; start again, and the download goes on where it stopped",
    }
    names = [cls.__name__ for each in _chain(error) for cls in type(each).__mro__]
    if any(getattr(getattr(each, "response", None), "status_code", 0) in (401, 403) for each in _chain(error)):
        names.append("RepositoryNotFoundError")  # the hub does not tell a stranger whether it is there
    found = next((cause for name, cause in causes.items() if name in names), None)
    return found or f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _bar_of_lines(repository: str) -> type[Any]:
    """A class of tqdm's kind that says every few seconds how much has come. Nothing is said of a short download."""
    from tqdm import tqdm

    began = told = time.monotonic()

    class Lines(tqdm):  # type: ignore[misc]
        monitor_interval = 0  # no thread of its own

        def __init__(self, *args: Any, **settings: Any) -> None:
            with open(os.devnull, "w") as nowhere:
                super().__init__(*args, **{**settings, "file": nowhere, "leave": False})

        def display(self, msg: str | None = None, pos: int | None = None) -> bool:
            nonlocal told
            now = time.monotonic()
            if self.unit == "B" and self.n and now - told >= TELL_SECONDS:
                told = now
                of = f" of {self.total / 1e6:.0f}" if self.total else ""
                rate = self.n / 1e6 / (now - began)
                text = f"remote-vae: {repository} is coming: {self.n / 1e6:.0f}{of} MB, {rate:.1f} MB/s"
                print(text, file=sys.stderr, flush=True)
            return True

    return Lines
