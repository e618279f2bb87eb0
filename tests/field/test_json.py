"""Base64 and JSON as tools write them."""

import base64
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import requests

from remote_vae.errors import MalformedRequest
from remote_vae.protocol.bodies import read_json_body

LATENT = np.random.default_rng(2).standard_normal((1, 3, 8, 8)).astype(np.float32)
DATA = LATENT.tobytes()
PLAIN = base64.b64encode(DATA).decode()
URL_SAFE = base64.urlsafe_b64encode(DATA[:-2] + b"\xfb\xff").decode()
PARAMETERS = {"shape": [1, 3, 8, 8], "dtype": "float32", "output_type": "pt"}


def lines(width: int, end: str = "\n") -> str:
    return "".join(PLAIN[start : start + width] + end for start in range(0, len(PLAIN), width))


SPELLINGS = {
    "Python's encodebytes": base64.encodebytes(DATA).decode(),
    "GNU base64": lines(76),
    "MIME and Java": lines(76, "\r\n"),
    "PEM and openssl": lines(64),
    "base64 -w0 and echo": PLAIN + "\n",
    "FileReader.readAsDataURL": "data:application/octet-stream;base64," + PLAIN,
    "a data: URI with a charset": "data:text/plain;charset=utf-8;base64," + PLAIN,
    "a data: URI without a type": "data:;base64," + PLAIN,
    "a data: URI in lines": "data:application/octet-stream;base64," + lines(76),
}


@pytest.mark.parametrize("tool", SPELLINGS)
def test_base64_as_tools_write_it(tool: str) -> None:
    """Line breaks of equal lines and the head of a data: URI are no part of the bytes."""
    assert read_json_body(json.dumps({"inputs": SPELLINGS[tool]}).encode())[0] == DATA


@pytest.mark.parametrize("padded", [True, False])
def test_the_alphabet_of_urls(padded: bool) -> None:
    """The alphabet that URLs can hold is read, with its padding or without it, as JavaScript and JWT write it."""
    assert "-" in URL_SAFE or "_" in URL_SAFE
    text = URL_SAFE if padded else URL_SAFE.rstrip("=")
    assert read_json_body(json.dumps({"inputs": text}).encode())[0] == DATA[:-2] + b"\xfb\xff"


def test_line_breaks_that_a_shell_leaves_in_the_text() -> None:
    """`"$(base64 FILE)"` puts bare line breaks into the JSON."""
    assert read_json_body(b'{"inputs": "' + lines(76).strip().encode() + b'"}')[0] == DATA


@pytest.mark.parametrize("encode", [lambda text: b"\xef\xbb\xbf" + text.encode(), lambda text: text.encode("utf-16")])
def test_marks_of_unicode(encode: Callable[[str], bytes]) -> None:
    """PowerShell's UTF-8 begins with a mark, and its older files are UTF-16."""
    assert read_json_body(encode(json.dumps({"inputs": PLAIN})))[0] == DATA


REFUSED = {
    "both alphabets": PLAIN[:-4] + "+-==",
    "white space anywhere": PLAIN[:100] + "\n" + PLAIN[100:],
    "short lines": lines(4),
    "an empty line": lines(76).replace("\n", "\n\n", 1),
    "millions of empty lines": "\n" * 2**20 + "A",
    "another encoding": "data:text/plain," + PLAIN,
    "padding within": PLAIN[:40] + "==" + PLAIN[40:],
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_no_tool_writes(kind: str) -> None:
    """What is only nearly base64 is refused with what is expected, because its bytes would be a guess."""
    with pytest.raises(MalformedRequest, match=r"not valid base64.*data: URI"):
        read_json_body(json.dumps({"inputs": REFUSED[kind]}).encode())


@pytest.mark.parametrize(
    "given",
    [
        {"shape": ["1", "3", "8", "8"]},
        {"shape": "[1, 3, 8, 8]"},
        {"shape": "1,3,8,8"},
        {"scaling_factor": "0.5"},
        {"do_scaling": "true"},
        {"partial_postprocess": "False", "do_scaling": None},
    ],
)
def test_numbers_as_texts(copy: Any, given: dict[str, object]) -> None:
    """Clients in shells and forms send numbers, lists and truth values as texts; they are read as such."""
    body = {"inputs": PLAIN, "parameters": {**PARAMETERS, **given}}
    reply = requests.post(copy.url, json=body, headers={"accept": "tensor/binary"}, timeout=30)
    assert reply.status_code == 200, reply.text
    # Parameters in the body leave the scaling to the server, whose factor is 0.5.
    np.testing.assert_allclose(np.frombuffer(reply.content, np.float32).reshape(LATENT.shape), LATENT / 0.5, rtol=1e-6)


@pytest.mark.parametrize("shape", ["(1, 3, 8, 8)", "torch.Size([1, 3, 8, 8])", " [1,3,8,8] "])
def test_shapes_as_python_writes_them(copy: Any, shape: str) -> None:
    """`str(latent.shape)` and `str(tuple)` in a query are shapes; what is only half of one is refused."""
    ask = {"params": {"shape": shape, "dtype": "float32"}, "data": LATENT.tobytes(), "timeout": 30}
    head = {"content-type": "tensor/binary"}
    assert requests.post(copy.url, headers=head, **ask).status_code == 200
    ask["params"]["shape"] = shape.strip().rstrip(")]")
    reply = requests.post(copy.url, headers=head, **ask)
    assert (reply.status_code, reply.json()["error_type"]) == (400, "malformed_request")


def test_the_model_as_a_parameter(copy: Any) -> None:
    """Who sends the model's name as a parameter is told that it is a part of the path."""
    reply = requests.post(f"{copy.url}/decode?model=sd1&shape=1,3,8,8&dtype=float32", data=LATENT.tobytes(), timeout=30)
    assert reply.status_code == 400
    assert "the first part of the path" in reply.json()["error"]


@pytest.mark.parametrize(
    "body",
    [
        base64.b64encode(b"picture" * 100),
        b"data:image/png;base64,iVBORw0KGgo=",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 99\n",
        b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
        b"https://example.org/photo.png",
    ],
)
def test_text_in_the_place_of_a_picture(copy: Any, body: bytes) -> None:
    """Base64, an address, a page of an error or a pointer of Git LFS is said to be text, with the way for base64."""
    reply = requests.post(f"{copy.url}/encode", data=body, headers={"content-type": "image/png"}, timeout=30)
    assert reply.status_code == 415
    assert "text and not a picture; expected PNG, JPEG or WebP" in reply.json()["error"]
    assert "in JSON" in reply.json()["error"]


def test_a_whole_request_of_a_shell(copy: Any) -> None:
    """A marked body with a data: URI in lines, sent as a charset's JSON, is decoded."""
    text = json.dumps({"inputs": "data:;base64," + lines(76), "parameters": PARAMETERS})
    headers = {"content-type": "application/json; charset=utf-8", "accept": "tensor/binary"}
    reply = requests.post(copy.url, data=b"\xef\xbb\xbf" + text.encode(), headers=headers, timeout=30)
    assert reply.status_code == 200, reply.text
