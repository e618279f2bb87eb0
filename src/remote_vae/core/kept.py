"""Results that are kept because they take long: the last ones that were asked for."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Final, Generic, TypeVar

T = TypeVar("T")
MOST: Final = 64


class Kept(Generic[T]):
    def __init__(self) -> None:
        self._found: OrderedDict[Hashable, T] = OrderedDict()

    def find(self, key: Hashable, make: Callable[[], T]) -> T:
        """What was made for this key, or is made now."""
        if key not in self._found:
            self._found[key] = make()
            if len(self._found) > MOST:
                self._found.popitem(last=False)
        self._found.move_to_end(key)
        return self._found[key]
