"""What a server says about itself: metrics, request ids, times, logs and traces."""

import asyncio
import http.client
import io
import json
import os
import re
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from starlette.responses import Response

from remote_vae.server.metrics_listener import MetricsListener

RAW = {"content-type": "tensor/binary"}
COPY = "shape=1,3,8,8&dtype=float32&output_type=pt"
LATENT, DIES = bytes(768), b"\0\0\xe0\x40" + bytes(764)  # 7.0 kills the replica
ROOT = Path(__file__).parents[2]
CANARY = "canary-3f9a"


@pytest.fixture(scope="module")
def chatty(start: Any) -> Iterator[Any]:
    """A server that logs its requests."""
    with start("copy", log_requests=True) as server:
        yield server


def figures(url: str) -> dict[tuple[str, tuple[str, ...]], float]:
    """Samples by name and label values."""
    text = requests.get(f"{url}/metrics", timeout=10).text
    families = text_string_to_metric_families(text)
    return {(s.name, tuple(s.labels.values())): s.value for family in families for s in family.samples}


def lines(server: Any) -> list[dict[str, Any]]:
    return [json.loads(line) for line in server.log.read_text().splitlines() if line.startswith("{")]


def test_requests_are_counted(chatty: Any) -> None:
    """Each request counts once, by the model served, its route and its status, with its time and bytes."""
    before = figures(chatty.url)
    chatty.decode()
    chatty.decode(path="/copy/")
    requests.post(f"{chatty.url}/copy/encode", b"no picture", timeout=10)
    requests.get(f"{chatty.url}/{CANARY}", timeout=10)
    requests.get(f"{chatty.url}/models", timeout=10)
    after = figures(chatty.url)

    def more(name: str, *labels: str) -> float:
        return after.get((name, labels), 0) - before.get((name, labels), 0)

    assert more("remote_vae_requests_total", "copy", "decode", "200") == 2
    assert more("remote_vae_requests_total", "copy", "encode", "415") == 1
    assert more("remote_vae_requests_total", "", "other", "404") == 1
    assert more("remote_vae_requests_total", "", "models", "200") == 1
    assert more("remote_vae_request_seconds_count", "decode") == 2
    assert more("remote_vae_plans_total", "copy", "decode", "whole") == 2
    assert more("remote_vae_pixels_total", "copy", "decode") == 128
    for stage in ("queue", "decode", "media"):
        assert more("remote_vae_stage_seconds_count", "copy", stage) == 2
    assert more("remote_vae_received_bytes_total") == 2 * 768 + len(b"no picture")
    assert more("remote_vae_sent_bytes_total") > 2 * 768
    assert after["remote_vae_model_ready", ("copy",)] == 1
    assert after["remote_vae_memory_bytes", ("copy",)] > 2**20
    assert after["remote_vae_requests_in_flight", ()] == 1  # the one that asks
    assert not any(CANARY in label for _, labels in after for label in labels)


def test_refused_connections_and_restarts_are_counted(start: Any) -> None:
    """What never became a request is counted by status, and so is a replica that died."""
    with start("copy") as server:
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(b"nonsense\r\n\r\n")
            assert b" 400 " in connection.recv(65536)
        requests.post(f"{server.url}/?{COPY}", DIES, headers=RAW, timeout=30)
        server.wait_until_live()
        found = figures(server.url)
        assert found["remote_vae_refused_connections_total", ("400",)] == 1
        assert sum(value for (name, _), value in found.items() if name == "remote_vae_replica_restarts_total") >= 1
        assert any(line["event"] == "replica replaced" and line["model"] == "copy" for line in lines(server))


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", f"/?{COPY}", 200),
        ("GET", "/live", 200),
        ("GET", "/docs", 200),
        ("GET", "/nobody", 404),
        ("DELETE", "/models", 405),
        ("POST", "/?zzz=1", 400),
        ("POST", "/nobody/decode", 404),
    ],
)
def test_id_and_time_on_every_reply(chatty: Any, method: str, path: str, status: int) -> None:
    """Every answer has a request id, the caller's own if harmless, and the time that it took in all."""
    for mine in ("my-id.1", "x" * 65, "a b", "<b>"):
        headers = {**RAW, "x-request-id": mine}
        reply = requests.request(method, chatty.url + path, data=LATENT, headers=headers, timeout=30)
        assert reply.status_code == status
        assert (reply.headers["x-request-id"] == mine) == (mine == "my-id.1")
        timing = dict(item.split(";dur=") for item in reply.headers["server-timing"].split(", "))
        assert float(timing["total"]) >= sum(float(ms) for name, ms in timing.items() if name != "total") - 0.1


def test_id_and_time_of_what_is_no_request(chatty: Any) -> None:
    """What the HTTP parser refuses has them too."""
    with socket.create_connection(("127.0.0.1", chatty.port)) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nnonsense\r\n\r\n")
        reply = http.client.HTTPResponse(connection)
        reply.begin()
        assert reply.status == 400
        assert re.fullmatch(r"[0-9a-f]{32}", reply.headers["x-request-id"])
        assert re.fullmatch(r"total;dur=[0-9.]+", reply.headers["server-timing"])


