"""What is noted of one request, for the metrics, the log and the traces."""

import time
import uuid
from dataclasses import dataclass, field
from typing import Final

from starlette.types import Scope

RECORD: Final = "remote_vae.record"  # the record's name in the scope


@dataclass(slots=True)
class Record:
    """One request. The layers that answer it fill in what they learn. `stages` are seconds by name."""

    method: str
    request_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    call_id: str = ""  # of our clients, which a proxy does not replace as it may replace `request_id`
    route: str = "other"
    model: str = ""
    plan: str = ""
    error: str = ""
    status: int = 0
    received: int = 0
    sent: int = 0
    stages: dict[str, float] = field(default_factory=dict)
    started: float = field(default_factory=time.perf_counter)

    @property
    def seconds(self) -> float:
        """The time since the request's head was complete."""
        return time.perf_counter() - self.started


def record_of(scope: Scope) -> Record:
    """The request's record. A request that has none yet gets one, so that an early error has a request id too."""
    if RECORD not in scope:
        scope[RECORD] = Record(scope["method"])
    record: Record = scope[RECORD]
    return record
