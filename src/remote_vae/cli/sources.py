"""The pictures of a bulk encode: those in folders, those that a pattern finds, and those in tar files."""

import glob
import os
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from remote_vae.errors import ConfigurationError, InvalidImage

# In a folder or tar other files are no pictures; a file that is named or found by a pattern is always tried.
SUFFIXES: Final = (
    *(".png", ".jpg", ".jpeg", ".jfif", ".webp", ".avif", ".gif", ".bmp"),
    *(".tif", ".tiff", ".heic", ".heif", ".jp2", ".jxl", ".ppm", ".tga"),
)
WILD: Final = "*?["
TAR: Final = ".tar"
PACKED: Final = (".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst", ".zip", ".7z", ".rar")


@dataclass(frozen=True, slots=True)
class Source:
    """A picture; `name` is its path below its folder, pattern or tar, and `changed` is its time in nanoseconds."""

    name: str
    place: str  # for people
    size: int
    changed: int
    read: Callable[[], bytes]

    @property
    def stem(self) -> str:
        return str(PurePosixPath(self.name).with_suffix(""))


def find_sources(words: Sequence[str]) -> list[Source]:
    """The pictures that the words name, sorted within each word; *raises* ConfigurationError if there are none."""
    found = [source for word in words for source in _of_word(word)]
    if not found:
        raise ConfigurationError(
            f"there are no pictures in {', '.join(words)}; in folders and tars those ending in "
            f"{' '.join(SUFFIXES)} are found"
        )
    return found


def _of_word(word: str) -> Iterator[Source]:
    path = Path(word)
    if path.is_dir():
        yield from _of_folder(path)
    elif word.lower().endswith(PACKED):
        raise ConfigurationError(
            f"{word} is compressed, and pictures in it cannot be found quickly; unpack it, or make a .tar"
        )
    elif path.is_file():
        yield from _of_tar(path) if path.suffix.lower() == TAR else [_of_file(path, path.name)]
    elif any(mark in word for mark in WILD):
        yield from _of_pattern(word)
    else:
        raise ConfigurationError(f"there is no file or folder {word}")


def _of_folder(folder: Path) -> Iterator[Source]:
    def complain(error: OSError) -> None:
        raise ConfigurationError(f"{error.filename} cannot be read: {error.strerror}") from error

    for place, folders, names in os.walk(folder, onerror=complain):
        folders.sort()
        for name in sorted(names):
            path = Path(place, name)
            if path.suffix.lower() in SUFFIXES:
                yield _of_file(path, path.relative_to(folder).as_posix())


def _of_pattern(word: str) -> Iterator[Source]:
    """Files and tars; names begin below the last folder before the first mark."""
    base = Path(word[: min(word.find(mark) for mark in WILD if mark in word)] + "x").parent
    for name in sorted(glob.glob(word, recursive=True)):
        path = Path(name)
        if path.suffix.lower() == TAR:
            yield from _of_tar(path)
        elif path.is_file():
            yield _of_file(path, path.relative_to(base).as_posix())


def _of_file(path: Path, name: str) -> Source:
    try:
        status = path.stat()
        size, changed = status.st_size, status.st_mtime_ns
    except OSError:  # a link to nothing, which is told when it is read
        size, changed = 0, 0
    return Source(name, str(path), size, changed, lambda: _read_file(path))


def _read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as exc:
        raise InvalidImage(f"it cannot be read: {exc.strerror or exc}") from exc


def _of_tar(path: Path) -> Iterator[Source]:
    """The pictures of a tar, which are read where they stand in it; *raises* ConfigurationError for a broken one."""
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                if member.isreg() and PurePosixPath(member.name).suffix.lower() in SUFFIXES:
                    yield _of_member(path, member)
    except (tarfile.TarError, OSError) as exc:
        raise ConfigurationError(f"{path} is not a whole tar file: {exc}") from exc


def _of_member(path: Path, member: tarfile.TarInfo) -> Source:
    start, size = member.offset_data, member.size

    def read() -> bytes:
        try:
            with path.open("rb") as file:
                file.seek(start)
                data = file.read(size)
        except OSError as exc:
            raise InvalidImage(f"it cannot be read: {exc.strerror or exc}") from exc
        if len(data) < size:
            raise InvalidImage(f"the tar ends within it, after {len(data)} of {size} bytes")
        return data

    return Source(member.name, f"{path}: {member.name}", size, int(member.mtime * 1e9), read)
