"""A Hugging Face directory that is read as it is used: nothing is converted, nothing is kept.

The tables of a conversion match every tensor, by name and shape from the files' headers, and all faults are
reported as there. Bodies are read when they are needed.
"""

import hashlib
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Int

from checkpoints_convert.engine import Source
from headjax import zoo
from headjax.config import ModelConfig
from headjax.errors import InputError


class HuggingFace:
    """The parameters in a model's Hugging Face files (see `headjax.parameters.Parameters`).

    Raises InputError for files that do not fit each other, as the converter does, and while reading once a
    file is not what it was when it was opened.
    """

    def __init__(self, opened: Source, origin: zoo.Source | None = None, config: ModelConfig | None = None):
        """`origin` is what the model is known by, `config` its own unless given with other settings of how to
        compute."""
        self._source = opened
        self._origin = origin or zoo.Source(opened.directory, str(opened.directory), None)
        self.config = opened.config if config is None else config
        self._states = {file: _state(file) for file in opened.files}

    @cached_property
    def provenance(self) -> dict[str, Any]:
        """As of a conversion; of large weight files the header is hashed alone."""
        tokenizer = (self._source.directory / name for name in zoo.TOKENIZER_FILES)
        files = [*self._source.files, *(file for file in tokenizer if file.is_file())]
        return {
            "source": self._origin.id,
            "revision": self._origin.revision,
            "files": {file.name: _describe(file) for file in files},
            **self._source.ignored,
        }

    def read(
        self, names: Iterable[str], layer: int | None = None, dtype: DTypeLike | None = None
    ) -> dict[str, Array]:
        opened = self._source if dtype is None else self._source.with_dtype(np.dtype(dtype))
        # One tensor at a time, so that the host holds one more than the device.
        of_tensors: dict[Any, list[str]] = {}
        for name in names:
            filling = opened.fillings.get((name, layer))
            of_tensors.setdefault(name if filling is None else filling.tensor.name, []).append(name)
        arrays = {}
        for together in of_tensors.values():
            read = opened.read(together, layer)
            arrays |= {name: jnp.asarray(array) for name, array in read.items()}
        self._check_unchanged()
        return arrays

    def rows(self, name: str, ids: Int[np.ndarray, "..."]) -> Array:
        tensor = self._source.fillings[name, None].tensor
        if ids.size >= self.config.vocab_size:
            return self.read((name,))[name][ids].astype(jnp.float32)
        rows = [tensor.rows(i, i + 1) for i in ids.ravel().tolist()]
        found = np.concatenate(rows).astype(np.float32).reshape(*ids.shape, -1)
        if not np.isfinite(found).all():
            raise InputError(f"{tensor.file}: weights must be finite; {tensor.name} has others")
        self._check_unchanged()
        return jnp.asarray(found)

    def _check_unchanged(self) -> None:
        for file, state in self._states.items():
            if _state(file) != state:
                raise InputError(f"{file}: a checkpoint must stay as it is while it is read; it changed")


def _describe(file: Path) -> dict[str, Any]:
    size, mtime_ns = _state(file)
    with open(file, "rb") as stream:
        if file.suffix == ".safetensors":
            length = int.from_bytes(stream.read(8), "little")
            digest = {"header_sha256": hashlib.sha256(stream.read(length)).hexdigest()}
        elif file.suffix == ".bin":
            digest = {}
        else:
            digest = {"sha256": hashlib.file_digest(stream, "sha256").hexdigest()}
    return {**digest, "size": size, "mtime_ns": mtime_ns}


def _state(file: Path) -> tuple[int, int]:
    try:
        status = file.stat()
    except OSError as error:
        raise InputError(f"{file}: a checkpoint must stay as it is while it is read; it is gone") from error
    return status.st_size, status.st_mtime_ns
