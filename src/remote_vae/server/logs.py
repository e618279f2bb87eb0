"""The log: lines of JSON on stderr, made of fields that are known to hold nothing of a request's content."""

import contextlib
import json
import logging
import sys
import traceback
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

FIELDS: Final = (
    *("request_id", "model", "route", "method", "status", "error"),
    *("ms", "bytes_in", "bytes_out", "plan", "cause", "exception", "frames"),
)  # what a record of ours may add
OURS: Final = ("remote_vae", "uvicorn")  # loggers whose messages are constant text until their values are put in
MOST_FRAMES: Final = 8  # of each exception
MOST_CAUSES: Final = 3


class JsonLines(logging.Formatter):
    """Writes one object a line.

    Of a message it writes the text before any value is put in. Of other libraries' messages it does not write even
    that, since the text might hold an address. Of an exception it writes the type and the frames, not the message.
    """

    def format(self, record: logging.LogRecord) -> str:
        ours = record.name.partition(".")[0] in OURS
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": str(record.msg).strip() if ours else f"a message of {record.name}",
        }
        line |= {name: getattr(record, name) for name in FIELDS if hasattr(record, name)}
        if record.exc_info and record.exc_info[1] is not None:
            line |= {"exception": type(record.exc_info[1]).__name__, "frames": _frames(record.exc_info[1])}
        return json.dumps(line)


class JsonHandler(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes, in place of a line that cannot be written, where that failed, and no word of the line.

    It never raises: if not even that can be written, because stderr is closed or missing, the line is dropped.
    """

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        failure = sys.exception() or RuntimeError()
        line = {"level": "error", "event": "a line of the log could not be written", "frames": _frames(failure)}
        with contextlib.suppress(Exception):  # boundary: nobody is left to tell
            self.stream.write(json.dumps({**line, "exception": type(failure).__name__}) + self.terminator)


def _frames(exc: BaseException, causes: int = MOST_CAUSES) -> list[str]:
    """The frames of an exception, followed by those of the exceptions that led to it."""
    trace = traceback.extract_tb(exc.__traceback__)[-MOST_FRAMES:]
    frames = [f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in trace]
    cause = exc.__cause__ or (None if exc.__suppress_context__ else exc.__context__)
    if cause is not None and causes:
        frames += [f"caused by {type(cause).__name__}", *_frames(cause, causes - 1)]
    return frames


def set_up_logs(*, requests: bool) -> None:
    """Sets the whole process' log up, other libraries' loggers too; `requests` adds a line for each request."""
    handler = JsonHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.basicConfig(handlers=[handler], level=logging.ERROR, force=True)
    for name in OURS:
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
    logging.getLogger("remote_vae").setLevel(logging.INFO if requests else logging.WARNING)
