"""AsyncClient: several latents on their way at once.

Usage: python examples/with_asyncio.py photo.jpg [URL]
"""

import asyncio
import sys

from PIL import Image

from remote_vae import AsyncClient


async def main(path: str, url: str) -> None:
    async with AsyncClient(url) as client:
        latent = await client.encode(Image.open(path), do_scaling=True, posterior="mode")
        # A little further from the photograph's latent each time.
        pictures = await asyncio.gather(*(client.decode(latent * (1 - step / 8), do_scaling=True) for step in range(4)))
    strip = Image.new("RGB", (sum(picture.width for picture in pictures), pictures[0].height))
    for index, picture in enumerate(pictures):
        strip.paste(picture, (index * picture.width, 0))
    strip.save("with_asyncio.png")
    print(f"{len(pictures)} pictures of {pictures[0].width}x{pictures[0].height}")


asyncio.run(main(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "http://127.0.0.1:8000"))
