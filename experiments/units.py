"""The finished parts of a run, kept on disk, so that a run that was killed goes on where it was.

A unit is what one step of a sweep gave (a layer's hits, a batch's metrics, an analysis' grids) and
what it was computed by: the record of a run that goes on is whole (kernels/dispatch.py). Its file takes
its name only when it is whole, and begins with the digest of what follows: a file that a power cut has
damaged counts as absent. No pickle: reading a unit runs no code that it brings along.

    sha256 of the rest | length of the JSON, 8 bytes | JSON: the value without arrays' bytes | their bytes
"""

import dataclasses
import hashlib
import importlib
import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from headjax.analyses.registry import ANALYSES
from headjax.engine.batches import Remember
from headjax.engine.mesh import check_alike, is_first_process
from headjax.errors import InputError
from headjax.io import atomic_write
from headjax.kernels import dispatch

SUFFIX = ".unit"


class Units:
    """The units of one run in a directory of their own; what earlier starts left is read at once.

    Of several processes the first one writes, and all read the same: they must agree on what is computed.
    Raises InputError where they do not find the same.

    Attributes:
      n_found: how many units earlier starts of the run left whole.
    """

    def __init__(self, directory: Path):
        self.directory = directory
        self._found = {}
        for file in sorted(directory.glob(f"*{SUFFIX}")):
            content = file.read_bytes()
            if is_whole(content):
                self._found[file.stem] = content
        found = hashlib.sha256(b"".join(content[:32] for content in self._found.values()))
        check_alike(f"finished units in {directory}, on a disk that they share", found.digest)
        self._asked: Counter[str] = Counter()
        self.n_found = len(self._found)

    def within(self, scope: str) -> Remember:
        """`remember` (see headjax/engine/batches.py) for one part of the run."""

        def remember(name: str, compute: Callable[[], Any]) -> Any:
            name = f"{scope}, {name}"
            # A run asks in the same order every time it is started, so a name may come up more than once.
            self._asked[name] += 1
            if self._asked[name] > 1:
                name += f" ~{self._asked[name]}"
            stem = hashlib.sha256(name.encode()).hexdigest()[:32]  # a name may be too long for a file's
            if stem in self._found:
                value, ran = unpack(self._found[stem])
                for choice in ran:
                    dispatch.note(*choice)
                return value
            with dispatch.recording() as ran:
                value = compute()
            if is_first_process():
                self._store(stem, pack((value, [tuple(choice) for choice in sorted(ran)])))
            return value

        return remember

    def _store(self, stem: str, content: bytes) -> None:
        try:
            with atomic_write(self.directory / (stem + SUFFIX), "wb") as file:
                file.write(content)
        except InputError as error:
            raise InputError(f"{error}; what is finished is kept: start the same run again") from error

    def discard(self) -> None:
        """Removes them all, and the directory above if nothing else is in it."""
        shutil.rmtree(self.directory, ignore_errors=True)
        if self.directory.parent.is_dir() and not any(self.directory.parent.iterdir()):
            self.directory.parent.rmdir()


def pack(value: Any) -> bytes:
    """A value of arrays, numbers, text and None in tuples, lists, dicts, NamedTuples and dataclasses."""
    arrays: list[bytes] = []
    text = json.dumps(_describe(value, arrays)).encode()
    content = len(text).to_bytes(8, "little") + text + b"".join(arrays)
    return hashlib.sha256(content).digest() + content


def is_whole(packed: bytes) -> bool:
    """Whether these are the bytes that `pack` gave."""
    return hashlib.sha256(packed[32:]).digest() == packed[:32]


def unpack(packed: bytes) -> Any:
    """The value again, bit for bit."""
    end = 40 + int.from_bytes(packed[32:40], "little")
    # Our own text under its digest, with NaN among its numbers: not the reader of users' files.
    return _restore(json.loads(packed[40:end]), memoryview(packed), [end])


def _describe(value: Any, arrays: list[bytes]) -> Any:
    """The value as JSON, its arrays' bytes put aside in order."""

    def each(values: Any) -> list:
        return [_describe(one, arrays) for one in values]

    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.ndarray):
        arrays.append(value.tobytes())
        return {"dtype": value.dtype.name, "shape": value.shape}
    if isinstance(value, list):
        return each(value)
    if isinstance(value, dict):
        return {"keys": each(value), "values": each(value.values())}
    if dataclasses.is_dataclass(value):
        fields = [getattr(value, field.name) for field in dataclasses.fields(value)]
        return {"class": _name(type(value)), "fields": each(fields)}
    if isinstance(value, tuple):
        return {"class": _name(type(value)) if hasattr(value, "_fields") else None, "fields": each(value)}
    raise TypeError(f"a unit cannot hold a {type(value).__name__}")


def _restore(described: Any, content: memoryview, place: list[int]) -> Any:
    """What `_describe` was given; `place` is where the next array begins."""

    def each(values: list) -> list:
        return [_restore(one, content, place) for one in values]

    if isinstance(described, list):
        return each(described)
    if not isinstance(described, dict):
        return described
    if "dtype" in described:
        array = np.empty(described["shape"], np.dtype(described["dtype"]))
        begin, place[0] = place[0], place[0] + array.nbytes
        array.reshape(-1).view(np.uint8)[:] = np.frombuffer(content[begin : place[0]], np.uint8)
        return array
    if "keys" in described:
        keys = each(described["keys"])
        return dict(zip(keys, each(described["values"]), strict=True))
    fields = each(described["fields"])
    return _class(described["class"])(*fields) if described["class"] else tuple(fields)


def _name(kind: type) -> str:
    return f"{kind.__module__}:{kind.__qualname__}"


def _class(name: str) -> type:
    """A class of ours that holds values and does nothing else."""
    rows = (row for analysis in ANALYSES.values() for row in analysis.reads_tables.values())
    if own := next((row for row in rows if _name(row) == name), None):  # an analysis may come from anywhere
        return own
    module, _, qualname = name.partition(":")
    if module.startswith("headjax."):
        found = getattr(importlib.import_module(module), qualname)
        if isinstance(found, type) and (dataclasses.is_dataclass(found) or hasattr(found, "_fields")):
            return found
    raise InputError(f"a unit may hold only headjax's own classes of values; got {name}")
