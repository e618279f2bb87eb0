"""Objects with a thread or tasks: they cannot leave the process in which they were made."""

import os
import pickle
from typing import NoReturn


class OneProcess:
    """Refuses, in a sentence, to be pickled or copied, and to work in a forked process, which has no other threads."""

    def __init__(self) -> None:
        self._made_in = os.getpid()

    def check_process(self) -> None:
        """*Raises* RuntimeError in another process than the one in which this was made."""
        if self._made_in != os.getpid():
            raise RuntimeError(f"this {type(self).__name__} was made before a fork; make another one in each process")

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise pickle.PicklingError(
            f"a {type(self).__name__} has work under way and cannot be pickled or copied; make another one, with the "
            "same address, where it is needed"
        )
