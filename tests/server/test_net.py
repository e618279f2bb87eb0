"""Errors that nobody foresaw, in any part of the server, and work that must not keep other clients waiting."""

import asyncio
import base64
import contextlib
import http.client
import json
import logging
import os
import socket
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families

from faulty import PROMISED, SECRET
from remote_vae.server.logs import JsonHandler, JsonLines
from remote_vae.server.tracked_response import SLICE_BYTES, TrackedResponse

COPY = "shape=1,3,8,8&dtype=float32&output_type=pt"


@pytest.fixture(scope="module")
def faulty(start: Any) -> Iterator[tuple[Any, str]]:
    """A server whose parts fail when a request asks them to, and the address of its metrics."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    with start("copy", faults=1, metrics_address=address, log_requests=True) as server:
        yield server, f"http://{address}/metrics"


def counted(metrics: str, status: str) -> float:
    """How many requests were answered with a status."""
    families = text_string_to_metric_families(requests.get(metrics, timeout=10).text)
    samples = [sample for family in families for sample in family.samples]
    return sum(s.value for s in samples if s.name == "remote_vae_requests_total" and s.labels["status"] == status)


def lines(server: Any, request_id: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in server.log.read_text().splitlines()]
    return [line for line in found if line.get("request_id") == request_id]


@pytest.mark.parametrize("place", ["route", "gate", "listener", "recorder"])
def test_an_unforeseen_error_is_our_json(faulty: Any, place: str) -> None:
    """A bug in a route or in any layer is a JSON 500 with a request id; the log has its frames and its cause's."""
    server, metrics = faulty
    before = counted(metrics, "500")
    reply = requests.get(f"{server.url}/docs", headers={"x-fault": place}, timeout=10)
    assert (reply.status_code, reply.headers["content-type"]) == (500, "application/json")
    assert (reply.json()["error_type"], SECRET in reply.text) == ("internal_error", False)
    assert reply.json()["request_id"] == reply.headers["x-request-id"]
    assert counted(metrics, "500") == before + 1
    error, request = lines(server, reply.headers["x-request-id"])
    assert (error["event"], error["exception"]) == ("internal error", "KeyError")
    assert sum(frame.endswith(" fail") for frame in error["frames"]) == 2
    assert "caused by ZeroDivisionError" in error["frames"]
    assert (request["status"], request["error"]) == (500, "internal_error")
    assert SECRET not in server.log.read_text()
    assert server.decode().status_code == 200


def test_a_layer_that_fails_at_every_reply(faulty: Any) -> None:
    """If the outermost of our layers cannot even pass the 500 on, the client gets it all the same, and it counts."""
    server, metrics = faulty
    before = counted(metrics, "500")
    reply = requests.get(f"{server.url}/docs", headers={"x-request-id": "headers"}, timeout=10)
    assert (reply.status_code, reply.json()["error_type"]) == (500, "internal_error")
    assert reply.json()["request_id"] == reply.headers["x-request-id"] == "headers"
    assert counted(metrics, "500") == before + 1
    assert any(line["event"] == "internal error" for line in lines(server, "headers"))


def test_a_log_line_that_cannot_be_written(faulty: Any) -> None:
    """A bug in the log's formatter changes no answer, and is itself a line of JSON with its frames."""
    server, metrics = faulty
    before = counted(metrics, "500")
    reply = requests.get(f"{server.url}/docs", headers={"x-fault": "formatter"}, timeout=10)
    assert (reply.status_code, reply.json()["error_type"]) == (500, "internal_error")
    assert counted(metrics, "500") == before + 1
    failure = next(
        line for line in map(json.loads, server.log.read_text().splitlines()) if "could not" in line["event"]
    )
    assert failure["exception"] == "ValueError"
    assert any(frame.endswith(" format_line") for frame in failure["frames"])
    assert SECRET not in server.log.read_text()


def test_a_request_that_cannot_be_reported(faulty: Any) -> None:
    """A bug in what is noted after the reply is logged, and costs neither the reply nor the connection."""
    server, _ = faulty
    session = requests.Session()
    for _ in range(2):
        assert session.get(f"{server.url}/docs", headers={"x-request-id": "report"}, timeout=10).status_code == 200
    assert any(line["event"] == "a request was not reported" for line in lines(server, "report"))


def test_a_reply_that_breaks_off(faulty: Any) -> None:
    """An error after the reply has begun ends the connection before its promised length, and is logged."""
    server, _ = faulty
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    connection.request("GET", "/docs", headers={"x-fault": "reply", "x-request-id": "half"})
    reply = connection.getresponse()
    with pytest.raises(http.client.IncompleteRead) as caught:
        reply.read()
    connection.close()
    assert caught.value.expected == PROMISED - 1
    error = lines(server, "half")[0]
    assert (error["event"], error["exception"]) == ("a reply broke off", "KeyError")
    assert server.decode().status_code == 200


