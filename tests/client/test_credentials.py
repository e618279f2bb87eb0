"""Who gets which credential."""

import base64

import httpx2
import pytest

from remote_vae.client import Client, remote_decode
from remote_vae.client.endpoint import read_endpoint
from remote_vae.errors import ConfigurationError, InvalidValue, RequestError


def test_nothing_of_the_environment_is_sent(call, serve, answers, latent, tmp_path, monkeypatch):
    """A netrc entry, another service's token and proxy variables change nothing about a request."""
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login user password netrc-secret\n")
    netrc.chmod(0o600)
    for name, value in {
        "NETRC": str(netrc),
        "HF_TOKEN": "hf_secret",
        "HTTP_PROXY": "http://127.0.0.1:9",
        "http_proxy": "http://127.0.0.1:9",
        "ALL_PROXY": "http://127.0.0.1:9",
    }.items():
        monkeypatch.setenv(name, value)
    server = serve(answers.picture())
    call(server.url, "decode", latent)
    assert "authorization" not in server.seen[0].headers
    assert "secret" not in str(server.seen[0])


@pytest.mark.parametrize(
    ("token", "userinfo", "variable", "expected"),
    [
        ("mine", "", "", "Bearer mine"),
        (None, "", "theirs", "Bearer theirs"),
        ("mine", "", "theirs", "Bearer mine"),
        ("mine", "x:url%40secret@", "theirs", "Bearer mine"),
        (None, "x:url%40secret@", "theirs", "Basic " + base64.b64encode(b"x:url@secret").decode()),
        ("", "", "theirs", None),
        (None, "", "", None),
    ],
)
def test_order_of_credentials(call, serve, answers, latent, monkeypatch, token, userinfo, variable, expected):
    """The token given comes before the one in the URL, and that before the environment's; an empty one is none."""
    monkeypatch.setenv("REMOTE_VAE_API_KEY", variable)
    server = serve(answers.picture())
    call(f"http://{userinfo}{server.host}", "decode", latent, client={"token": token})
    assert server.seen[0].headers.get("authorization") == expected


def test_function_sends_the_token(serve, answers, latent):
    """remote_decode takes a token too."""
    server = serve(answers.picture())
    remote_decode(server.url, latent, image_format="png", token="mine")
    assert server.seen[0].headers["authorization"] == "Bearer mine"


def test_token_comes_before_an_injected_clients_own(serve, answers, latent):
    """An injected client's credential is sent when there is no token, and gives way to one."""
    server = serve(answers.picture())
    with httpx2.Client(auth=("user", "pw")) as http:
        Client(server.url, http=http).decode(latent)
        Client(server.url, http=http, token="mine").decode(latent)
    assert [seen.headers["authorization"].split()[0] for seen in server.seen] == ["Basic", "Bearer"]


def test_injected_client_stays_open(serve, answers, latent):
    """Closing our client does not close the caller's."""
    server = serve(answers.picture())
    with httpx2.Client() as http:
        with Client(server.url, http=http) as client:
            client.decode(latent)
        assert not http.is_closed


def test_credentials_do_not_show(latent):
    """A token appears in no representation and in no error message."""
    endpoint = read_endpoint("http://user:secret@127.0.0.1:1/x", token="secret")
    assert "secret" not in repr(endpoint)
    assert "secret" not in repr(endpoint.request("GET", "/models"))
    with pytest.raises(Exception, match=r"127\.0\.0\.1:1") as caught:
        Client("http://user:secret@127.0.0.1:1/x", retries=1).decode(latent)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("token", ["two words", "line\nbreak", "naïve", "\x7f"])
def test_token_that_no_header_carries(token):
    """A token with a space, a line break or a foreign letter is refused, unquoted, before anything is sent."""
    with pytest.raises(ConfigurationError) as caught:
        Client("http://host", token=token)
    assert token not in str(caught.value)


@pytest.mark.parametrize(
    "endpoint",
    ["localhost:8000", "ftp://host", "http://", "", "http://[::1", "http://host:99999", "file:///etc/passwd"],
)
def test_endpoint_that_is_no_address(endpoint):
    """What is not an http or https URL with a host is refused when the client is made."""
    with pytest.raises(RequestError, match="endpoint"):
        Client(endpoint)


@pytest.mark.parametrize(
    ("endpoint", "path", "query", "expected"),
    [
        ("http://h:1", "/models", "", "http://h:1/models"),
        ("http://h:1/", "/models", "", "http://h:1/models"),
        ("http://h/vae/", "/flux/decode", "a=1", "http://h/vae/flux/decode?a=1"),
        ("http://h/vae/?key=1#top", "/models", "a=1", "http://h/vae/models?key=1&a=1"),
        ("http://h/vae/?key=1", "", "a=1", "http://h/vae/?key=1&a=1"),
        ("https://[::1]:8000", "/models", "", "https://[::1]:8000/models"),
    ],
)
def test_paths_are_appended_to_the_endpoint(endpoint, path, query, expected):
    """A path comes after the endpoint's own, and the endpoint's query is kept."""
    assert read_endpoint(endpoint).request("GET", path, query=query).url == expected


@pytest.mark.parametrize("bounds", [{"timeout": 0}, {"timeout": float("inf")}, {"retries": 0}, {"max_reply_bytes": 0}])
def test_bounds_that_cannot_be_kept(bounds):
    """No time, endless time, no try and no bytes are refused when the client is made."""
    with pytest.raises(InvalidValue):
        Client("http://host", **bounds)


def test_proxy_is_an_argument(call, serve, answers, latent):
    """A proxy that is named gets the request for the other host."""
    server = serve(answers.picture())
    call("http://vae.invalid:80", "decode", latent, client={"proxy": server.url})
    assert server.seen[0].target.startswith("http://vae.invalid/decode?")


def test_proxy_of_an_injected_client_is_its_own():
    """A proxy and an injected client together are refused."""
    with httpx2.Client() as http, pytest.raises(ConfigurationError):
        Client("http://host", http=http, proxy="http://proxy")
