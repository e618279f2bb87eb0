"""Large JSON: its base64 is read where it stands, whatever is wrong with it, while other clients are answered."""

import base64
import codecs
import json
import sys
import threading
import time
import tracemalloc
from typing import Any

import numpy as np
import pytest
import requests

from remote_vae.errors import MalformedRequest
from remote_vae.protocol import bodies
from remote_vae.protocol.base64_text import SLICE
from remote_vae.protocol.bodies import MAX_JSON_BYTES, read_json_body

from .test_patience import peak_bytes, resident_bytes

MIB = 2**20
DATA = np.random.default_rng(3).bytes(3 * MIB)
TEXT = base64.b64encode(DATA)
PARAMETERS = {"shape": [1, 3, 1024, 1024], "dtype": "uint8", "note": 'a quote \\" and a backslash \\'}


def document(text: bytes) -> bytes:
    return b'{"parameters": ' + json.dumps(PARAMETERS).encode() + b', "inputs": "' + text + b'"}'


def lines(width: int, end: bytes) -> bytes:
    return b"".join(TEXT[at : at + width] + end for at in range(0, len(TEXT), width))


SPELLINGS = {
    "as it is": TEXT,
    "PHP's slashes": TEXT.replace(b"/", rb"\/"),
    ".NET's plus": TEXT.replace(b"+", rb"\u002B"),
    "everything escaped": b"".join(b"\\u%04x" % character for character in TEXT),
    "escaped line breaks": lines(76, rb"\n"),
    "escaped line breaks of MIME": lines(76, rb"\r\n"),
    "bare line breaks": lines(64, b"\n"),
    "bare line breaks of MIME": lines(76, b"\r\n"),
    "lines of an odd length": lines(61, b"\n"),
    "the alphabet of URLs": TEXT.translate(bytes.maketrans(b"+/", b"-_")),
    "a data: URI": b"data:image\\/png;base64," + TEXT,
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_each_spelling_in_slices(name: str) -> None:
    """What is larger than a slice is read like what is not, and what stands beside it too."""
    assert len(TEXT) > 2 * SLICE
    found = read_json_body(document(SPELLINGS[name]))
    assert found == (DATA, PARAMETERS)


@pytest.mark.parametrize("end", range(1, 8))
def test_an_escape_at_the_end_of_a_slice(end: int) -> None:
    """Wherever a slice ends in an escape, the escape is read whole."""
    plain = TEXT.translate(bytes.maketrans(b"/", b"+"))
    body = plain[: SLICE - end].replace(b"+", b"A") + rb"\u002B" + plain[SLICE - end + 1 :].replace(b"+", rb"\/")
    assert base64.b64encode(read_json_body(document(body))[0])[SLICE - end : SLICE - end + 1] == b"+"


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32-be"])
def test_another_encoding(encoding: str) -> None:
    """A large document in another encoding of Unicode is read too."""
    assert read_json_body(codecs.encode(document(TEXT).decode(), encoding)) == (DATA, PARAMETERS)


A = b"A" * SLICE
REFUSED = {
    "padding between slices": (document(A[:-2] + b"==" + A), "not valid base64"),
    "padding after all": (document(A + b"===="), "not valid base64"),
    "another character in a later slice": (document(A + b"!" + A[1:]), "not valid base64"),
    "two alphabets in two slices": (document(A[:-1] + b"+" + A[:-1] + b"_"), "not valid base64"),
    "a line of another length in a later slice": (document(lines(76, b"\n") + b"AAAA\n" + A), "not valid base64"),
    "a line break that is moved": (document(lines(76, b"\n")[:SLICE].replace(b"A\n", b"\nA")), "not valid base64"),
    "one long line": (document(A + b"\nAAAA"), "not valid base64"),
    "characters that are no ASCII": (document(A + "\U0001f600".encode() * 99), "not valid base64"),
    "half a pair": (document(A + rb"\ud800"), "not valid base64"),
    "an escape that is none": (document(A + rb"\x41AAA"), "not valid base64"),
    "no end": (document(A)[:-2], "not valid JSON"),
    "an escaped end": (document(A + b"\\")[:-1], "not valid JSON"),
    "more behind it": (document(A) + b"}", "not valid JSON"),
    "two": (b'{"inputs": "%b", "inputs": "%b"}' % (A, A), "two texts"),
    "twice": (b'{"inputs": "", "inputs": "%b"}' % A, "twice"),
    "under another name": (b'{"inputs": "AAAA", "parameters": {"dtype": "%b"}}' % A, 'expected one under "inputs"'),
    "as a name": (b'{"inputs": "AAAA", "parameters": {"%b": 1}}' % A, 'expected one under "inputs"'),
    "deeper": (b'{"parameters": {"inputs": "%b"}}' % A, 'needs base64 text under "inputs"'),
    "all escaped quotes": (document(rb"\"" * MIB), "not valid JSON"),
    "all backslashes": (document(rb"\\" * MIB), "not valid base64"),
    "white space": (b'{"inputs":' + b" " * MAX_JSON_BYTES + b'"AAAA"}', f"over {MAX_JSON_BYTES} bytes"),
    "a number of many digits": (b'{"inputs": "AAAA", "a": 0.' + b"9" * MIB + b"}", f"over {MAX_JSON_BYTES} bytes"),
    "empty texts": (b'{"inputs": "AAAA", "a": [' + b'"",' * MIB + b'""]}', f"over {MAX_JSON_BYTES} bytes"),
    "UTF-16 that is none": (document(A).decode().encode("utf-16") + b"\0\xd8", "not valid JSON"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_each_fault_in_slices(name: str) -> None:
    """What is wrong with a large body is found wherever it stands, within a moment."""
    body, why = REFUSED[name]
    asked = time.monotonic()
    with pytest.raises(MalformedRequest, match=why):
        read_json_body(body)
    assert time.monotonic() - asked < 5


def test_a_mark_cannot_be_guessed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What stands for the base64 differs from body to body, so that no text can pretend to be it."""
    marks = []
    outline = bodies._outline

    def listen(text: Any, mark: bytes) -> Any:
        marks.append(mark)
        return outline(text, mark)

    monkeypatch.setattr(bodies, "_outline", listen)
    for _ in range(2):
        read_json_body(document(TEXT))
    assert len(set(marks)) == 2


MOST_COPIES = {
    "as it is": 0.8,  # the bytes themselves are 0.75
    "bare line breaks of MIME": 0.8,
    "the alphabet of URLs": 0.8,
    "PHP's slashes": 1.1,
    "escaped line breaks": 1.1,
}


@pytest.mark.parametrize("name", MOST_COPIES)
def test_nothing_is_copied(name: str) -> None:
    """Beside a body stand the bytes that it means, in the place of its text without escapes if it has any."""
    body = bytearray(document(SPELLINGS[name]))
    read_json_body(body)
    tracemalloc.start()
    try:
        read_json_body(body)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < MOST_COPIES[name] * len(body) + 4 * SLICE


def wide_json(kind: str, size: int) -> bytes:
    """A body of about so many bytes of JSON, which is refused."""
    return {
        "base64 of no latent": b'{"inputs": "'
        + b"A" * size
        + b'", "parameters": {"shape": [1, 4, 8, 8], "dtype": "float16"}}',
        "slashes": b'{"inputs": "' + rb"\/" * (size // 2) + b'", "parameters": {"shape": [1], "dtype": "float16"}}',
        "escapes": b'{"inputs": "' + rb"\u0041" * (size // 6) + b'"}',
        "a name": b'{"inputs": "AAAA", "parameters": {"' + b"n" * size + b'": 1}}',
        "no ASCII": b'{"inputs": "' + "\U0001f600".encode() * (size // 4) + b'"}',
        "UTF-16": ('{"inputs": "' + "A" * (size // 2) + '"}').encode("utf-16"),
    }[kind]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("kind", ["base64 of no latent", "slashes", "escapes", "a name", "no ASCII", "UTF-16"])
def test_large_json_holds_up_nobody(patient: Any, kind: str) -> None:
    """While JSON of 60 MiB is read, other clients are answered, and the server holds it at most three times."""
    server, body = patient.server, wide_json(kind, 60 * MIB)
    before, slowest, over = resident_bytes(server.process.pid), [0.0], threading.Event()
    small = requests.Session()

    def probe() -> None:
        while not over.is_set():
            asked = time.monotonic()
            assert small.get(server.url + "/live", timeout=60).status_code == 200
            slowest.append(time.monotonic() - asked)

    prober = threading.Thread(target=probe)
    prober.start()
    headers = {"content-type": "application/json"}
    statuses = [requests.post(server.url + "/decode", body, headers=headers, timeout=120).status_code for _ in range(3)]
    over.set()
    prober.join()
    assert statuses == [400] * 3
    assert peak_bytes(server.process.pid) - before < 3 * len(body)
    assert sorted(slowest)[-3] < 0.5
