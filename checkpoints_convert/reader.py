"""A Hugging Face directory's weight files as lazy tensors: nothing is read before it is asked for."""

import math
import os
import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from headjax.errors import InputError, shown
from headjax.io import json_object, parse_json, read_json
from headjax.zoo import WEIGHT_FILES

# What safetensors calls a dtype. Weights are the first four; the rest is met in buffers.
DTYPES = {
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F32": np.dtype(np.float32),
    "F64": np.dtype(np.float64),
    "BOOL": np.dtype(np.bool_),
    **{f"{kind}{8 * size}": np.dtype(f"{kind.lower()}{size}") for kind in "IU" for size in (1, 2, 4, 8)},
}
FLOATS = frozenset(("F16", "BF16", "F32", "F64"))


@dataclass(frozen=True)
class Tensor:
    """One tensor of one file; `rows(start, stop)` reads those entries along its first axis."""

    name: str
    file: Path
    shape: tuple[int, ...]
    dtype: str
    rows: Callable[[int, int], np.ndarray]

    def read(self) -> np.ndarray:
        """All of it."""
        return self.rows(0, self.shape[0]) if self.shape else self.rows(0, 1).reshape(())

    def __str__(self) -> str:
        return f"{self.name} in {self.file.name}"


def open_tensors(directory: Path) -> tuple[list[Tensor], list[Path]]:
    """Every tensor of the checkpoint, one that two files hold twice; and the files that hold them.

    Of the usual names the first that exists counts, as in transformers.
    """
    for name in WEIGHT_FILES:
        if (directory / name).is_file():
            break
    else:
        raise InputError(f"{directory}: a checkpoint holds one of {', '.join(WEIGHT_FILES)}; this has none")
    first = directory / name
    files = _indexed_files(first) if first.suffix == ".json" else [first]
    open_file = _open_torch if files[0].suffix == ".bin" else _open_safetensors
    tensors = [tensor for file in files for tensor in open_file(file)]
    return tensors, sorted({first, *files})


def _indexed_files(index: Path) -> list[Path]:
    """The shards that an index names. They lie beside it: a path that leaves the directory is refused."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise InputError(f"{index}: weight_map must give every tensor's file")
    names, beside = sorted(set(weight_map.values())), set(os.listdir(index.parent))
    for name in names:
        if name != Path(name).name or name in ("", ".."):
            raise InputError(f"{index}: may name only files beside it; got {shown(name)}")
        if name not in beside:
            raise InputError(f"{index}: names {shown(name)}, which is missing")
    if not names:
        raise InputError(f"{index}: names no file")
    return [index.parent / name for name in names]


# --- safetensors --------------------------------------------------------------------------------------


def _open_safetensors(file: Path) -> list[Tensor]:
    """The format: header length (u64), header (JSON: name -> dtype, shape, data_offsets), data.

    The library checks the layout: known dtypes, and tensors that fill the file without a hole or an overlap.
    It is closed before anything is read: the pages of its memory map would count as this process's memory.
    """
    try:
        with safe_open(file, "numpy"), open(file, "rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            text = stream.read(length)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{file}: truncated or corrupt: {shown(error)}") from error
    if text[:1] != b"{":
        raise InputError(f"{file}: truncated or corrupt: the header must begin with {{; it does not")
    # Its header as we read it: it must not say two things, of which the library takes the last.
    header = json_object(parse_json(text, f"{file}, header"), f"{file}, header")
    header.pop("__metadata__", None)
    tensors = []
    for name, entry in header.items():
        fields = json_object(entry, f"{file}, header, {shown(name)}")
        dtype, shape, offset = fields["dtype"], tuple(fields["shape"]), fields["data_offsets"][0]
        if not isinstance(dtype, str):
            raise InputError(f"{file}, header, {shown(name)}: a dtype is text; got {shown(dtype)}")
        tensors.append(
            Tensor(name, file, shape, dtype, _reader(file, name, shape, dtype, 8 + length + offset))
        )
    return tensors


def _reader(
    file: Path, name: str, shape: tuple[int, ...], dtype: str, offset: int
) -> Callable[[int, int], np.ndarray]:
    def rows(start: int, stop: int) -> np.ndarray:
        row = math.prod(shape[1:])
        begin = offset + start * row * DTYPES[dtype].itemsize
        try:
            values = np.fromfile(file, DTYPES[dtype], count=(stop - start) * row, offset=begin)
        except OSError as error:
            raise InputError(f"{file}: cannot be read, in {name}: {error.strerror or error}") from error
        if values.size != (stop - start) * row:
            raise InputError(f"{file}: truncated while it was read, in {name}")
        return values.reshape(stop - start, *shape[1:])

    return rows


# --- torch's own format -------------------------------------------------------------------------------


def _open_torch(file: Path) -> list[Tensor]:
    """Memory-mapped, and only ever unpickled as weights: anything else in the file is refused by torch."""
    try:
        import torch
    except ImportError as error:
        raise InputError(f"{file}: a .bin file needs torch, which is not installed") from error
    try:
        state = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
        items = [(name, value) for name, value in state.items() if isinstance(value, torch.Tensor)]
    except Exception as error:  # torch raises several unrelated classes for a damaged or unsafe file
        reason = re.split(r"[\n.]", str(error) or type(error).__name__)[0]
        raise InputError(f"{file}: torch cannot load it as weights: {reason}") from error
    names = {
        torch.float16: "F16",
        torch.bfloat16: "BF16",
        torch.float32: "F32",
        torch.float64: "F64",
        torch.bool: "BOOL",
        torch.uint8: "U8",
        torch.int64: "I64",
    }

    def reader(value: torch.Tensor) -> Callable[[int, int], np.ndarray]:
        def rows(start: int, stop: int) -> np.ndarray:
            part = value.detach().reshape(value.shape or (1,))[start:stop].contiguous()
            if part.dtype == torch.bfloat16:
                return part.view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
            return part.numpy()

        return rows

    return [
        Tensor(name, file, tuple(value.shape), names.get(value.dtype, str(value.dtype)), reader(value))
        for name, value in items
    ]
