"""What a JPEG may ask of the imaging library: few bytes can make it go over all pixels again, thousands of times."""

import re
from typing import Final

from remote_vae.errors import InvalidImage
from remote_vae.values import Buffer

MOST_SCANS: Final = 200  # progressive encoders write about ten
MOST_MARKERS: Final = 5_000  # 64 MiB of metadata in the longest segments have 1,024
MARKER: Final = re.compile(rb"\xff([^\x00\xd0-\xd7\xff])")  # in a scan, neither a byte of it nor a restart
SCAN: Final = 0xDA
ALONE: Final = frozenset((0x01, *range(0xD0, 0xD9)))  # markers that no length follows
END: Final = 0xD9


def check_markers(data: Buffer) -> None:
    """*Raises* InvalidImage for more scans or markers than a picture needs."""
    scans = at = 0
    for count in range(MOST_MARKERS + 1):
        found = MARKER.search(data, at)
        if found is None or found[1][0] == END:
            return
        scans += found[1][0] == SCAN
        if scans > MOST_SCANS or count == MOST_MARKERS:
            what, limit = ("scans", MOST_SCANS) if scans > MOST_SCANS else ("markers", MOST_MARKERS)
            raise InvalidImage(
                f"the JPEG picture has more than {limit} {what}; save it again and send that", limit=limit
            )
        at = found.end()
        if found[1][0] not in ALONE:
            at += int.from_bytes(bytes(memoryview(data)[at : at + 2]))
