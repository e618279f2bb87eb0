"""The program that reads pictures, with a reader that misbehaves as the first bytes of the file ask."""

import os
import time
from typing import Any

import numpy as np

from remote_vae.errors import TooLarge
from remote_vae.media.images import ReadPicture
from remote_vae.server import reading


def read_image(data: memoryview, *, max_pixels: int, **_: Any) -> ReadPicture:
    order = bytes(data[:5])
    if order == b"large" and max_pixels < 2**22:
        raise TooLarge("the picture is large")
    if order == b"sleep":
        time.sleep(60)
    if order == b"eat  ":
        np.zeros(2**31, np.uint8)
    if order == b"die  ":
        os._exit(1)
    if order == b"raise":
        raise RuntimeError(bytes(data))
    while order == b"spin ":
        pass
    return ReadPicture(np.full((8, 8, 3), data[5], np.uint8), str(os.getpid()))


if __name__ == "__main__":
    reading.read_image = read_image  # type: ignore[assignment]
    reading.main()
