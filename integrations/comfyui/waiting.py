"""Waiting for the server as ComfyUI expects it of a node: its progress bar moves, and Cancel works."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Any, Final, TypeVar

from remote_vae.client.watching import CallProgress, Tell

comfy: Any = None
try:
    import comfy.model_management
    import comfy.utils
except ImportError:  # the nodes run outside of ComfyUI, in tests and benchmarks
    pass

T = TypeVar("T")

LOOK_SECONDS: Final = 0.1
STEPS: Final = 1000  # of a bar


class Cancelled(Exception):
    """Ends the call in its own thread."""


def waited(work: Callable[[Tell], T]) -> T:
    """What `work` returns, which calls the server, and hands the function that it is given to the client as `progress`.

    The call has a thread of its own, so that Cancel ends the node at once, whatever the network does. The bar belongs
    to the node of this thread. *Raises* ComfyUI's exception after Cancel; then the server drops the job.
    """
    latest, over = [CallProgress()], threading.Event()

    def tell(progress: CallProgress) -> None:
        if over.is_set():
            raise Cancelled
        latest[0] = progress

    if comfy is None:
        return work(tell)
    found: Future[T] = Future()
    threading.Thread(target=_run, args=(found, work, tell), name="remote-vae-call", daemon=True).start()
    bar, shown = comfy.utils.ProgressBar(STEPS), 0
    try:
        while not wait([found], LOOK_SECONDS).done:
            comfy.model_management.throw_exception_if_processing_interrupted()
            steps = round(STEPS * (latest[0].share or 0))
            if steps != shown:
                bar.update_absolute(steps, STEPS)
                shown = steps
        return found.result()
    finally:
        over.set()


def _run(found: "Future[T]", work: Callable[[Tell], T], tell: Tell) -> None:
    try:
        found.set_result(work(tell))
    except BaseException as exc:  # noqa: BLE001  # boundary: it is raised where the result is waited for
        found.set_exception(exc)
