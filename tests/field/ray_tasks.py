"""Gives clients to tasks and actors of a Ray of its own, in each way that people do; prints the outcomes as JSON."""

import json
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from remote_vae import Client, DecodeQueue, RemoteVAE
from remote_vae.client.model import RemoteModel
from remote_vae.deploy.ray_local import local_ray

HALF = np.full((1, 3, 8, 8), 0.5, np.float32)


def first(client: Any) -> float:
    """The first pixel of a latent, which the server's VAE copies."""
    decode = client.decode
    found = decode(torch.from_numpy(HALF)) if isinstance(client, RemoteModel) else decode(HALF, output_type="pt")
    return float(found[0, 0, 0, 0])


def main(url: str) -> dict[str, Any]:
    client, model, vae, queue = Client(url), RemoteModel(url), RemoteVAE(url), DecodeQueue(url)
    with local_ray():
        import ray  # which reads what local_ray has put into the environment

        task = ray.remote(first)

        @ray.remote
        class Actor:
            def __init__(self, kept: Any) -> None:
                self.kept = kept

            def run(self) -> float:
                return first(self.kept)

        ways: dict[str, Callable[[], Any]] = {
            "a client": lambda: ray.get(task.remote(client)),
            "a model": lambda: ray.get(task.remote(model)),
            "a client of an actor": lambda: ray.get(Actor.remote(client).run.remote()),
            "a client from around a task": lambda: ray.get(ray.remote(lambda: first(client)).remote()),
            "a client from the store": lambda: first(ray.get(ray.put(client))),
            "an error of a task": lambda: ray.get(ray.remote(lambda: client.decode(HALF[:, :2])).remote()),
            "a VAE": lambda: ray.get(task.remote(vae)),
            "a VAE of an actor": lambda: ray.get(Actor.remote(vae).run.remote()),
            "a VAE from around a task": lambda: ray.get(ray.remote(lambda: first(vae)).remote()),
            "a queue": lambda: ray.get(task.remote(queue)),
        }
        return {name: outcome(way) for name, way in ways.items()}


def outcome(way: Callable[[], Any]) -> Any:
    """What it returned, or the classes of what it raised and the last line of its text."""
    try:
        return way()
    except Exception as exc:  # noqa: BLE001  # the test judges it
        return [[cls.__name__ for cls in type(exc).__mro__], str(exc).splitlines()[-1]]


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1])))
