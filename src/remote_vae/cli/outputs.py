"""Where a bulk encode writes its latents: a folder with a file for each, or one tar."""

import os
import tarfile
from pathlib import Path
from typing import Final, Protocol

from remote_vae.cli.manifest import Record, digest_of
from remote_vae.errors import ConfigurationError

MANIFEST: Final = "latents.jsonl"
UNFINISHED: Final = ".part"
BLOCK: Final = tarfile.BLOCKSIZE


class Output(Protocol):
    """A place for latents, with its manifest beside or in it."""

    manifest: Path
    replaces: bool  # whether a latent can be written a second time in the place of the first

    def resume(self, records: list[Record]) -> set[str]:
        """The pictures, of these records in the order of writing, whose latents are there and right."""

    def put(self, name: str, data: bytes) -> Record:
        """Writes a latent whole or not at all; returns what its record says about the place."""

    def finish(self) -> None:
        """All latents are there."""

    def close(self) -> None: ...


class Folder:
    """A file for each latent; a file has its name only when it is whole."""

    replaces = True

    def __init__(self, path: Path) -> None:
        self._path, self.manifest = path, path / MANIFEST
        _make(path)

    def resume(self, records: list[Record]) -> set[str]:
        return {record["file"] for record in records if self._is_right(record)}

    def put(self, name: str, data: bytes) -> Record:
        path = self._path / name
        beside = path.with_name(path.name + UNFINISHED)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            beside.write_bytes(data)
            os.replace(beside, path)
        except OSError as exc:
            raise ConfigurationError(f"{path} cannot be written: {exc.strerror or exc}") from exc
        return {}

    def finish(self) -> None: ...

    def close(self) -> None: ...

    def _is_right(self, record: Record) -> bool:
        path = self._path / record["latent"]
        try:
            size = path.stat().st_size
            return bool(size == record["bytes"] and digest_of(path.read_bytes()) == record["sha256"])
        except OSError:
            return False


class Tar:
    """One tar, as WebDataset reads it. It is written beside its place and gets its name when all latents are there.

    A latent is at the place that its record names. What comes after the last right one is cut off and written again.
    """

    replaces = False

    def __init__(self, path: Path) -> None:
        self._path, self._beside = path, path.with_name(path.name + UNFINISHED)
        self.manifest = path.with_name(path.name + ".jsonl")
        _make(path.parent)
        if path.exists() and not self.manifest.exists():
            raise ConfigurationError(f"{path} is there already, without {self.manifest}; choose another output")
        try:
            if path.exists():
                os.replace(path, self._beside)
            self._file = self._beside.open("r+b" if self._beside.exists() else "w+b")
        except OSError as exc:
            raise ConfigurationError(f"{path} cannot be written: {exc.strerror or exc}") from exc

    def resume(self, records: list[Record]) -> set[str]:
        right, end = set[str](), 0
        for record in records:
            self._file.seek(record["offset"])
            data = self._file.read(record["bytes"])
            if record["offset"] < end or digest_of(data) != record["sha256"]:
                break
            right.add(record["file"])
            end = record["offset"] + _padded(record["bytes"])
        self._file.truncate(end)
        self._file.seek(end)
        return right

    def put(self, name: str, data: bytes) -> Record:
        head = tarfile.TarInfo(name)
        head.size = len(data)
        block = head.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")
        offset = self._file.tell() + len(block)
        try:
            self._file.write(block + data + bytes(_padded(len(data)) - len(data)))
            self._file.flush()
        except OSError as exc:
            raise ConfigurationError(f"{self._beside} cannot be written: {exc.strerror or exc}") from exc
        return {"offset": offset}

    def finish(self) -> None:
        self._file.write(bytes(2 * BLOCK))
        self._file.close()
        os.replace(self._beside, self._path)

    def close(self) -> None:
        self._file.close()


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise ConfigurationError(f"{folder} cannot be made: {exc.strerror or exc}") from exc
