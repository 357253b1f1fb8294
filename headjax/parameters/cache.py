"""The cache of converted checkpoints: a model by name, converted on first use, loaded from there."""

import dataclasses
import hashlib
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from jax.sharding import Mesh
from jax.typing import DTypeLike

from checkpoints_convert.convert import convert
from headjax.errors import InputError
from headjax.inputs import check_settings
from headjax.model import Transformer, build_model
from headjax.parameters.converted import (
    DamagedError,
    check_files,
    is_converted,
    read_config,
    read_parameters,
    read_provenance,
    was_damaged,
)
from headjax.zoo import (
    TOKENIZER_FILES,
    WEIGHT_FILES,
    Source,
    cache_directory,
    find_source,
    ignored_fields,
    resolve,
)


def ensure_converted(
    name: str | Path | Source,
    checkpoint_dir: str | Path | None = None,
    ignore_fields: Collection[str] = (),
) -> Path:
    """A model's converted checkpoint, made where none is up to date.

    They are kept in `checkpoint_dir` (None: `zoo.cache_directory`); a damaged one is made again, and one made
    with ignored fields has its own place. A converted directory is its own;
    raises InputError where that one is damaged, or was made without ignoring what is to be ignored now.
    """
    source = find_source(name)
    ignored = ignored_fields(source.directory, ignore_fields)
    if is_converted(source.directory):
        check_files(source.directory, TOKENIZER_FILES)
        made = read_provenance(source.directory).get("ignored_fields", [])
        if not set(ignored) <= set(made):
            raise InputError(
                f"{source.directory}: was converted with ignore_fields={','.join(made)}, and must be "
                f"converted again to ignore others; got {','.join(ignored)}"
            )
        return source.directory
    label = source.id.replace("/", "--")
    if source.revision is None:
        digest = hashlib.sha256(str(source.directory).encode()).hexdigest()
        label = f"{source.directory.name}-{digest[:8]}"
    if ignored:
        label = f"{label}-ignoring-{hashlib.sha256(','.join(ignored).encode()).hexdigest()[:8]}"
    target = cache_directory(checkpoint_dir) / label
    if not _is_current(target, source.directory, ignored):
        convert(source, target, ignore_fields=ignored)
    return target


def _is_current(converted: Path, source: Path, ignored: list[str]) -> bool:
    """Whether the source still holds just the files that were converted, unchanged, read in the same way."""
    if not is_converted(converted):
        return False
    try:
        check_files(converted, TOKENIZER_FILES)
        if was_damaged(converted):
            raise DamagedError(f"{converted}: was found damaged when it was read")
        provenance = read_provenance(converted)
        if provenance.get("ignored_fields", []) != ignored:
            return False
        files = provenance["files"]
    except DamagedError as error:  # or of another format version
        print(f"{error}; converting it again", file=sys.stderr)
        return False
    weights = next((name for name in WEIGHT_FILES if (source / name).is_file()), None)
    tokenizer = {name for name in TOKENIZER_FILES if (source / name).is_file()}
    if not {"config.json", weights, *tokenizer} <= set(files):
        return False
    return all(_is_unchanged(source / name, recorded) for name, recorded in files.items())


def _is_unchanged(file: Path, recorded: dict[str, Any]) -> bool:
    if not file.is_file() or file.stat().st_size != recorded["size"]:
        return False
    if file.stat().st_mtime_ns == recorded["mtime_ns"]:
        return True
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest() == recorded["sha256"]


def load_model(
    name: str | Path | Source,
    dtype: DTypeLike = jnp.float32,
    mesh: Mesh | None = None,
    precision: str = "highest",
    checkpoint_dir: str | Path | None = None,
    implementation: str | None = None,
    ignore_fields: Collection[str] = (),
) -> Transformer:
    """Loads a model by alias ("gpt2-xl"), Hugging Face id or directory (Hugging Face's or converted).

    Behind an `@`, alias or id may name a revision: "pythia-70m@step3000".

    A model is converted once, into `checkpoint_dir` (default: $HEADJAX_CACHE or
    ~/.cache/headjax/checkpoints), and read from there. The models that come along with headjax, "trained" and
    "planted", need no download.

    Args:
      dtype: of the parameters in memory.
      mesh: devices to spread the parameters over (`headjax.engine.mesh`); JAX's default device where None.
      precision: of every matrix product; "highest" makes float32 mean float32 on every device.
      implementation: of the kernels (`kernels/<op>/api.py`); None: each op's default.
      ignore_fields: of config.json, to treat as absent where the converter does not understand them and you
        know that they change nothing.

    Raises InputError where there is no such model or its files do not fit, and for unknown settings.
    """
    check_settings(dtype, precision, implementation)
    source = find_source(name if isinstance(name, Source) else resolve(name, checkpoint_dir))
    directory = ensure_converted(source, checkpoint_dir, ignore_fields)
    try:
        parameters = read_parameters(directory, dtype=dtype, mesh=mesh)
    except DamagedError:  # one of the cache is converted again, any other refused again
        directory = ensure_converted(source, checkpoint_dir, ignore_fields)
        parameters = read_parameters(directory, dtype=dtype, mesh=mesh)
    config = read_config(directory)
    config = dataclasses.replace(config, precision=precision, implementation=implementation)
    return build_model(config, parameters)
