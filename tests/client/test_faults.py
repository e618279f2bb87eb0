"""A server or network at fault: typed errors, within the budget, and never a wrong picture."""

import socket
import time

import numpy as np
import pytest

from remote_vae.errors import (
    ClientTimeout,
    ConnectionFailed,
    InvalidReply,
    LatentMismatch,
    NotReady,
    RemoteVAEError,
    ServerError,
    Unprocessable,
)

MP4 = b"\x00\x00\x00\x10ftypisom\x00\x00\x00\x00" + b"\x00\x00\x00\x08moov" + b"\x00\x00\x00\x14mdat" + bytes(12)
CHUNKED = b"HTTP/1.1 200 OK\r\ncontent-type: tensor/binary\r\nshape: [1,3,32,32]\r\ndtype: float16\r\n"


def test_refused_connection_is_a_connection_failure(call, latent):
    """A port where nobody listens is ConnectionFailed and names the host."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        host = f"127.0.0.1:{listener.getsockname()[1]}"
    with pytest.raises(ConnectionFailed, match=host):
        call(f"http://{host}", "decode", latent)


def test_connection_closed_without_an_answer_is_tried_again(call, serve, answers, latent):
    """A server process that dies twice while it works costs two tries and no picture."""
    server = serve(lambda connection: None, lambda connection: None, answers.picture())
    assert call(server.url, "decode", latent).size == (32, 32)
    assert len(server.seen) == 3


@pytest.mark.parametrize("cut", ["length", "chunked", "zero"])
def test_truncated_body_is_tried_again_and_then_invalid(call, serve, answers, latent, cut):
    """A reply that ends before its announced end is asked for three times, then an InvalidReply."""
    whole = answers.tensor(np.zeros((1, 3, 32, 32), np.float16))
    truncated = {
        "length": whole[:-1000],
        "chunked": CHUNKED + b"transfer-encoding: chunked\r\n\r\n1000\r\n" + bytes(2000),
        "zero": whole.partition(b"\r\n\r\n")[0] + b"\r\n\r\n",
    }[cut]
    server = serve(truncated)
    with pytest.raises(InvalidReply, match="broke off"):
        call(server.url, "decode", latent, output_type="pt")
    assert len(server.seen) == 3


def test_truncated_body_then_a_whole_one(call, serve, answers, latent):
    """A reply cut short once is replaced by the next, whole one."""
    whole = answers.picture()
    server = serve(whole[:-20], whole)
    assert call(server.url, "decode", latent).getpixel((0, 0)) == (200, 30, 60)


@pytest.mark.parametrize("output_type", ["pil", "pt", "mp4"])
def test_truncation_that_the_connection_does_not_show(call, serve, answers, latent, output_type):
    """A body that ends where the connection ends is measured against its own content."""
    whole = {
        "pil": answers.picture(content_length=""),
        "pt": answers.tensor(np.zeros((1, 3, 32, 32), np.float16), content_length=""),
        "mp4": answers.http(200, MP4, content_type="video/mp4", content_length=""),
    }[output_type]
    server = serve(whole[:-24])
    with pytest.raises(InvalidReply):
        call(server.url, "decode", latent, output_type=output_type)


def test_connection_reset_within_the_body(call, serve, answers, latent):
    """A reset while the body arrives is a ConnectionFailed after three tries."""
    server = serve(answers.reset(answers.picture()[:-20]))
    with pytest.raises(ConnectionFailed):
        call(server.url, "decode", latent)
    assert len(server.seen) == 3


@pytest.mark.parametrize(
    "headers",
    [
        {"shape": "[1,3,32,33]"},
        {"shape": "[3,1024]"},
        {"shape": "[3,32,32]"},
        {"shape": "[1,1,3,32,32,1]"},
        {"shape": "[0,3,32,32]"},
        {"shape": "[-1,-3,32,32]"},
        {"shape": "[1e0,3,32,32]"},
        {"shape": "[true,3,32,32]"},
        {"shape": "[99999999999999999999,3,32,32]"},
        {"shape": "nonsense"},
        {"shape": ""},
        {"dtype": "bfloat16"},
        {"dtype": "float32"},
        {"dtype": "complex64"},
        {"dtype": ""},
        {"content_type": "text/html"},
        {"content_type": "image/png"},
        {"content_encoding": "gzip"},
    ],
    ids=str,
)
def test_tensor_whose_headers_lie(call, serve, answers, latent, headers):
    """A tensor whose headers do not go with its bytes, the wire or the latent is an InvalidReply."""
    server = serve(answers.tensor(np.zeros((1, 3, 32, 32), np.float16), **headers))
    with pytest.raises(InvalidReply):
        call(server.url, "decode", latent, output_type="pt")
    assert len(server.seen) == 1


@pytest.mark.parametrize(
    "reply",
    [{"size": (1024, 512)}, {"form": "jpeg", "content_type": "image/png"}],
)
def test_picture_that_cannot_be_the_answer(call, serve, answers, latent, reply):
    """A picture of impossible size or of another format is an InvalidReply."""
    server = serve(answers.picture(**reply))
    with pytest.raises(InvalidReply):
        call(server.url, "decode", latent)


@pytest.mark.parametrize("body", [b"", b"\x89PNG\r\n\x1a\n", b"<html>", bytes(100)])
def test_body_that_is_no_picture(call, serve, answers, latent, body):
    """Bytes that say image/png and are none are an InvalidReply."""
    server = serve(answers.http(200, body, content_type="image/png"))
    with pytest.raises(InvalidReply):
        call(server.url, "decode", latent)


@pytest.mark.parametrize("fault", ["head", "body", "dripping head", "dripping body", "deaf"])
def test_budget_is_kept(call, serve, answers, latent, fault):
    """A server that stalls, or sends a byte now and then, or never reads, does not hold a call past its time."""
    whole = answers.picture()
    drops = [whole[i : i + 1] for i in range(len(whole))]
    server = serve(b"")
    server.acts[0] = {
        "head": server.stall(),
        "body": server.stall(whole[:-20]),
        "dripping head": server.stall(*drops, every=0.1),
        "dripping body": server.stall(whole[:-60], *drops[-60:], every=0.1),
        "deaf": server.stall(),
    }[fault]
    if fault == "deaf":
        server.reads = False
        latent = np.zeros((1, 4, 2048, 2048), np.float32)
    started = time.monotonic()
    with pytest.raises(ClientTimeout):
        call(server.url, "decode", latent, client={"timeout": 0.6})
    assert time.monotonic() - started < 4


def test_budget_counts_all_tries_and_pauses(call, serve, answers, latent):
    """A wait that the budget does not allow is not begun: the server's own error comes at once."""
    server = serve(answers.error(503, "not_ready", retry_after="5"))
    started = time.monotonic()
    with pytest.raises(NotReady, match="what was wrong"):
        call(server.url, "decode", latent, client={"timeout": 2.0})
    assert time.monotonic() - started < 4
    assert len(server.seen) == 1


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_redirect_is_not_followed(call, serve, answers, latent, status):
    """A redirect is an InvalidReply that names the other host, which gets neither latent nor token."""
    other = serve(answers.picture())
    server = serve(answers.http(status, b"", location=f"http://user:pw@localhost:{other.host.rpartition(':')[2]}/x"))
    with pytest.raises(InvalidReply, match="localhost") as caught:
        call(server.url, "decode", latent, client={"token": "secret-token"})
    assert other.seen == []
    assert len(server.seen) == 1
    assert "secret-token" not in str(caught.value)
    assert "pw" not in str(caught.value)