ALLOWED = {
    *("time", "level", "event", "request_id", "method", "route", "model", "status", "error", "plan", "ms"),
    *("bytes_in", "bytes_out", "cause", "exception", "frames"),
}


def test_logs_are_lines_of_known_fields(chatty: Any) -> None:
    """A line for each request, as JSON, with its id, and with nothing in it that came from the client."""
    reply = chatty.decode()
    for path in (f"/{CANARY}", f"/?{CANARY}=1", f"/copy?plan={CANARY}", f"/copy?{COPY}&seed={CANARY}"):
        headers = {**RAW, "user-agent": CANARY, "referer": f"http://{CANARY}", "x-forwarded-for": CANARY}
        assert requests.post(chatty.url + path, CANARY, headers=headers, timeout=10).status_code in (400, 404, 422)
    found = lines(chatty)
    mine = next(line for line in found if line.get("request_id") == reply.headers["x-request-id"])
    assert {name: mine[name] for name in ("route", "model", "status", "plan", "bytes_in")} == {
        "route": "decode",
        "model": "copy",
        "status": 200,
        "plan": "whole",
        "bytes_in": 768,
    }
    assert all(set(line) <= ALLOWED for line in found)
    text = chatty.log.read_text()
    assert CANARY not in text
    assert "127.0.0.1" not in text


def test_no_request_is_logged_unless_asked(start: Any) -> None:
    """Without --log-requests the log of a day without faults is empty."""
    with start("copy") as server:
        server.decode()
        requests.get(f"{server.url}/{CANARY}", timeout=10)
        assert server.log.read_text() == ""


def test_metrics_at_their_own_address(start: Any, free_address: tuple[str, int]) -> None:
    """There they need no key and are alone; at the server's address they are not, whatever the Host header says."""
    url, port = free_address
    with start("copy", keys="a-key-of-some-length", metrics_address=f"127.0.0.1:{port}") as server:
        assert "remote_vae_model_ready" in requests.get(f"{url}/metrics", timeout=10).text
        assert requests.get(f"{url}/models", timeout=10).status_code == 404
        assert requests.post(f"{url}/metrics", timeout=10).status_code == 405
        assert requests.post(f"{url}/?{COPY}", LATENT, headers=RAW, timeout=10).status_code == 404
        mine = {"authorization": "Bearer a-key-of-some-length", "host": f"127.0.0.1:{port}"}
        assert requests.get(f"{server.url}/metrics", headers=mine, timeout=10).status_code == 404
        assert requests.get(f"{server.url}/models", headers=mine, timeout=10).status_code == 200
        assert "/metrics" not in requests.get(f"{server.url}/", headers=mine, timeout=10).json()["see"]


@pytest.mark.skipif(sys.platform != "linux", reason="needs a second loopback address")
def test_metrics_at_the_same_port(start: Any, free_address: tuple[str, int]) -> None:
    """The metrics may have the server's port at another address: each address answers what belongs to it."""
    url, port = free_address
    with start("copy", port=port, metrics_address=f"127.0.0.2:{port}") as server:
        assert server.decode().status_code == 200
        assert requests.get(f"{url}/metrics", timeout=10).status_code == 404
        there = f"http://127.0.0.2:{port}"
        assert "remote_vae_model_ready" in requests.get(f"{there}/metrics", timeout=10).text
        assert requests.get(f"{there}/models", timeout=10).status_code == 404


@pytest.mark.parametrize(
    ("listens", "came_to", "metrics_only"),
    [
        ("127.0.0.1", "127.0.0.1", True),
        ("127.0.0.1", "10.0.0.5", False),
        ("localhost", "127.0.0.1", True),
        ("0.0.0.0", "10.0.0.5", True),
        ("::", "::ffff:10.0.0.5", True),
        ("0:0::1", "::1", True),
        ("::1", "fe80::1", False),
        ("127.0.0.1", "a name", False),
    ],
)
def test_which_address_a_connection_came_to(listens: str, came_to: str, metrics_only: bool) -> None:
    """An address is compared as an address, in whatever spelling; that of every interface is each of them."""
    answered = []

    async def rest(scope: Any, receive: Any, send: Any) -> None:
        answered.append(scope)

    async def page(request: Any) -> Response:
        return Response("")

    async def nothing(*_: Any) -> None:
        pass

    app = MetricsListener(rest, address=(listens, 8000), path="/metrics", page=page)
    for port in (8000, 8001):
        scope = {"type": "http", "method": "GET", "path": "/metrics", "headers": [], "server": (came_to, port)}
        asyncio.run(app(scope, nothing, nothing))
    assert [scope["server"][1] for scope in answered] == ([8001] if metrics_only else [8000, 8001])


