"""The manifest of a bulk encode: one line of JSON for the run, and one for each latent that is written.

A line is appended after its latent has been written, so what the manifest names was whole. A run that is killed leaves
at most a latent without a line, and half a line at the end, which the next run cuts off.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from remote_vae.cli.sources import Source
from remote_vae.errors import ConfigurationError, InvalidImage

VERSION: Final = 1
Record = dict[str, Any]


def digest_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def is_of(record: Record, source: Source) -> bool:
    """Whether the record's picture is still that of the source, which is read only if its time has changed."""
    if record["source_bytes"] != source.size or record["source_changed"] == source.changed:
        return bool(record["source_bytes"] == source.size)
    with suppress(InvalidImage):  # which is told when the picture's turn comes
        return bool(record["source_sha256"] == digest_of(source.read()))
    return False


class Manifest:
    """The records of an output by the name of their picture, and the file they stand in.

    *Raises* ConfigurationError for a manifest of other settings, whose latents must not be mixed with these, and for
    one that cannot be read.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path, self.records = path, dict[str, Record]()
        self._settings = {"manifest": VERSION, **settings}
        try:
            self._file = path.open("ab+")
            lines = self._whole_lines()
            if not lines:
                self._append(self._settings)
        except OSError as exc:
            raise ConfigurationError(f"{path} cannot be written: {exc.strerror or exc}") from exc
        try:
            for number, line in enumerate(lines, 1):
                self._take(number, line)
        except ConfigurationError:
            self.close()
            raise

    def add(self, record: Record) -> None:
        """Appends a record at once; the operating system keeps it even if this process is killed."""
        self._append(record)
        self.records[record["file"]] = record

    def keep(self, names: set[str]) -> None:
        """Forgets all records but these; the file is written beside the old one and takes its place."""
        if names >= self.records.keys():
            return
        self.records = {name: record for name, record in self.records.items() if name in names}
        beside = self.path.with_name(self.path.name + ".part")
        beside.write_bytes(b"".join(map(_line, (self._settings, *self.records.values()))))
        self._file.close()
        os.replace(beside, self.path)
        self._file = self.path.open("ab+")

    def close(self) -> None:
        self._file.close()

    def _append(self, record: Mapping[str, Any]) -> None:
        self._file.write(_line(record))
        self._file.flush()

    def _whole_lines(self) -> list[bytes]:
        self._file.seek(0)
        data = self._file.read()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            self._file.truncate(whole)
        return data[:whole].splitlines()

    def _take(self, number: int, line: bytes) -> None:
        try:
            found = json.loads(line)
            if number > 1:
                self.records[found["file"]] = found
                return
            there = dict(found)
        except (ValueError, KeyError, TypeError) as exc:
            raise ConfigurationError(
                f"line {number} of {self.path} is not one of a manifest; choose another output, or delete this one"
            ) from exc
        asked = json.loads(_line(self._settings))
        other = [
            f"{name}={there.get(name)!r}, and not {asked.get(name)!r}"
            for name in (asked | there)
            if there.get(name) != asked.get(name)
        ]
        if other:
            raise ConfigurationError(
                f"the latents of {self.path} were made with {'; '.join(other)}; give the same settings, or choose "
                "another output"
            )


def _line(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"