def test_redirect_by_a_client_that_would_follow(serve, answers, latent):
    """An injected client that follows redirects does not follow them for us."""
    import httpx2

    from remote_vae.client import Client

    other = serve(answers.picture())
    server = serve(answers.http(307, b"", location=other.url))
    with httpx2.Client(follow_redirects=True) as http, pytest.raises(InvalidReply):
        Client(server.url, http=http).decode(latent)
    assert other.seen == []


@pytest.mark.parametrize("status", [201, 204, 206, 304])
def test_status_that_is_neither_success_nor_error(call, serve, answers, latent, status):
    """A status that no Remote VAE gives is an InvalidReply."""
    server = serve(answers.http(status, b"", content_type="image/png"))
    with pytest.raises(InvalidReply, match=str(status)):
        call(server.url, "decode", latent)


def test_html_error_page(call, serve, answers, latent):
    """A proxy's HTML page costs the tries that the caller allows, names the status and is not printed."""
    server = serve(answers.http(502, b"<html>Bad Gateway</html>", content_type="text/html"))
    with pytest.raises(ServerError, match="502") as caught:
        call(server.url, "decode", latent, client={"retries": 3})
    assert "<html>" not in str(caught.value)
    assert len(server.seen) == 3


def test_html_page_as_success(call, serve, answers, latent):
    """A page with status 200, as a captive portal gives it, is an InvalidReply."""
    server = serve(answers.http(200, b"<html>Log in</html>", content_type="text/html"))
    with pytest.raises(InvalidReply, match="text/html"):
        call(server.url, "decode", latent)