JSON = {"content-type": "application/json"}
WORK = {
    "a JSON body to decode": (f"/?{COPY}", json.dumps({"inputs": base64.b64encode(bytes(768)).decode()}), JSON),
    "a JSON body to encode": (
        "/encode?shape=1,3,8,8&dtype=float32&posterior=mode",
        json.dumps({"inputs": base64.b64encode(bytes(768)).decode()}),
        JSON,
    ),
    "a JSON reply": (f"/?{COPY}", bytes(768), {"content-type": "tensor/binary", "accept": "tensor/base64"}),
}


@pytest.mark.parametrize("name", WORK)
def test_others_are_answered_meanwhile(faulty: Any, name: str) -> None:
    """While JSON is read or written, which takes long if it is large, other requests are answered."""
    server, _ = faulty
    path, body, headers = WORK[name]
    with ThreadPoolExecutor(1) as pool:
        working = pool.submit(requests.post, server.url + path, body, headers=headers, timeout=60)
        while not working.done():
            assert requests.get(f"{server.url}/live", timeout=60).status_code == 200
            time.sleep(0.05)
        assert working.result().status_code == 200, working.result().text


def test_others_are_answered_while_large_tensors_are_copied(start: Any) -> None:
    """While 256 MB come in and go out, /live never takes as long as a copy that holds the interpreter's lock.

    A busy machine can hold any answer up, so one request of five during which all answers are quick is enough.
    """
    limits = {"max_body_bytes": 2**29, "max_reply_bytes": 2**29, "max_pixels": 2**25}
    path, body = "/?shape=1,3,4096,5440&dtype=float32&output_type=pt", bytes(4 * 3 * 4096 * 5440)
    headers, shares = {"content-type": "tensor/binary"}, []

    def post(url: str) -> int:
        with requests.post(url, body, headers=headers, timeout=120, stream=True) as reply:
            return sum(map(len, reply.iter_content(2**20)))

    with start("copy", **limits) as server, requests.Session() as session, ThreadPoolExecutor(1) as pool:
        for _ in range(5):
            working, longest = pool.submit(post, server.url + path), 0.0
            while not working.done():
                asked = time.perf_counter()
                assert session.get(f"{server.url}/live", timeout=60).status_code == 200
                longest = max(longest, time.perf_counter() - asked)
                time.sleep(0.01)
            assert working.result() == len(body)
            asked = time.perf_counter()
            assert len(bytes(memoryview(body))) == len(body)
            shares.append(longest / (time.perf_counter() - asked))
            if shares[-1] < 0.5:
                break
    assert min(shares) < 0.5, shares


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_a_reply_is_sent_without_a_copy(kind: type) -> None:
    """A large body is handed to the HTTP server in parts of the very memory that it is in."""
    body = kind(bytes(2 * SLICE_BYTES + 1))
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    reply = TrackedResponse(body, 200, {}, on_sent=lambda: sent.append("released"))
    asyncio.run(reply({}, send, send))
    parts = [message["body"] for message in sent[1:-1]]
    assert [len(part) for part in parts] == [SLICE_BYTES, SLICE_BYTES, 1, 0]
    assert all(part.obj is (body.obj if kind is memoryview else body) for part in parts[:-1])
    assert sent[-1] == "released"


def test_a_line_of_any_value(capsys: pytest.CaptureFixture[str]) -> None:
    """A value that JSON does not have costs the line, not the one who logs, and none of it is written."""
    handler = JsonHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    record = logging.LogRecord("remote_vae.server", logging.ERROR, __file__, 1, "event", None, None)
    record.model = SECRET.encode()
    handler.handle(record)
    line = json.loads(capsys.readouterr().err)
    assert (line["exception"], SECRET in str(line)) == ("TypeError", False)


@pytest.mark.parametrize("stderr", ["missing", "closed", "a pipe without a reader"])
def test_a_log_that_nobody_reads(stderr: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stderr that is gone costs the line, and never the one who logs."""
    reader, writer = os.pipe()
    os.close(reader)
    stream = os.fdopen(writer, "w", buffering=1)
    if stderr == "closed":
        stream.close()
    record = logging.LogRecord("remote_vae.server", logging.ERROR, __file__, 1, "event", None, None)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", None if stderr == "missing" else stream)  # missing if started with 2>&-
        JsonHandler(sys.stderr).handle(record)
    with contextlib.suppress(OSError):  # what is left in the buffer
        stream.close()
