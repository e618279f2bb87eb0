"""API keys, of which the server keeps only digests."""

import hmac
import re
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Final, Self

from remote_vae.errors import ConfigurationError

SHORTEST_KEY: Final = 16  # characters; `openssl rand -hex 16` gives 32

_KEY = re.compile(rf"[A-Za-z0-9._~-]{{{SHORTEST_KEY},256}}")


class Keys:
    """A set of keys that can say whether a key is one of them, but not which keys it holds."""

    def __init__(self, keys: Iterable[str] = ()) -> None:
        """*Raises* ConfigurationError for a key that is too short or has a character that a path would escape."""
        self._salt = secrets.token_bytes(32)
        self._digests = tuple(self.digest(_checked(key, number)) for number, key in enumerate(keys, 1))

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads keys with white space between them, and comments that begin with #. *Raises* ConfigurationError."""
        keys = [key for line in text.splitlines() for key in line.partition("#")[0].split()]
        if not keys:
            raise ConfigurationError("there is no key in what should hold keys; write one a line")
        return cls(keys)

    def __bool__(self) -> bool:
        return bool(self._digests)

    def digest(self, text: str) -> str:
        """The digest of a text, with a salt of this process: the digest means nothing outside of the process."""
        return hmac.digest(self._salt, text.encode(), "sha256").hex()

    def find(self, presented: str) -> str | None:
        """The digest of a known key, otherwise None. All keys are compared, so that the time does not tell which."""
        digest = self.digest(presented)
        same = [hmac.compare_digest(known, digest) for known in self._digests]
        return digest if any(same) else None


def _checked(key: str, number: int) -> str:
    if not _KEY.fullmatch(key):
        raise ConfigurationError(
            f"key number {number} cannot be used; a key has {SHORTEST_KEY} to 256 letters, digits, '.', '_', '~' or "
            "'-', like those of: openssl rand -hex 16"
        )
    return key


def read_keys(from_environment: Keys | None, file: Path | None) -> Keys:
    """The keys of the file or the environment. *Raises* ConfigurationError for both, or a file that cannot be read."""
    if file is None:
        return from_environment or Keys()
    if from_environment:
        raise ConfigurationError("keys come from a file and from the environment; give them in one place")
    try:
        return Keys.parse(file.read_text())
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigurationError(f"the file of keys {str(file)!r} cannot be read: {type(exc).__name__}") from exc
