"""Every route of a running server: what answers where, with which headers, and what is refused."""

import json
import re
from typing import Any

import numpy as np
import pytest
import requests

from remote_vae.errors import RequestError, ServerError, all_errors
from remote_vae.models.families import MODELS
from remote_vae.protocol import options
from remote_vae.server.openapi import document

PAGES = ["/", "/health", "/live", "/ready", "/models", "/openapi.json", "/docs"]
DECODES = ["/", "/predict", "/copy", "/copy/decode", "/decode", "/flux1", "/flux1/decode", "/chroma/decode"]
LATENT = np.linspace(-1, 1, 192, dtype=np.float32).tobytes()
QUERY = "shape=1,3,8,8&dtype=float32&output_type=pt"


def ask(copy: Any, method: str, path: str, **kwargs: Any) -> requests.Response:
    return requests.request(method, copy.url + path, timeout=30, allow_redirects=False, **kwargs)


def with_slash(paths: list[str]) -> list[str]:
    return paths + [path + "/" for path in paths if path != "/"]


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("path", with_slash(PAGES))
def test_pages(copy: Any, path: str, method: str) -> None:
    """Each page answers 200 to GET and HEAD with and without a trailing slash, and says its request id."""
    reply = ask(copy, method, path)
    assert reply.status_code == 200
    assert int(reply.headers["content-length"]) > 0
    assert bool(reply.content) == (method == "GET")
    assert re.fullmatch("[0-9a-f-]{32,36}", reply.headers["x-request-id"])


@pytest.mark.parametrize("path", with_slash(DECODES))
def test_decode_routes(copy: Any, path: str) -> None:
    """A latent is decoded at every decode route, by name or alias, with and without a trailing slash."""
    reply = ask(copy, "POST", f"{path}?{QUERY}", data=LATENT, headers={"content-type": "tensor/binary"})
    assert reply.status_code == 200
    assert reply.content == LATENT
    named = "flux1" if path.startswith(("/flux1", "/chroma")) else "copy"
    assert reply.headers["x-model"] == named


@pytest.mark.parametrize("path", with_slash(["/", "/predict", "/copy", "/copy/encode", "/encode"]))
def test_encode_routes(copy: Any, path: str) -> None:
    """A tensor without a content type is encoded at every encode route."""
    reply = ask(copy, "POST", f"{path}?shape=1,3,8,8&dtype=float32&posterior=mode", data=LATENT)
    assert reply.status_code == 200
    assert reply.headers["shape"] == "[1, 3, 8, 8]"


def test_headers_of_a_reply(copy: Any) -> None:
    """A reply names its request, model, plan, precision, shape, type and the time of each stage."""
    headers = {"content-type": "tensor/binary", "x-request-id": "mine-7"}
    reply = ask(copy, "POST", f"/?{QUERY}", data=LATENT, headers=headers)
    assert reply.headers["x-request-id"] == "mine-7"
    assert reply.headers["x-model"] == "copy"
    assert reply.headers["x-plan"] == "whole"
    assert reply.headers["x-dtype"] == "float32"
    assert reply.headers["content-type"] == "tensor/binary"
    assert (reply.headers["shape"], reply.headers["dtype"]) == ("[1, 3, 8, 8]", "float32")
    assert re.fullmatch(
        r"queue;dur=\d+\.\d\d, decode;dur=\d+\.\d\d, media;dur=\d+\.\d\d, total;dur=\d+\.\d\d",
        reply.headers["server-timing"],
    )


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND"])
@pytest.mark.parametrize("path", ["/", *with_slash(["/health", "/models", "/copy", "/copy/decode", "/predict"])])
def test_wrong_method(copy: Any, path: str, method: str) -> None:
    """Another method is 405 with the methods that work, as JSON that names both."""
    reply = ask(copy, method, path)
    assert reply.status_code == 405
    assert reply.json()["error_type"] == "method_not_allowed"
    allowed = reply.headers["allow"].split(", ")
    for name in allowed if method != "PROPFIND" else ():
        assert ask(copy, name, path).status_code != 405
    assert method not in allowed


def test_pages_take_no_post_and_models_no_get(copy: Any) -> None:
    """POST to a page and GET of a model are 405, and each says what the other one does."""
    reply = ask(copy, "POST", "/models")
    assert (reply.status_code, reply.headers["allow"]) == (405, "GET, HEAD")
    reply = ask(copy, "GET", "/copy/decode")
    assert (reply.status_code, reply.headers["allow"]) == (405, "POST")
    assert reply.json()["detail"] == {"method": "GET", "allowed": ["POST"]}


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
@pytest.mark.parametrize(
    ("path", "code", "text"),
    [
        ("/nobody", "unknown_model", "'nobody'.*copy, flux1"),
        ("/nobody/decode", "unknown_model", "'nobody'.*copy, flux1"),
        ("/copy/decode/more", "unknown_route", "/models"),
        ("/copy/train", "unknown_route", "/models"),
        ("/v1/images", "unknown_route", "/models"),
        ("/..%2f..%2fetc%2fpasswd", "unknown_route", "/models"),
        ("/favicon.ico", "unknown_model", "copy, flux1"),
    ],
)
def test_nothing_there(copy: Any, path: str, code: str, text: str, method: str) -> None:
    """An unknown model or route is 404 by any method, as JSON that names what exists."""
    reply = ask(copy, method, path)
    assert reply.status_code == 404
    assert reply.json()["error_type"] == code
    assert re.search(text, reply.json()["error"])


