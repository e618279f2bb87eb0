"""No client at all: the wire by hand, for programs in which nothing can be installed but requests.

Usage: python examples/with_requests.py photo.jpg [URL]
"""

import json
import sys
from pathlib import Path

import requests

photo = Path(sys.argv[1]).read_bytes()
url = sys.argv[2] if len(sys.argv) > 2 else "http://127.0.0.1:8000"


def post(path: str, body: bytes, accept: str, media: str, **query: object) -> requests.Response:
    headers = {"content-type": media, "accept": accept}
    reply = requests.post(url + path, body, params=query, headers=headers, timeout=120)
    if reply.status_code != 200:  # every error is JSON with a sentence in it
        raise SystemExit(f"{reply.status_code}: {reply.json()['error']}")
    return reply


latent = post("/encode", photo, "tensor/binary", "application/octet-stream", posterior="mode")
shape, dtype = json.loads(latent.headers["shape"]), latent.headers["dtype"]
picture = post("/decode", latent.content, "image/png", "tensor/binary", shape=shape, dtype=dtype)
Path("with_requests.png").write_bytes(picture.content)
print(f"latent {shape} {dtype}; {picture.headers['server-timing']}")
