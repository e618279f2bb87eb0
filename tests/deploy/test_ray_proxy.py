"""What Ray's proxy says when it has no answer of ours to hand on."""

import json

import httpx2
import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

from remote_vae.deploy.ray_proxy import middlewares

ID = {"x-request-id": "mine-7"}


def answering(status: int, media: str, *, routes: tuple[int, str] = (200, '{"/": "remote-vae"}')) -> ASGIApp:
    """A proxy that answers so, and these routes; status 0 is no answer at all, as Ray has for a dead replica."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        code, text, kind = (*routes, "text/plain") if scope["path"] == "/-/routes" else (status, "{}", media)
        if code:
            await send({"type": "http.response.start", "status": code, "headers": [(b"content-type", kind.encode())]})
            await send({"type": "http.response.body", "body": text.encode()})

    return app


async def ask(app: ASGIApp) -> httpx2.Response:
    for middleware in middlewares():
        app = middleware.cls(app, *middleware.args, **middleware.kwargs)
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://proxy") as http:
        return await http.post("/decode", content=b"x", headers=ID)


def assert_repeatable(reply: httpx2.Response) -> None:
    assert (reply.status_code, reply.json()["error_type"]) == (503, "replica_failed")
    assert "retry-after" in reply.headers
    assert reply.headers["x-request-id"] == reply.json()["request_id"] == "mine-7"
    assert int(reply.headers["content-length"]) == len(reply.content)
    assert_harmless(reply)


def assert_harmless(reply: httpx2.Response) -> None:
    """A browser takes the reply for what it is and loads nothing."""
    assert reply.headers.get_list("x-content-type-options") == ["nosniff"]
    assert reply.headers.get_list("content-security-policy")[0].startswith("default-src 'none'")


async def test_a_replica_that_is_gone() -> None:
    """A request without an answer, whose replica died, is a 503 with Retry-After in our own JSON."""
    assert_repeatable(await ask(answering(0, "")))


@pytest.mark.parametrize("routes", [(200, "{}"), (503, "Route table is not populated yet.")])
async def test_before_the_application_is_known(routes: tuple[int, str]) -> None:
    """While the proxy knows no application, everything is such a 503, not the 404 that clients do not repeat."""
    assert_repeatable(await ask(answering(404, "text/plain; charset=utf-8", routes=routes)))


@pytest.mark.parametrize(
    ("status", "media"),
    [(404, "text/plain; charset=utf-8"), (404, "application/json"), (500, "application/json"), (200, "text/plain")],
)
async def test_every_other_answer_stays(status: int, media: str) -> None:
    """An unknown path is a 404 once there is an application, and what a replica has answered stays as it is."""
    reply = await ask(answering(status, media))
    assert (reply.status_code, reply.headers["content-type"], json.loads(reply.content)) == (status, media, {})
    assert_harmless(reply)
