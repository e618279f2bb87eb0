"""Client: a latent of a video model to an MP4. The latent is noise; a pipeline would give it.

Usage: python examples/with_video.py [URL]
"""

import sys
from pathlib import Path

import numpy as np

from remote_vae import Client
from remote_vae.values import Frames

url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"

with Client(url, timeout=600) as client:
    card = next((card for card in client.models() if "b c f h w" in card["latent_layouts"]), None)
    if card is None:
        raise SystemExit("no video model here; try: remote-vae serve --model hunyuanvideo --random-weights")
    latent = np.random.default_rng(0).standard_normal((1, card["latent_channels"], 3, 8, 8)).astype(np.float32)
    reply = client.decode_reply(latent, model=card["name"], do_scaling=True, output_type="mp4")
Path("with_video.mp4").write_bytes(reply.payload)
ratio = card["spatial_compression_ratio"]
frames = Frames.from_json(card["frames"]).of_latent(latent.shape[2])
print(f"{frames} frames of {8 * ratio}x{8 * ratio}, {len(reply.payload)} bytes")
