"""Who may come in: keys on every route and in every spelling, where they are needed, and where they never show."""

import asyncio
import base64
import http.client
import json
import os
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import httpx2
import pytest
import requests

from remote_vae.client import AsyncClient, Client
from remote_vae.errors import ConfigurationError, ConnectionFailed, TooManyRequests, Unauthorized
from remote_vae.server.auth import Rates
from remote_vae.server.keys import Keys, read_keys
from remote_vae.server.settings import Settings, read_settings

KEY, OTHER = "k3y-of-the-first.client_~", "a-key-of-someone-else-1234"
RAW = {"content-type": "tensor/binary"}
COPY = "shape=1,3,8,8&dtype=float32&output_type=pt"
LATENT = bytes(768)


@pytest.fixture(scope="module")
def guarded(start: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A server with two keys in a file."""
    file = tmp_path_factory.mktemp("keys") / "keys"
    file.write_text(f"# of the first client\n{KEY}\n\n{OTHER}  # of another\n")
    with start("copy", keys_file=file) as server:
        yield server


def test_the_page_is_open_and_tells_nothing(guarded: Any) -> None:
    """A browser without a key gets the page and its parts, not the list of models; no neighbour of theirs is open."""
    browser = {"Accept": "text/html,*/*;q=0.8"}
    assert ask(guarded, "/", **browser)[0] == 200
    assert b'"copy"' not in ask(guarded, "/", **browser)[1]
    assert ask(guarded, "/page/main.js")[0] == 200
    for path in ("/models", "/docs", "/page", "/page/", "/page/main.js/", "/page/../models", "/page/%2e%2e", "//"):
        assert ask(guarded, path, **browser)[0] == 401, path
    assert ask(guarded, "/", "POST", **browser)[0] == 401


@pytest.mark.parametrize(("tried", "basic_too"), [("Bearer wrong", False), ("Bearer", False), ("Basic eDp5", True)])
def test_the_challenge(guarded: Any, tried: str, basic_too: bool) -> None:
    """Who tried Bearer is not asked for Basic, since a browser would then open a box of its own."""
    reply = requests.get(guarded.url + "/models", headers={"authorization": tried}, timeout=30)
    assert reply.headers["www-authenticate"].startswith("Bearer")
    assert ("Basic" in reply.headers["www-authenticate"]) == basic_too


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def ask(server: Any, target: str, method: str = "GET", body: bytes | None = None, **headers: str) -> tuple[int, Any]:
    """A request whose target is sent as it is, and the JSON of its answer where there is some."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    connection.request(method, target, body, headers)
    reply = connection.getresponse()
    data = reply.read()
    connection.close()
    found = json.loads(data) if data and reply.headers["content-type"] == "application/json" else data
    return reply.status, found


@pytest.mark.parametrize(
    "path", ["/", "/models", "/openapi.json", "/docs", "/docs/", "/metrics", "/nothing/here", "/copy"]
)
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"])
def test_every_route_needs_a_key(guarded: Any, path: str, method: str) -> None:
    """Whatever the path and the method, without a key the answer is 401."""
    assert ask(guarded, path, method)[0] == 401


@pytest.mark.parametrize(
    "target",
    [
        "/live?x",
        "/live;x",
        "//live",
        "/live//",
        "/LIVE",
        "/l%69ve",
        "/live/../models",
        "/live%2f..%2fmodels",
        "/models?/live",
        "/models#/live",
        "http://a/models",
        "/%2e/models",
        f"/{KEY[:-1]}/models",
        f"/{KEY}x/models",
        f"/%6b{KEY[1:]}/models",
        f"/x/{KEY}/models",
        f"/models?token={KEY}",
        f"/models?key={KEY}",
        f"/models/{KEY}",
    ],
)
def test_no_spelling_comes_around_the_gate(guarded: Any, target: str) -> None:
    """A path is judged by its bytes as they came: only the open ones, letter for letter, need no key."""
    status, _ = ask(guarded, target)
    assert status == (200 if target == "/live?x" else 401)


@pytest.mark.parametrize("host", ["a/live?x", "a/health", "127.0.0.1/live#", "live"])
def test_the_host_header_opens_nothing(guarded: Any, host: str) -> None:
    """The name under which the server is asked plays no part."""
    assert ask(guarded, "/models", host=host)[0] == 401


def test_probes_need_no_key(guarded: Any) -> None:
    """What an orchestrator asks by GET or HEAD is answered to everyone, and tells nothing else."""
    for path in ("/live", "/live/", "/ready", "/health"):
        assert ask(guarded, path)[0] == 200
        assert ask(guarded, path, "HEAD")[0] == 200
        assert ask(guarded, path, "POST")[0] == 401
    assert ask(guarded, "/ready") == (200, {"status": "ready"})


GOOD = {
    "bearer": f"Bearer {KEY}",
    "another key": f"Bearer {OTHER}",
    "a scheme in small letters": f"bearer  {KEY} ",
    "basic": basic("x", KEY),
    "basic without a name": basic("", KEY),
}


@pytest.mark.parametrize("authorization", GOOD.values(), ids=GOOD.keys())
def test_a_key_in_a_header(guarded: Any, authorization: str) -> None:
    """Bearer and the password of Basic let in."""
    reply = requests.post(f"{guarded.url}/?{COPY}", LATENT, headers={**RAW, "authorization": authorization}, timeout=30)
    assert (reply.status_code, reply.content) == (200, LATENT)


BAD = {
    "nothing": "",
    "another scheme": f"Token {KEY}",
    "no scheme": KEY,
    "a wrong key": f"Bearer {KEY[::-1]}",
    "a key's beginning": f"Bearer {KEY[:-1]}",
    "a key and more": f"Bearer {KEY}x",
    "two keys": f"Bearer {KEY},{KEY}",
    "the other case": f"Bearer {KEY.upper()}",
    "no base64": "Basic !!!!",
    "no UTF-8": "Basic " + base64.b64encode(b"x:\xff\xfe").decode(),
    "a key as the name": basic(KEY, ""),
    "a password that goes on": basic("x", f"{KEY}:"),
    "an empty password": basic("x", ""),
    "no colon": "Basic " + base64.b64encode(KEY.encode()).decode(),
}


@pytest.mark.parametrize("authorization", BAD.values(), ids=BAD.keys())
def test_what_is_no_key(guarded: Any, authorization: str) -> None:
    """Everything else is 401 in the usual form, says what to send, and repeats nothing of what was sent."""
    reply = requests.post(f"{guarded.url}/?{COPY}", LATENT, headers={**RAW, "authorization": authorization}, timeout=30)
    assert (reply.status_code, reply.json()["error_type"]) == (401, "unauthorized")
    assert reply.headers["www-authenticate"].startswith("Bearer ")
    assert "Authorization: Bearer KEY" in reply.json()["error"]
    assert KEY not in reply.text
    assert not any(part in reply.text for part in authorization.split() if len(part) > 10)


def test_two_credentials(guarded: Any) -> None:
    """Of two Authorization headers neither counts: a proxy in front may have judged the other one."""
    connection = http.client.HTTPConnection("127.0.0.1", guarded.port, timeout=30)
    connection.putrequest("GET", "/models")
    for value in (f"Bearer {KEY}", "Bearer wrong"):
        connection.putheader("authorization", value)
    connection.endheaders()
    assert connection.getresponse().status == 401
    connection.close()


def test_a_key_in_the_path(guarded: Any) -> None:
    """The first part of the path may be the key; the rest works as ever, with and without a slash at its end."""
    for path in ("", "/", "/copy", "/copy/decode", "/copy/decode/", "/predict"):
        reply = requests.post(f"{guarded.url}/{KEY}{path}?{COPY}", LATENT, headers=RAW, timeout=30)
        assert (reply.status_code, reply.content) == (200, LATENT)
    assert ask(guarded, f"/{KEY}/models")[0] == ask(guarded, f"/{KEY}")[0] == 200
    assert ask(guarded, f"/{KEY}/{KEY}/models")[0] == 404


def test_our_client_and_others(guarded: Any) -> None:
    """Our client sends its token, `requests` the password of its URL; without, the error is Unauthorized."""
    host = guarded.url.removeprefix("http://")
    with Client(guarded.url, token=KEY) as client:
        assert client.models()[0]["name"] == "copy"
    with Client(f"http://x:{KEY}@{host}") as client:
        assert client.models()[0]["name"] == "copy"
    with Client(f"{guarded.url}/{KEY}") as client:
        assert client.models()[0]["name"] == "copy"
    with Client(guarded.url) as client, pytest.raises(Unauthorized, match="needs a key"):
        client.models()
    assert requests.get(f"http://x:{KEY}@{host}/models", timeout=10).status_code == 200


def test_a_key_shows_nowhere(start: Any) -> None:
    """A key is in no log, no answer and no list of processes, and a replica's environment does not have it."""
    with start("copy", keys=f"{KEY} {OTHER}") as server:
        answers = [
            ask(server, f"/{KEY}{path}") for path in ("/models", "/docs", "/nobody", "/metrics", "/openapi.json")
        ]
        answers.append(ask(server, f"/{KEY}/copy?{KEY}=1", "POST", LATENT))
        crash = {**RAW, "authorization": f"Bearer {KEY}"}
        latent = b"\0\0\xe0\x40" + LATENT[4:]  # 7.0: the replica dies
        answers.append(ask(server, f"/copy?{COPY}", "POST", latent, **crash))
        assert [status for status, _ in answers] == [200, 200, 404, answers[3][0], 200, 400, 500]
        requests.post(f"{server.url}/{KEY}?{COPY}", LATENT, headers=RAW, timeout=30)  # by the next replica
        processes = [Path(f"/proc/{pid}") for pid in (server.process.pid, *server.replicas())]
        assert len(processes) == 2
        places = [str(answers), server.log.read_text(errors="replace")]
        places += [(process / "cmdline").read_text() for process in processes]
        places.append((processes[1] / "environ").read_text())
    for place in places:
        assert KEY not in place.replace(f"'{KEY[:20]}", "")  # a parameter's name is quoted as the caller's own typo
        assert OTHER not in place


def test_settings_do_not_show_keys() -> None:
    """Neither a setting's text form nor an error about settings has a key in it."""
    assert KEY not in repr(Settings(keys=KEY)) + str(Settings(keys=KEY).model_dump())
    with pytest.raises(ConfigurationError) as caught:
        Settings(keys="sh0rt")
    assert "sh0rt" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "# only a remark", "short", "a b", f"{KEY} with/a-slash-in-it-0000", "ü" * 20])
