"""Any value of any header, any path and any query: never a 500, and every refusal is our JSON."""

import http.client
import json
from typing import Any
from urllib.parse import quote, urlsplit

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from remote_vae.protocol import options

# What the server, the layers below it and its files read. Of `content-length`, `transfer-encoding` and what else is a
# matter of the connection there are tests in test_connections.py.
HEADERS = (
    *("accept", "accept-encoding", "authorization", "content-digest", "content-encoding", "content-type", "cookie"),
    *("forwarded", "host", "if-match", "if-modified-since", "if-none-match", "if-range", "if-unmodified-since"),
    *("origin", "range", "referer", "sec-fetch-mode", "sec-fetch-site", "te", "traceparent", "user-agent", "via"),
    *("x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-request-id", "x-request-timeout-seconds"),
)
ODD = (
    *("", "0", "-0", "-1", "+1", "1e400", "1e-400", "nan", "inf", "1_0", "0x10", "\xb2", "\xbd", "9" * 20, "9" * 5000),
    *("null", "*", "*/*", "*/*;q=2", "a/b;q=nan", "a/b;q=", ",", ";", "=", ":", "[", "?", "#", "%", "\xff\xfe", "\t"),
    *(
        "::1",
        "[::1",
        "[::1]:x",
        "1.2.3.4:99999",
        "fe80::1%eth0",
        "foo:bar",
        "http://",
        "http://[",
        "https://[::1",
        "//a",
    ),
    *(
        "bytes=0-0",
        "bytes=5-1",
        "bytes=-",
        "bytes=0-,1-",
        "bytes=999999-",
        f"bytes={'9' * 5000}-",
        "bytes=a-b",
        "a=1-2",
    ),
    *("sha-256=:AAAA:", "sha-256=:=:", "sha-256=::", "sha-256", "sha-256=:\xff:", "sha-512=:AAAA:, sha-256"),
    *("Bearer", "Bearer \xff", "Basic", "Basic \xff", "Basic =", "Basic //79"),
    *(
        'W/"a"',
        '""',
        '"',
        "Sun, 06 Nov 1994 08:49:37 GMT",
        "Sun, 99 Nov 99999 99:99:99 GMT",
        "00-0-0-0",
        "00-" + "f" * 52,
    ),
    *("application/json", "multipart/form-data; boundary=", "image/png", "identity", "gzip", "charset=\xff"),
    *(
        f"{kind};version={found}"
        for kind in ("application/openmetrics-text", "text/plain")
        for found in ("1e9", "1.\xb2", "2;escaping=a")
    ),
)
TEXT = st.text(st.characters(max_codepoint=255, exclude_characters="\r\n\0"), max_size=60)
VALUE = TEXT | st.sampled_from(ODD) | st.tuples(st.sampled_from(ODD), TEXT).map("".join)
DECODE = "/copy/decode?shape=1,3,8,8&dtype=float32&output_type=pt"
TARGETS = (
    *("/", "/models", "/docs", "/live", "/metrics", "/page/main.js", "/page/nothing", "/nobody", DECODE),
    *("/copy/decode", "/copy/decode?shape=1,3,8,8&dtype=float32", "/copy/encode", "/copy/encode?posterior=mode"),
)
PARTS = ("page", "main.js", "copy", "decode", "..", "%2e%2e", "%00", "%ff", "%2f", "%5c", "%c3%28", "~", "", "a" * 300)
NAMES = [*options.DECODE, *options.ENCODE, "x"]
QUICK = settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def check(server: Any, method: str, target: str, headers: list[tuple[str, str]]) -> None:
    parts = urlsplit(server.url)
    connection = http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=60)
    connection.putrequest(method, target, skip_host=any(name == "host" for name, _ in headers))
    for name, value in [*headers, ("content-length", "768")]:
        connection.putheader(name, value.encode("latin-1"))
    connection.endheaders(bytes(768))
    reply = connection.getresponse()
    text = reply.read()
    connection.close()
    assert reply.status not in (500, 503), (method, target, headers, text)
    if reply.status >= 400 and method != "HEAD":
        assert reply.headers["content-type"] == "application/json", (method, target, headers, text)
        assert json.loads(text)["request_id"] == reply.headers["x-request-id"], (method, target, headers, text)


@pytest.mark.parametrize(("method", "target"), [("GET", "/page/main.js"), ("GET", "/metrics"), ("POST", DECODE)])
def test_each_header(patient: Any, method: str, target: str) -> None:
    """Each header with each odd value is served, or refused for it."""
    for name in HEADERS:
        for value in ODD:
            check(patient.server, method, target, [(name, value)])


def test_any_headers(patient: Any) -> None:
    """Whatever stands in several headers, or twice in one, the request is served, or refused for it."""
    headers = st.lists(st.tuples(st.sampled_from(HEADERS), VALUE), max_size=3)

    @QUICK
    @given(st.sampled_from(["GET", "POST", "HEAD", "OPTIONS"]), st.sampled_from(TARGETS), headers)
    def send(method: str, target: str, headers: list[tuple[str, str]]) -> None:
        check(patient.server, method, target, headers)

    send()


def test_any_target(patient: Any) -> None:
    """Whatever stands in the path and the query, the request is served, or refused for it."""
    path = st.lists(st.sampled_from(PARTS), max_size=4).map("/".join)
    value = (st.text(max_size=20) | VALUE).map(lambda text: quote(text, safe="", errors="replace"))
    query = st.lists(st.tuples(st.sampled_from(NAMES), value), max_size=5)

    @QUICK
    @given(st.sampled_from(["GET", "POST"]), path | st.just("copy/decode"), query)
    def send(method: str, path: str, query: list[tuple[str, str]]) -> None:
        check(patient.server, method, f"/{path}?" + "&".join(map("=".join, query)), [("content-type", "tensor/binary")])

    send()
