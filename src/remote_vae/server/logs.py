"""Logs as lines of JSON on stderr, made of fields that are known to hold nothing of a request's content."""

import json
import logging
import sys
import traceback
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Final

FIELDS: Final = (
    "request_id",
    "model",
    "route",
    "method",
    "status",
    "error",
    "ms",
    "bytes_in",
    "bytes_out",
    "plan",
    "cause",
)  # what a record of ours may add
OURS: Final = ("remote_vae", "uvicorn")  # loggers whose messages are constant text until their values are put in
FRAMES: Final = 8


class JsonLines(logging.Formatter):
    """One object a line.

    Of a message it writes the text before any value is put in, of other libraries' not even that, since it might hold
    an address; of an exception its type and where it came from, but not what it says.
    """

    def format(self, record: logging.LogRecord) -> str:
        ours = record.name.partition(".")[0] in OURS
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": str(record.msg).strip() if ours else f"a message of {record.name}",
        }
        line |= {name: getattr(record, name) for name in FIELDS if hasattr(record, name)}
        if record.exc_info and record.exc_info[0] is not None:
            line |= {"exception": record.exc_info[0].__name__, "frames": _frames(record.exc_info[2])}
        return json.dumps(line)


def _frames(trace: TracebackType | None) -> list[str]:
    found = traceback.extract_tb(trace)[-FRAMES:]
    return [f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in found]


def set_up_logs(*, requests: bool) -> None:
    """For the whole process, other libraries' loggers too; `requests` adds a line for each request."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.basicConfig(handlers=[handler], level=logging.ERROR, force=True)
    for name in OURS:
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
    logging.getLogger("remote_vae").setLevel(logging.INFO if requests else logging.WARNING)