@pytest.mark.parametrize(
    ("status", "code", "cls"),
    [
        (422, "latent_mismatch", LatentMismatch),
        (422, "of_a_later_version", Unprocessable),
        (500, "internal_error", ServerError),
    ],
)
def test_error_of_the_server_is_raised_again(call, serve, answers, latent, status, code, cls):
    """The server's JSON error becomes the same class here, with message, detail and request id, and is not retried."""
    server = serve(answers.error(status, code))
    with pytest.raises(cls, match="what was wrong") as caught:
        call(server.url, "decode", latent)
    assert caught.value.detail == {"n": 4}
    assert caught.value.request_id == "r-1"
    assert len(server.seen) == 1


@pytest.mark.parametrize(("status", "code"), [(503, "overloaded"), (503, "not_ready"), (429, "overloaded")])
def test_overload_is_tried_again(call, serve, answers, latent, status, code):
    """429 and 503 are waited out: the second try's picture is the answer."""
    server = serve(answers.error(status, code), answers.picture())
    assert call(server.url, "decode", latent).size == (32, 32)
    first, second = server.seen
    assert (first.target, first.body) == (second.target, second.body)


def test_tries_are_counted(call, serve, answers, latent):
    """`retries` is how often a request is sent at most."""
    server = serve(answers.error(503, "not_ready"))
    for retries in (1, 2, 4):
        server.seen.clear()
        with pytest.raises(NotReady):
            call(server.url, "decode", latent, client={"retries": retries})
        assert len(server.seen) == retries


@pytest.mark.parametrize(
    "headers",
    [
        {"retry_after": "1"},
        {"retry_after": "Thu, 01 Jan 2032 00:00:01 GMT", "date": "Thu, 01 Jan 2032 00:00:00 GMT"},
    ],
    ids=["seconds", "date"],
)
def test_retry_after_is_obeyed(call, serve, answers, latent, headers):
    """The pause that the server asks for, as a number or as a date by its own clock, is the pause that it gets."""
    server = serve(answers.error(503, "overloaded", **headers), answers.picture())
    started = time.monotonic()
    call(server.url, "decode", latent)
    assert 1.0 <= time.monotonic() - started < 4.0


@pytest.mark.parametrize("announced", [True, False])
def test_reply_over_the_limit(call, serve, answers, latent, announced):
    """A reply longer than the limit is refused by its announcement, or as soon as it goes beyond."""
    big = answers.tensor(np.zeros((1, 3, 32, 32), np.float16), **({} if announced else {"content_length": ""}))
    server = serve(big)
    with pytest.raises(InvalidReply, match="1000 bytes"):
        call(server.url, "decode", latent, output_type="pt", client={"max_reply_bytes": 1000})
    assert len(server.seen) == 1


def test_garbage_instead_of_http(call, serve, latent):
    """Something that does not speak HTTP is a connection failure, not a traceback of a library."""
    server = serve(b"220 mail.example ESMTP\r\n")
    with pytest.raises(RemoteVAEError):
        call(server.url, "decode", latent)
