"""What the nodes leave out of ComfyUI's log."""

import logging
import sys
from urllib.parse import urlsplit

from remote_vae.errors import RemoteVAEError


class WithoutTraceback(logging.Filter):
    """ComfyUI logs an error's message and then its traceback, which says nothing more of an error with a sentence."""

    def filter(self, record: logging.LogRecord) -> bool:
        is_known = isinstance(sys.exc_info()[1], RemoteVAEError)
        return not (is_known and str(record.msg).startswith("Traceback"))


def set_up() -> None:
    """Once, when ComfyUI loads the nodes."""
    logging.getLogger("httpx2").setLevel(logging.WARNING)  # below, it logs every address, and some hold a key
    root = logging.getLogger()  # to which ComfyUI logs
    if not any(isinstance(each, WithoutTraceback) for each in root.filters):
        root.addFilter(WithoutTraceback())


def host_of(url: str) -> str:
    """The address as it may be shown: path, query and the part before the @ can hold a key."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "the server"
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}" if host else "the server"
