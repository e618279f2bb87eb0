"""The servers that are compared: `servers.py NAME PORT` runs one until it is told to stop.

All of them take a body and answer with as many bytes as ours does for it.
"""

import sys
from typing import Any

from replies import TYPE, reply_to


def ours(port: int) -> None:
    """remote-vae as `remote-vae serve` runs it, with two VAEs that do no work."""
    from remote_vae.server.run import serve
    from remote_vae.server.settings import Settings

    serve(Settings(port=port, models=("small=idle,recipe=sd1", "wide=idle,recipe=sd1")), loader="idle:load")


def decoders(port: int) -> None:
    """Two VAEs of the true size with random weights, as `remote-vae serve` runs them; one thread each."""
    from remote_vae.server.run import serve
    from remote_vae.server.settings import Settings

    serve(Settings(port=port, models=("sd1", "taesd"), random_weights=True, device="cpu"))


def leaking(port: int) -> None:
    """remote-vae as it is, but for 1 KiB of each request that it keeps."""
    from remote_vae.server.access_log import RequestRecorder
    from remote_vae.server.run import serve
    from remote_vae.server.settings import Settings

    kept, handle = [], RequestRecorder.__call__

    async def keep(self: RequestRecorder, scope: Any, receive: Any, send: Any) -> None:
        kept.append(bytes(range(256)) * 4)
        await handle(self, scope, receive, send)

    RequestRecorder.__call__ = keep  # type: ignore[method-assign]
    serve(Settings(port=port, max_client_share=1))


def paced(port: int) -> None:
    """remote-vae with a VAE of videos that works elsewhere than on the CPU."""
    from remote_vae.server.run import serve
    from remote_vae.server.settings import Settings

    serve(Settings(port=port, models=("wan2.1=paced",)), loader="paced:load")


def ray_one(port: int) -> None:
    """The same on Ray Serve, with one replica of one core."""
    _ray(port, 1)


def ray_two(port: int) -> None:
    """The same with two replicas of one core each."""
    _ray(port, 2)


def _ray(port: int, replicas: int) -> None:
    from remote_vae.deploy.ray_local import Scale, serve
    from remote_vae.server.settings import Settings

    settings = Settings(port=port, models=("small=idle,recipe=sd1", "wide=idle,recipe=sd1"))
    serve(settings, scale=Scale(replicas, replicas, cpus=1), loader="idle:load")


def bare(port: int) -> None:
    """Starlette on uvicorn and nothing else."""
    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

    async def post(request: Request) -> Response:
        return Response(reply_to(await request.body()), media_type=TYPE)

    async def ready(request: Request) -> Response:
        return Response("ok")

    app = Starlette(routes=[Route("/ready", ready), Route("/{path:path}", post, methods=["POST"])])
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="error", access_log=False)


def litserve(port: int) -> None:
    import idle_litserve

    idle_litserve.run(port, fast_queue=False)


def litserve_fast_queue(port: int) -> None:
    import idle_litserve

    idle_litserve.run(port, fast_queue=True)


ALL = (ours, leaking, paced, ray_one, ray_two, decoders, bare, litserve, litserve_fast_queue)
SERVERS = {server.__name__: server for server in ALL}

if __name__ == "__main__":
    SERVERS[sys.argv[1]](int(sys.argv[2]))
