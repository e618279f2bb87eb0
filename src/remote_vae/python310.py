"""Names of newer Pythons that the client needs, for Python 3.10, which tools with a Python of their own still have."""

import asyncio
import sys

if sys.version_info >= (3, 11):
    from asyncio import Runner, timeout
    from datetime import UTC
    from enum import StrEnum
    from typing import Self, Unpack
else:
    from collections.abc import AsyncIterator
    from contextlib import asynccontextmanager
    from datetime import timezone
    from enum import Enum

    from anyio import fail_after
    from typing_extensions import Self, Unpack

    UTC = timezone.utc

    class StrEnum(str, Enum):
        __str__ = str.__str__

    @asynccontextmanager
    async def _timeout(delay: float | None) -> AsyncIterator[None]:
        with fail_after(delay):
            yield

    timeout = _timeout  # what reads the sources for the documentation takes no function of an imported name

    class Runner:
        """An event loop that ends with the context."""

        def __enter__(self) -> Self:
            self._loop = asyncio.new_event_loop()
            return self

        def get_loop(self) -> asyncio.AbstractEventLoop:
            return self._loop

        def __exit__(self, *_: object) -> None:
            for end in (_cancel_others, self._loop.shutdown_asyncgens, self._loop.shutdown_default_executor):
                self._loop.run_until_complete(end())
            self._loop.close()

    async def _cancel_others() -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)


__all__ = ["UTC", "Runner", "Self", "StrEnum", "Unpack", "timeout"]
