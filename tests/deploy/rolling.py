"""Replaces the application on Ray Serve under load; prints what became of the requests, as JSON."""

import json
import struct
import threading
import time
from collections import Counter

import requests

from remote_vae.deploy.ray_local import Scale, deploy, local_ray
from remote_vae.server.settings import Settings

QUERY = "shape=1,3,8,8&dtype=float32&output_type=pt"
LATENT = struct.pack("192f", *(i / 192 for i in range(192)))
SLOW = struct.pack("192f", 8.0, *(i / 192 for i in range(191)))  # takes the VAE a second
SCALE = Scale(2, 2, cpus=1)
ENOUGH, PATIENCE = 20, 60.0  # right answers; seconds for them on a busy machine


def main(port: int) -> None:
    found: Counter[str] = Counter()
    done = threading.Event()
    url = f"http://127.0.0.1:{port}"

    def ask(body: bytes) -> None:
        headers = {"content-type": "tensor/binary"}
        with requests.Session() as session:
            while not done.is_set():
                try:
                    reply = session.post(f"{url}/?{QUERY}", body, headers=headers, timeout=60)
                    found["right" if reply.content == body else f"{reply.status_code} {reply.text[:200]}"] += 1
                except requests.RequestException as exc:
                    found[repr(exc)[:200]] += 1

    settings = Settings(port=port, models=("copy=.,recipe=sd1",))
    with local_ray():
        deploy(settings, SCALE, "misbehaving:load")
        threads = [threading.Thread(target=ask, args=(body,)) for body in (LATENT, SLOW)]
        for thread in threads:
            thread.start()
        deploy(settings.model_copy(update={"max_batch": 3}), SCALE, "misbehaving:load")
        limit = requests.get(url + "/models", timeout=30).json()["models"][0]["limits"]["max_batch"]
        ends = time.monotonic() + PATIENCE
        while found["right"] <= ENOUGH and time.monotonic() < ends:
            time.sleep(0.1)
        done.set()
        for thread in threads:
            thread.join()
    print(json.dumps({"limit": limit, **found}))


if __name__ == "__main__":
    import sys

    main(int(sys.argv[1]))