def test_keys_that_cannot_be_used(text: str, tmp_path: Path) -> None:
    """No key, or one that is short or would not travel in a path, is refused without being quoted."""
    file = tmp_path / "keys"
    file.write_text(text)
    with pytest.raises(ConfigurationError) as caught:
        read_keys(None, file)
    assert not any(word in str(caught.value) for word in text.split() if len(word) > 5)


def test_keys_from_two_places(tmp_path: Path) -> None:
    """Keys in a file and in the environment are refused, and so is a file that is not there."""
    with pytest.raises(ConfigurationError, match="one place"):
        read_keys(Keys([KEY]), tmp_path)
    with pytest.raises(ConfigurationError, match="cannot be read: FileNotFoundError"):
        read_keys(None, tmp_path / "nothing")


def serve(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A server that is expected to end by itself."""
    return subprocess.run(
        [sys.executable, "-m", "remote_vae.cli.main", "serve", "--port", "0", *arguments],
        env={**os.environ, **environment, "COLUMNS": "400", "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("host", ["0.0.0.0", "::", ""])
def test_a_public_address_needs_keys(host: str) -> None:
    """An address that others reach, without keys, is a start that fails and says what to do."""
    ended = serve("--host", host)
    assert ended.returncode == 1
    assert "--keys-file" in ended.stderr
    assert "--allow-anonymous" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("settings", [{"keys": KEY}, {"allow_anonymous": True}])
def test_a_public_address_with_keys_or_on_purpose(start: Any, settings: dict[str, object]) -> None:
    """With keys, or where the operator says so, it serves there; without keys everyone may come in."""
    with start("copy", host="0.0.0.0", **settings) as server:
        assert ask(server, "/models")[0] == (401 if "keys" in settings else 200)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Of localhost, signed by itself."""
    folder = tmp_path_factory.mktemp("tls")
    files = (folder / "certificate.pem", folder / "key.pem")
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    names = ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-out", str(files[0]), "-keyout", str(files[1])]
    subprocess.run([*command.split(), *names], check=True, capture_output=True)
    return files


def test_tls(start: Any, certificate: tuple[Path, Path]) -> None:
    """With a certificate the server speaks TLS 1.2 or newer, and nothing else."""
    with start("copy", tls_certificate=certificate[0], tls_key=certificate[1], verify=certificate[0]) as server:
        trusted = ssl.create_default_context(cafile=str(certificate[0]))
        reply = httpx2.post(f"{server.url}/?{COPY}", content=LATENT, headers=RAW, verify=trusted)
        assert (reply.status_code, reply.content) == (200, LATENT)
        with pytest.raises(requests.ConnectionError):
            requests.get(server.url.replace("https", "http") + "/live", timeout=10)


@pytest.mark.parametrize(
    ("files", "text"),
    [
        (["--tls-certificate", "/nowhere"], "belong together"),
        (["--tls-certificate", "/nowhere", "--tls-key", "/nowhere"], "No such file"),
        (["--tls-certificate", __file__, "--tls-key", __file__], "not a PEM certificate"),
    ],
)
def test_files_that_are_no_certificate(files: list[str], text: str) -> None:
    """A certificate that cannot be used is a start that fails in one sentence."""
    ended = serve(*files)
    assert (ended.returncode, "Traceback" in ended.stderr) == (1, False)
    assert text in ended.stderr.replace("are not a PEM", "not a PEM")


def test_rates() -> None:
    """A client may ask as often at once as in a second, then at its rate; another one is not held up by it."""
    now = [100.0]
    rates = Rates(4, clock=lambda: now[0])
    for _ in range(4):
        rates.take("one")
    with pytest.raises(TooManyRequests, match="4 requests a second") as caught:
        rates.take("one")
    assert caught.value.retry_after == 1
    rates.take("two")
    now[0] += 0.25
    rates.take("one")
    with pytest.raises(TooManyRequests):
        rates.take("one")


def test_slow_rates() -> None:
    """Below one request a second Retry-After says when the next one is due."""
    now = [0.0]
    rates = Rates(0.1, clock=lambda: now[0])
    rates.take("one")
    for seconds, left in ((0, 10), (3.5, 7), (5.5, 1)):
        now[0] += seconds
        with pytest.raises(TooManyRequests) as caught:
            rates.take("one")
        assert caught.value.retry_after == left
    now[0] += 1
    rates.take("one")


def test_rates_forget() -> None:
    """The table of clients does not grow with those that came once."""
    now = [0.0]
    rates = Rates(1, clock=lambda: now[0], most=100)
    for number in range(10_000):
        now[0] += 0.1
        rates.take(str(number))
    assert len(rates._due) <= 100


def test_rates_of_very_many_clients() -> None:
    """More active clients than the table holds are no reason to grow it, or to look through it at each request."""
    now = [0.0]
    rates = Rates(0.001, clock=lambda: now[0], most=10_000)
    began = time.process_time()
    for number in range(60_000):
        now[0] += 1e-6
        rates.take(str(number))
    assert len(rates._due) == 10_000
    assert time.process_time() - began < 5  # looking through the table each time takes a minute
    with pytest.raises(TooManyRequests):
        rates.take("59999")


def test_too_many_requests(start: Any) -> None:
    """A key above its rate gets 429 with Retry-After, before its body is read; another key and probes are served."""
    with start("copy", keys=f"{KEY} {OTHER}", client_requests_per_second=2) as server:
        mine, other = {"authorization": f"Bearer {KEY}"}, {"authorization": f"Bearer {OTHER}"}
        replies = [requests.get(f"{server.url}/models", headers=mine, timeout=10) for _ in range(8)]
        assert [reply.status_code for reply in replies[:2]] == [200, 200]
        refused = [reply for reply in replies if reply.status_code == 429]
        assert len(refused) >= 4
        assert all(int(reply.headers["retry-after"]) >= 1 for reply in refused)
        assert all(reply.json()["error_type"] == "too_many_requests" for reply in refused)
        reply = requests.post(f"{server.url}/{KEY}?{COPY}", LATENT, headers=RAW, timeout=10)
        assert reply.status_code == 429
        assert requests.get(f"{server.url}/models", headers=other, timeout=10).status_code == 200
        assert [requests.get(f"{server.url}/live", timeout=10).status_code for _ in range(5)] == [200] * 5


def test_a_share_of_the_queue(start: Any) -> None:
    """Of what may wait one key has its share and is told 429 beyond it, while another key's request comes in."""
    slow = 8.0  # a latent that begins with it takes a second
    with start("copy", keys=f"{KEY} {OTHER}", max_waiting=4) as server, ThreadPoolExecutor(4) as pool:
        mine = [pool.submit(server.decode, slow, f"/{KEY}/") for _ in range(4)]
        first = next(as_completed(mine)).result()
        assert first.status_code == 429
        assert int(first.headers["retry-after"]) >= 1
        assert server.decode(1.0, f"/{OTHER}/").status_code == 200
        assert sorted(future.result().status_code for future in mine) == [200, 200, 429, 429]


def test_a_private_authority(certificate: tuple[Path, Path], start: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client trusts whom SSL_CERT_FILE names; without it the error says what to do, and does not try again."""
    with start("copy", tls_certificate=certificate[0], tls_key=certificate[1], verify=certificate[0]) as server:
        began = time.monotonic()
        with Client(server.url) as client, pytest.raises(ConnectionFailed, match="set SSL_CERT_FILE"):
            client.models()
        assert time.monotonic() - began < 60
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
        with Client(server.url) as client:
            assert client.models()[0]["name"] == "copy"

        async def asynchronous() -> str:
            async with AsyncClient(server.url) as client:
                return str((await client.models())[0]["name"])

        assert asyncio.run(asynchronous()) == "copy"


def test_a_file_of_authorities_that_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for place in (tmp_path / "none.pem", Path(__file__)):
        monkeypatch.setenv("SSL_CERT_FILE", str(place))
        with pytest.raises(ConfigurationError, match=f"SSL_CERT_FILE={place} holds no certificates"):
            Client("https://127.0.0.1:9")


PREFLIGHT = {"access-control-request-method": "POST", "access-control-request-headers": "authorization,content-type"}


def test_pages_of_other_origins(start: Any) -> None:
    """A named origin may ask, with a key and from the page's code; another one, or any without the setting, may not."""
    ours, theirs = "https://app.example.org", "https://other.example.org"
    with start("copy", cors_origins=f"{ours} http://localhost:3000", keys="the-right-key-0123456") as server:
        for origin, allowed in ((ours, True), (theirs, False)):
            reply = requests.options(f"{server.url}/copy/decode", headers={"origin": origin, **PREFLIGHT}, timeout=10)
            assert (reply.status_code == 200) == allowed
            assert (reply.headers.get("access-control-allow-origin") == origin) == allowed
        key = {"authorization": "Bearer the-right-key-0123456"}
        for headers, status in ((key, 200), ({}, 401)):
            reply = requests.get(f"{server.url}/models", headers={"origin": ours, **headers}, timeout=10)
            assert reply.status_code == status
            assert reply.headers["access-control-allow-origin"] == ours
            assert reply.headers["access-control-expose-headers"] == "*"


def test_no_origin_without_the_setting(start: Any) -> None:
    with start("copy") as server:
        headers = {"origin": "https://app.example.org", **PREFLIGHT}
        reply = requests.options(f"{server.url}/copy/decode", headers=headers, timeout=10)
        assert (reply.status_code, "access-control-allow-origin" in reply.headers) == (403, False)


@pytest.mark.parametrize("origin", ["app.example.org", "https://app.example.org/", "https://a.example/b", "null"])
def test_what_is_no_origin(origin: str) -> None:
    with pytest.raises(ConfigurationError, match=f"'{origin}' is not an origin"):
        read_settings({"cors_origins": origin})


def test_an_address_that_is_none(start: Any) -> None:
    """Whatever a proxy says of the client's address, the request is served."""
    with start("copy") as server:
        for address in ("1:2:3", "::1%eth0", "[::1", ":", "a:b", "1.2.3.4:5:6", "unknown", "9" * 5000):
            reply = requests.get(f"{server.url}/models", headers={"x-forwarded-for": address}, timeout=10)
            assert reply.status_code == 200, address
