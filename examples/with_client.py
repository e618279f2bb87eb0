"""Client: the same with the model's own factors, and with what the server says about how it was done.

Usage: python examples/with_client.py photo.jpg [URL]
"""

import sys
from pathlib import Path

from remote_vae import Client
from remote_vae.errors import RemoteVAEError

photo = Path(sys.argv[1]).read_bytes()  # a written PNG, JPEG or WebP; a PIL image or a tensor will do too
url = sys.argv[2] if len(sys.argv) > 2 else "http://127.0.0.1:8000"

try:
    with Client(url, timeout=120) as client:
        model = client.models()[0]["name"]
        latent = client.encode(photo, model=model, do_scaling=True, posterior="mode")
        reply = client.decode_reply(latent, model=model, do_scaling=True, image_format="webp", quality=90)
except RemoteVAEError as error:
    raise SystemExit(f"{error.code}: {error.message}") from error
Path("with_client.webp").write_bytes(reply.payload)
print(f"latent {list(latent.shape)} by {reply.provenance.model}, plan {reply.provenance.plan}")
print({stage: round(ms) for stage, ms in reply.provenance.timings_ms.items()})
