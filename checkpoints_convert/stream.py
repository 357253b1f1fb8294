"""A Hugging Face directory that is read as it is used: nothing is converted, nothing is kept.

The tables of a conversion match every tensor, by name and shape from the files' headers, and all faults are
reported as there. Bodies are read when they are needed, a layer ahead.
"""

import hashlib
from collections.abc import Callable, Iterable
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from checkpoints_convert.engine import Source
from checkpoints_convert.reader import Tensor
from headjax import zoo
from headjax.analyses.relation_scores import LAYER, Weights, first_mlp_names
from headjax.config import ModelConfig
from headjax.engine.hits import token_rows
from headjax.errors import InputError
from headjax.model import first_mlp
from headjax.parameters.layered import LayeredModel, layered_model
from headjax.parameters.read_ahead import read_ahead


class TokenRows:
    """A tensor [V D] of which only the rows that are asked for are read: ``rows[ids]`` is [N D]."""

    def __init__(self, tensor: Tensor):
        self.tensor = tensor

    def __getitem__(self, ids: np.ndarray) -> Array:
        rows = np.concatenate([self.tensor.rows(i, i + 1) for i in ids.tolist()]).astype(np.float32)
        if not np.isfinite(rows).all():
            raise InputError(f"{self.tensor.file}: weights must be finite; {self.tensor.name} has others")
        return jnp.asarray(rows)


def relation_weights(source: Source, config: ModelConfig) -> Weights:
    """What static scores need of a checkpoint: of everything else only names and shapes are read.

    Embeddings of the run's own sources, the unembedding, the first block's MLP with its norm if it is asked
    for, and W_V and W_O of each layer, in the file's dtype until a layer is used.
    """
    read = parameter_reader(source)
    unembed = "embed.W_E" if config.tied_embeddings else "unembed.rows"
    rows = token_rows(source.read((unembed,))[unembed])

    def mlp_output(x: Array) -> Array:
        norm, mlp = first_mlp(config, parameter_reader(source, jnp.float32)(first_mlp_names(config), 0))
        return mlp(norm(x))

    layers = map(itemgetter(*LAYER), read_ahead(partial(read, LAYER), range(config.n_layers)))
    embedding = TokenRows(source.fillings["embed.W_E", None].tensor)
    return Weights(embedding, mlp_output, rows, layers)


def layered_source(source: Source, config: ModelConfig, dtype: DTypeLike) -> LayeredModel:
    """A checkpoint that is read layer by layer, for forward sweeps."""
    return layered_model(config, parameter_reader(source, dtype))


def parameter_reader(
    source: Source, dtype: DTypeLike | None = None
) -> Callable[[Iterable[str], int | None], dict[str, Array]]:
    """``read(names, layer)``: name -> array on the device, in `dtype` or as stored; layer None: outside them.

    Parameters are read one at a time, so that the host holds one more than the device. Raises InputError,
    as `Source.read` does, and once a file is not what it was when this was called.
    """
    states = {file: _state(file) for file in source.files}
    opened = source if dtype is None else source.with_dtype(np.dtype(dtype))

    def read(names: Iterable[str], layer: int | None) -> dict[str, Array]:
        arrays = {name: jnp.asarray(opened.read((name,), layer)[name]) for name in names}
        for file, state in states.items():
            if _state(file) != state:
                raise InputError(f"{file}: a checkpoint must stay as it is while it is read; it changed")
        return arrays

    return read


def source_provenance(origin: zoo.Source, source: Source) -> dict[str, Any]:
    """Where the numbers come from, as of a conversion; of large weight files the header is hashed alone."""
    tokenizer = (origin.directory / name for name in zoo.TOKENIZER_FILES)
    files = [*source.files, *(file for file in tokenizer if file.is_file())]
    return {
        "source": origin.id,
        "revision": origin.revision,
        "files": {file.name: _describe(file) for file in files},
        **source.ignored,
    }


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