def test_a_picture_of_several_says_so(chatty: Any) -> None:
    """A picture shows the first latent of a batch, and its x-note says of how many; a tensor has them all."""
    query = "shape=2,3,8,8&dtype=float32"
    picture = requests.post(f"{chatty.url}/?{query}", LATENT * 2, headers=RAW, timeout=30)
    tensor = requests.post(f"{chatty.url}/?{query}&output_type=pt", LATENT * 2, headers=RAW, timeout=30)
    assert (picture.headers["content-type"], picture.headers["x-note"][:19]) == ("image/jpeg", "the first of 2 pict")
    assert (tensor.headers["shape"], "x-note" in tensor.headers) == ("[2, 3, 8, 8]", False)


def test_every_answer_says_not_to_be_kept(chatty: Any) -> None:
    """Pictures, latents and errors are nothing for a cache on the way."""
    for reply in (chatty.decode(), requests.post(f"{chatty.url}/?zzz=1", timeout=10)):
        assert reply.headers["cache-control"] == "no-store"
        assert "set-cookie" not in reply.headers


class Collector(BaseHTTPRequestHandler):
    """Takes traces as an OpenTelemetry collector does."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.got.append(ExportTraceServiceRequest.FromString(body))  # type: ignore[attr-defined]
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def collector() -> Iterator[Any]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    server.got = []  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_traces(start: Any, collector: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With OpenTelemetry's variables set, each request is a span below its caller's, with its stages below it."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{collector.server_port}")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "none")
    trace, caller = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    parent = {"traceparent": f"00-{trace}-{caller}-01", "tracestate": f"a={CANARY}", "baggage": f"b={CANARY}"}
    with start("copy") as server:
        headers = {**RAW, **parent, "user-agent": CANARY}
        assert requests.post(f"{server.url}/copy?{COPY}", LATENT, headers=headers, timeout=30).status_code == 200
        requests.post(f"{server.url}/{CANARY}?{CANARY}", CANARY, headers=headers, timeout=30)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(timeout=30) == 0
    resources = [resource for sent in collector.got for resource in sent.resource_spans]
    spans = [span for resource in resources for scope in resource.scope_spans for span in scope.spans]
    ours = [span for span in spans if span.trace_id.hex() == trace]
    decode = next(span for span in ours if span.name == "POST decode")
    assert decode.parent_span_id.hex() == caller
    found = {item.key: item.value.string_value or item.value.int_value for item in decode.attributes}
    assert (found["remote_vae.model"], found["http.response.status_code"]) == ("copy", 200)
    stages = [span.name for span in ours if span.parent_span_id == decode.span_id]
    assert stages == ["queue", "decode", "media"]
    text = str(collector.got)
    assert CANARY not in text
    assert "127.0.0.1" not in text


def test_traces_that_nobody_takes(start: Any, monkeypatch: pytest.MonkeyPatch, free_address: tuple[str, int]) -> None:
    """A collector that is not there costs a request nothing."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", free_address[0])
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    with start("copy") as server:
        assert [server.decode().status_code for _ in range(20)] == [200] * 20
        assert os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] not in server.log.read_text()


def test_the_dashboard_asks_for_metrics_that_there_are(chatty: Any) -> None:
    """Every expression of the dashboard names figures that the server has, with labels that they have."""
    document = json.loads((ROOT / "deploy" / "grafana" / "remote-vae.json").read_text())
    text = requests.get(f"{chatty.url}/metrics", timeout=10).text
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert len({panel["id"] for panel in document["panels"]}) == len(document["panels"])
    asked = set()
    for target in (target for panel in document["panels"] for target in panel["targets"]):
        for name in re.findall(r"remote_vae_\w+", target["expr"]):
            base = re.sub(r"_(total|bucket|sum|count)$", "", name)
            assert base in families, name
            asked.add(base)
    assert asked == {name for name in families if name.startswith("remote_vae_")}


def test_every_metric_has_a_row(chatty: Any) -> None:
    """docs/operating.md has every figure, with its labels."""
    text = requests.get(f"{chatty.url}/metrics", timeout=10).text
    names = {family.name for family in text_string_to_metric_families(text)}
    page = (ROOT / "docs" / "operating.md").read_text()
    documented = set(re.findall(r"^\| `(remote_vae_\w+)` \|", page, re.MULTILINE))
    assert {re.sub(r"_total$", "", name) for name in documented} == names


def test_what_reading_a_picture_lost(chatty: Any) -> None:
    """The reply of an encode says what was dropped of the picture, and nothing if nothing was."""
    for mode, noted in (("RGBA", True), ("RGB", False)):
        body = io.BytesIO()
        Image.new(mode, (8, 8)).save(body, "PNG")
        reply = requests.post(f"{chatty.url}/encode?posterior=mode&profile=ignore", body.getvalue(), timeout=60)
        assert reply.status_code == 200, reply.text
        assert ("transparency was dropped" in reply.headers.get("x-note", "")) == noted