def test_home_lists_models_and_pages(copy: Any) -> None:
    """The home page names the models with their aliases, and pages that exist."""
    found = ask(copy, "GET", "/").json()
    assert found["models"] == {"copy": [], "flux1": list(MODELS["flux1"].aliases)}
    assert all(ask(copy, "GET", page).status_code == 200 for page in found["see"])


def test_models_of_the_live_server(live: Any) -> None:
    """A model's card has the layout, ratio, factors, precision and limits of the weights that are served."""
    found = ask(live, "GET", "/models").json()
    cards = {card["name"]: card for card in found["models"]}
    assert found["default"] == "sd"
    assert list(cards) == ["sd", "flux", "video"]
    flux = cards["flux"]
    assert (flux["latent_channels"], flux["spatial_compression_ratio"]) == (16, 8)
    assert (flux["scaling_factor"], flux["shift_factor"]) == (0.41, 0.17)
    assert (flux["kind"], flux["recipe"], flux["dtype"]) == ("image", "flux1", "float32")
    assert "b (h w) (c i j)" in flux["latent_layouts"]
    assert "flux-dev" in flux["aliases"]
    video = cards["video"]
    assert (video["kind"], video["temporal_compression_ratio"], video["scaling_factor"]) == ("video", 4, 0.47)
    assert (flux["executor"], video["executor"]) == ("strips", "strips")
    assert "strips" in flux["plans"]
    assert "strips" in video["plans"]
    for card in cards.values():
        assert card["limits"]["max_body_bytes"] == 2**30
        assert str(live.folder) not in json.dumps(card)


def test_description_covers_every_parameter(copy: Any) -> None:
    """The OpenAPI document lists every parameter that the server reads, with a sentence and a type for each."""
    found = ask(copy, "GET", "/openapi.json").json()
    for path, known in (
        ("/", {**options.DECODE, **options.ENCODE}),
        ("/{model}/decode", options.DECODE),
        ("/{model}/encode", options.ENCODE),
    ):
        listed = {item["name"]: item for item in found["paths"][path]["post"]["parameters"]}
        if "{model}" in path:
            assert listed.pop("model")["schema"]["enum"] == ["copy", "flux1"]
        assert set(listed) == set(known)
        assert all(item["description"] and item["schema"]["type"] for item in listed.values())
        bodies = found["paths"][path]["post"]["requestBody"]["content"]
        assert ("tensor/base64" in bodies) == ("encode" not in path)
        assert ("image/webp" in bodies) == ("decode" not in path)
        page = ask(copy, "GET", "/docs").text
        assert all(f"<code>{name}</code>" in page for name in known)


def test_description_is_whole() -> None:
    """Each operation of the description has a summary and responses, and each reference leads somewhere."""
    found = document("1.0", ["a", "b"])
    assert found["openapi"].startswith("3.1")
    for path, operations in found["paths"].items():
        assert path.startswith("/")
        for operation in operations.values():
            assert operation["summary"]
            assert "200" in operation["responses"]
            assert all(response["description"] for response in operation["responses"].values())
    for reference in re.findall(r'"\$ref": "#/([^"]+)"', json.dumps(found)):
        target: Any = found
        for step in reference.split("/"):
            target = target[step]


def test_described_statuses_are_sent_as_described(copy: Any) -> None:
    """An error's body has the form that the description promises, under a status that it lists."""
    described = ask(copy, "GET", "/openapi.json").json()
    reply = ask(copy, "POST", "/copy/decode?shape=0&dtype=float32")
    assert str(reply.status_code) in described["paths"]["/{model}/decode"]["post"]["responses"]
    schema = described["components"]["schemas"]["Error"]
    assert set(schema["required"]) <= set(reply.json()) <= set(schema["properties"])


def test_docs_fetch_nothing(copy: Any) -> None:
    """The page for people loads nothing from anywhere, so that it works offline and tells nobody."""
    text = ask(copy, "GET", "/docs").text
    assert not re.search(r"https?://|src=|@import|<link|<script", text)


def test_docs_say_what_a_parameter_takes(copy: Any) -> None:
    """The page for people has each parameter's type or choices and its default, every error, and a command to copy."""
    text = ask(copy, "GET", "/docs").text
    assert re.search(r"<code>quality</code></td><td>integer from 1 to 100</td><td>\d+</td>", text)
    assert re.search(r"<code>chroma</code></td><td><code>half</code>, <code>full</code></td>", text)
    assert "curl --fail-with-body &#x27;SERVER/copy/decode?" in text
    assert all(f"<code>{cls.code}</code>" in text for cls in (*all_errors(RequestError), *all_errors(ServerError)))
