"""Previews during a generation: a small model on a server decodes the intermediate latents."""

import logging
import threading
import time
from collections.abc import Callable
from typing import Any, Final

from PIL import Image

from remote_vae.client.clients import Client
from remote_vae.client.latents import AnyTensor, copy_of, is_torch
from remote_vae.client.network import PathText
from remote_vae.client.one_process import OneProcess
from remote_vae.protocol.options import DecodeArguments
from remote_vae.python310 import Self, Unpack

SHARE: Final = 0.02  # of one core at most, so that previews hardly slow the pipeline down
SECONDS: Final = 10.0  # a preview that takes longer is useless

_log = logging.getLogger(__name__)


class Previews(OneProcess):
    """A `callback_on_step_end` for diffusers' pipelines; see `preview_callback`.

    `shown` and `dropped` count steps; `error` is the last error because of which a preview is missing.
    """

    def __init__(
        self, client: Client, show: Callable[[int, Image.Image], object], options: DecodeArguments, *, share: float
    ) -> None:
        super().__init__()
        self.shown = self.dropped = 0
        self.error: Exception | None = None
        self._client, self._show, self._options, self._share = client, show, options, share
        self._wake = threading.Condition()
        self._next: tuple[int, AnyTensor] | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="remote-vae-previews", daemon=True)
        self._thread.start()

    def __call__(
        self, pipeline: object, step: int, timestep: object, callback_kwargs: dict[str, Any]
    ) -> dict[str, Any]:
        """Leaves the step's latents for the thread, and drops an earlier step's latents that still wait."""
        self.check_process()
        latents = callback_kwargs["latents"]
        # A copy on the latents' device, so that the pipeline does not wait for a GPU.
        held = latents.detach().clone() if is_torch(latents) else copy_of(latents)
        with self._wake:
            self.dropped += self._next is not None
            self._next = step, held
            self._wake.notify()
        return callback_kwargs

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Drops latents that wait, finishes the present preview, and ends the thread; nothing is shown afterwards."""
        with self._wake:
            self.dropped += self._next is not None
            self._next, self._closed = None, True
            self._wake.notify()
        self._thread.join()
        self._client.close()

    def _work(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._closed or self._next is not None)
                if self._closed or self._next is None:
                    return
                (step, latents), self._next = self._next, None
            before = time.thread_time()
            self._preview(step, latents)
            rest = (time.thread_time() - before) / self._share
            with self._wake:
                self._wake.wait_for(lambda: self._closed, timeout=rest)

    def _preview(self, step: int, latents: AnyTensor) -> None:
        try:
            self._show(step, self._client.decode(latents, **self._options))
            self.shown += 1
        except Exception as exc:  # noqa: BLE001  # boundary: a failed preview must not end the generation
            if self.error is None:
                _log.warning("no preview of step %d: %s; further ones are tried without a word", step, exc)
            self.error = exc


def preview_callback(
    endpoint: str,
    show: Callable[[int, Image.Image], object],
    *,
    token: str | None = None,
    ca_file: PathText | None = None,
    share: float = SHARE,
    **options: Unpack[DecodeArguments],
) -> Previews:
    """`pipe(..., callback_on_step_end=preview_callback(url, show, model="taesd"))`: a picture now and then.

    `show(step, image)` is called in a thread. After each preview the thread rests until previews have used at most
    `share` of one core, and then decodes the newest latents. Only the first failure is logged. The model should be a
    small one, such as taesd. `options` are those of `Client.decode`, with do_scaling=True as their default; packed
    latents need height and width. Close the callback, or use it as a context, when the pipeline is done.
    *Raises* InvalidValue, ConfigurationError.
    """
    given: DecodeArguments = {"do_scaling": True, "image_format": "jpg", **options}
    client = Client(endpoint, token=token, timeout=SECONDS, retries=1, ca_file=ca_file)
    return Previews(client, show, given, share=share)
