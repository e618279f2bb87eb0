"""What `remote-vae-haproxy` makes of the settings that Ray writes."""

import contextlib
import json
import re
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import ray
import requests

from remote_vae.deploy.haproxy import STATUSES, complete, write_pages
from remote_vae.errors import ConfigurationError

RAYS = """global
    maxconn 4096
defaults
    mode http
    timeout client 60s
    errorfile 502 /tmp/500.http
    errorfile 503 /tmp/500.http
frontend prometheus
    bind :9101
frontend http_frontend
    bind 0.0.0.0:8000
listen stats
  bind *:8404
"""
# What Ray writes whether it knows an application or not, and in which it speaks of the lines that it does not write.
TEMPLATES = Path(ray.__file__).parent / "serve" / "_private" / "haproxy_templates.py"
COMMENTS = "".join(f"{line}\n" for line in TEMPLATES.read_text().splitlines() if re.match(r"\s*#.*use_backend", line))


def test_only_the_service_is_open_to_others(tmp_path: Path) -> None:
    """The two ports of figures move to loopback; the service's own address stays as it was."""
    found = complete(RAYS, write_pages(tmp_path), "10").splitlines()
    assert [line.strip() for line in found if "bind" in line] == [
        "bind 127.0.0.1:9101",
        "bind 0.0.0.0:8000",
        "bind 127.0.0.1:8404",
    ]


def test_replicas_that_are_gone_can_be_tried_again(tmp_path: Path) -> None:
    """What Ray calls a 500, a replica that died or does not answer, is a 503 with Retry-After in our own JSON."""
    found = complete(RAYS, write_pages(tmp_path), "10")
    assert "/tmp/500.http" not in found
    for status in STATUSES:
        page = tmp_path / f"remote-vae-{status}.http"
        assert f"errorfile {status} {page}\n" in found
        head, _, body = page.read_bytes().partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 503 ")
        assert b"\r\nretry-after: " in head
        assert f"\r\ncontent-length: {len(body)}\r\n".encode() in head
        assert json.loads(body)["error_type"] == "replica_failed"


@pytest.mark.parametrize("status", [404, 500])
def test_what_rays_proxy_says_can_be_tried_again(status: int, tmp_path: Path) -> None:
    """An error in plain text, of Ray's own proxy, is that 503 too; one of ours, which is JSON, stays as it is."""
    with contextlib.ExitStack() as held:
        probes = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(4)]
        behind, port, *others = [probe.getsockname()[1] for probe in probes]
    settings = f"{RAYS}backend app\n    server one 127.0.0.1:{behind}\n"
    settings = settings.replace("0.0.0.0:8000", f"127.0.0.1:{port}\n    default_backend app")
    path = tmp_path / "haproxy.cfg"
    path.write_text(settings.replace(":9101", f":{others[0]}").replace("*:8404", f"*:{others[1]}"))
    with HTTPServer(("127.0.0.1", behind), Failing) as app:
        threading.Thread(target=app.serve_forever, daemon=True).start()
        proxy = subprocess.Popen([sys.executable, "-m", "remote_vae.deploy.haproxy", "-db", "-f", str(path)])
        try:
            url = f"http://127.0.0.1:{port}/{status}"
            rays, ours = (answer(f"{url}/{media}") for media in ("text/plain", "application/json"))
        finally:
            proxy.kill()
            proxy.wait()
            app.shutdown()
    assert (rays.status_code, rays.json()["error_type"], "retry-after" in rays.headers) == (503, "replica_failed", True)
    assert (ours.status_code, ours.text) == (status, "{}")


@pytest.mark.parametrize(
    ("known", "status"),
    [
        ("", "503 default-errorfiles"),
        (COMMENTS, "503 default-errorfiles"),
        ("    use_backend a if b\n", "404 content"),
    ],
)
def test_before_the_application_is_known(known: str, status: str, tmp_path: Path) -> None:
    """While HAProxy knows of no application everything can be tried again; later an unknown path is a 404 as ever."""
    settings = f"{RAYS}{known}backend default_backend\n    http-request return status 404 content-type text/plain\n"
    assert f"http-request return status {status}" in complete(settings, write_pages(tmp_path), "10")


class Failing(BaseHTTPRequestHandler):
    """Fails with the status and the media type of the path."""

    def do_GET(self) -> None:
        status, media = self.path[1:].split("/", 1)
        self.send_response(int(status))
        self.send_header("content-type", f"{media}; charset=utf-8")
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_: object) -> None:
        """Nothing to anyone."""


def answer(url: str) -> requests.Response:
    """Once HAProxy listens."""
    deadline = time.monotonic() + 30
    while True:
        try:
            return requests.get(url, timeout=10)
        except requests.ConnectionError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def test_a_head_has_its_time(tmp_path: Path) -> None:
    """A request's head has the seconds that the server alone would give it, and who asks is handed on."""
    found = complete(RAYS, write_pages(tmp_path), "7")
    assert "defaults\n" in found
    assert "    timeout http-request 7s\n    option forwardfor\n" in found


@pytest.mark.parametrize(
    "settings",
    ["", "defaults\n", *(RAYS.replace(*words) for words in [("defaults", "other"), ("*:", "::"), ("http_f", "f")])],
)
def test_settings_of_another_ray_are_refused(settings: str, tmp_path: Path) -> None:
    """Settings that do not look like those of the pinned Ray are refused, not half completed."""
    with pytest.raises(ConfigurationError, match=r"expected 2, 1 and 1, as Ray Serve 2\.60 writes them"):
        complete(settings, write_pages(tmp_path), "10")


def test_the_real_haproxy_takes_them(tmp_path: Path) -> None:
    """HAProxy itself finds no fault in the completed settings."""
    path = tmp_path / "haproxy.cfg"
    path.write_text(RAYS + "  stats enable\n")
    command = [sys.executable, "-m", "remote_vae.deploy.haproxy", "-c", "-f", str(path)]
    checked = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert checked.returncode == 0, checked.stderr
    assert "127.0.0.1:9101" in path.read_text()
