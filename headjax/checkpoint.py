"""Read and write one converted checkpoint: a directory that needs nothing else.

    headjax.json          format version, ModelConfig, dtype of every parameter, where it all came from
    params/embed          orbax: embed.*
    params/blocks/007     orbax: blocks.* of layer 7, without the L axis
    params/final          orbax: ln_final.* and unembed.*
    config.json, ...      the source's configuration and tokenizer, as they were

A layer is a unit of its own, so that writing holds one layer at a time and reading takes only what is
asked for. Parameters are named as `headjax.model.model_parameters` names them.
"""

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax import Array
from jax.sharding import Mesh
from jax.typing import DTypeLike
from jaxtyping import Int

from headjax.config import ModelConfig
from headjax.errors import InputError
from headjax.mesh import parameter_sharding
from headjax.model import parameter_shapes

HEADER = "headjax.json"
FORMAT_VERSION = 1
# Small enough that a device which wants an eighth of a large matrix does not read all of it.
CHUNK_BYTES = 1 << 24


class Group(NamedTuple):
    """Parameters stored together: those of one layer, or all those before or after the layers."""

    path: str
    layer: int | None
    names: tuple[str, ...]


def parameter_groups(config: ModelConfig) -> list[Group]:
    """Every parameter's place in the directory, in the order of the forward pass."""
    names = tuple(parameter_shapes(config))

    def starting(*prefixes: str) -> tuple[str, ...]:
        return tuple(name for name in names if name.startswith(prefixes))

    blocks = starting("blocks.")
    return [
        Group("params/embed", None, starting("embed.")),
        *(Group(f"params/blocks/{layer:03}", layer, blocks) for layer in range(config.n_layers)),
        Group("params/final", None, starting("ln_final.", "unembed.")),
    ]


# --- reading ------------------------------------------------------------------------------------------


def is_converted(directory: Path) -> bool:
    """Whether a directory is what `write_checkpoint` writes."""
    return (Path(directory) / HEADER).is_file()


def _read_header(directory: Path) -> dict[str, Any]:
    file = Path(directory) / HEADER
    try:
        header = json.loads(file.read_text())
        version = header["format_version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file}: not the header of a converted checkpoint ({error})") from error
    if version != FORMAT_VERSION:
        raise InputError(f"{file}: format version must be {FORMAT_VERSION}; got {version}; convert again")
    return header


def read_config(directory: Path) -> ModelConfig:
    """The model's sizes and switches. Raises InputError where the directory holds no checkpoint."""
    return ModelConfig.from_json(json.dumps(_read_header(directory)["config"]))


def read_provenance(directory: Path) -> dict[str, Any]:
    """Where it came from: `source` id, `revision`, and per file `sha256`, `size` and `mtime_ns`."""
    return _read_header(directory)["provenance"]


def stored_dtypes(directory: Path) -> dict[str, np.dtype]:
    """Name -> dtype of every parameter as stored."""
    return {name: np.dtype(dtype) for name, dtype in _read_header(directory)["dtypes"].items()}


def _restore(directory: Path, group: Group, shapes: dict[str, tuple[int, ...]], mesh: Mesh | None) -> dict:
    """The group's parameters as stored: on the mesh, or as numpy arrays where there is none."""
    if not group.names:
        return {}
    item, how = {}, {}
    for name in group.names:
        shape = shapes[name] if group.layer is None else shapes[name][1:]
        sharding = None if mesh is None else parameter_sharding(name, shape, mesh)
        item[name] = jax.ShapeDtypeStruct(shape, np.float32, sharding=sharding)
        if mesh is None:
            how[name] = ocp.RestoreArgs(restore_type=np.ndarray)
        else:
            how[name] = ocp.ArrayRestoreArgs(sharding=sharding, global_shape=shape)
    path = Path(directory).resolve() / group.path
    restore = ocp.args.PyTreeRestore(item=item, restore_args=how, partial_restore=True)
    try:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            return checkpointer.restore(path, args=restore)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{path}: cannot be read: {_first_line(error)}") from error


@partial(jax.jit, donate_argnums=0)
def _insert(stacks: dict[str, Array], layer: dict[str, Array], index: Int[Array, ""]) -> dict[str, Array]:
    """Writes one layer into the stacked parameters, in their dtype.

    In place: the slice update is; a scatter (`.at[].set`) would copy the whole stack on CPU.
    """
    update = partial(jax.lax.dynamic_update_index_in_dim, index=index, axis=0)
    return {name: update(stack, layer[name].astype(stack.dtype)) for name, stack in stacks.items()}


def _chosen(directory: Path, names: Sequence[str] | None) -> tuple[ModelConfig, dict[str, tuple[int, ...]]]:
    config = read_config(directory)
    shapes = parameter_shapes(config)
    unknown = set(names or ()) - set(shapes)
    if unknown:
        raise ValueError(f"parameters are {', '.join(shapes)}; got {', '.join(sorted(unknown))}")
    return config, {name: shape for name, shape in shapes.items() if names is None or name in names}


def read_parameters(
    directory: Path,
    names: Sequence[str] | None = None,
    dtype: DTypeLike | None = None,
    mesh: Mesh | None = None,
) -> dict[str, Array]:
    """Name -> array of all parameters, or of the named ones; nothing else is read.

    Every tensor goes straight to where it will stay (see `headjax.mesh`); beyond the result itself, one
    layer is held at a time.

    Args:
      dtype: of every result; as stored where None.
      mesh: the devices to spread over; JAX's default device where None.

    Raises InputError where a file is missing or damaged, ValueError for a name the model has not.
    """
    config, shapes = _chosen(directory, names)
    dtypes = {name: np.dtype(dtype or stored) for name, stored in stored_dtypes(directory).items()}
    stacks = {
        name: jnp.zeros(shape, dtypes[name], device=mesh and parameter_sharding(name, shape, mesh))
        for name, shape in shapes.items()
        if name.startswith("blocks.")
    }
    result = {}
    for group in parameter_groups(config):
        group = group._replace(names=tuple(name for name in group.names if name in shapes))
        arrays = _restore(directory, group, shapes, mesh)
        if group.layer is None:
            result |= {name: jnp.asarray(array.astype(dtypes[name])) for name, array in arrays.items()}
        elif arrays:
            stacks = _insert(stacks, arrays, np.int32(group.layer))
            jax.block_until_ready(stacks)  # or several layers would wait in memory
    return result | stacks


def read_layer(
    directory: Path,
    layer: int,
    names: Sequence[str] | None = None,
    dtype: DTypeLike | None = None,
    mesh: Mesh | None = None,
) -> dict[str, Array]:
    """Name -> array, without the L axis, of one layer's parameters (``blocks.*``); reads only those."""
    config, shapes = _chosen(directory, names)
    group = next(group for group in parameter_groups(config) if group.layer == layer)
    group = group._replace(names=tuple(name for name in group.names if name in shapes))
    arrays = _restore(directory, group, shapes, mesh)
    return {name: jnp.asarray(array.astype(dtype or array.dtype)) for name, array in arrays.items()}


# --- writing ------------------------------------------------------------------------------------------


def write_checkpoint(
    directory: Path,
    config: ModelConfig,
    dtypes: dict[str, np.dtype],
    provenance: dict[str, Any],
    read_group: Callable[[Group], dict[str, np.ndarray]],
    copied_files: Sequence[Path] = (),
    progress: Callable[[Iterable[Group]], Iterable[Group]] = iter,
) -> None:
    """Writes a checkpoint, one group at a time, under a temporary name that is then renamed.

    Args:
      dtypes: of every parameter that `read_group` returns.
      read_group: gives the parameters of a group, without the L axis.
      copied_files: taken along as they are.
      progress: wraps the groups as they are written.

    Raises InputError where the directory cannot be written; what was there before is then untouched.
    """
    header = {
        "format_version": FORMAT_VERSION,
        "config": json.loads(config.to_json()),
        "dtypes": {name: np.dtype(dtype).name for name, dtype in dtypes.items()},
        "provenance": provenance,
    }
    with _replacing(Path(directory)) as temporary:
        for group in progress(parameter_groups(config)):
            arrays = read_group(group)
            with _writing(directory):
                _save(temporary / group.path, arrays)
        with _writing(directory):
            for file in copied_files:
                shutil.copyfile(file, temporary / file.name)
            (temporary / HEADER).write_text(json.dumps(header, indent=2))


def _save(path: Path, arrays: dict[str, np.ndarray]) -> None:
    handler = ocp.PyTreeCheckpointHandler(use_zarr3=True, use_compression=False)
    chunks = {name: ocp.SaveArgs(chunk_byte_size=CHUNK_BYTES) for name in arrays}
    with ocp.Checkpointer(handler) as checkpointer:
        checkpointer.save(path, args=ocp.args.PyTreeSave(arrays, save_args=chunks))


@contextlib.contextmanager
def _writing(directory: Path) -> Iterator[None]:
    """Whatever writing raises is the disk's fault: tensorstore reports a full one as a ValueError."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise InputError(f"{directory}: cannot be written: {_first_line(error)}") from error


@contextlib.contextmanager
def _replacing(directory: Path) -> Iterator[Path]:
    """An empty sibling that takes the directory's place at the end, or vanishes on any exception.

    Its name is fixed and it is locked while it is written (the lock ends with the process): what a
    killed run left is found and removed, and two runs do not write the same checkpoint.
    """
    directory = directory.resolve()
    if directory.exists() and not (is_converted(directory) or _is_empty(directory)):
        raise InputError(f"{directory}: only a converted checkpoint is replaced; this is something else")
    new, old = (directory.with_name(f".{directory.name}.{age}") for age in ("new", "old"))
    with _writing(directory):
        new.mkdir(parents=True, exist_ok=True)
        lock = os.open(new, os.O_RDONLY)
    try:
        if not _take_lock(lock, new):
            raise InputError(f"{directory}: is being written by another process")
        try:
            with _writing(directory):
                _clear(new)
                if old.exists() and not directory.exists():  # killed between the two renames below
                    os.rename(old, directory)
                shutil.rmtree(old, ignore_errors=True)
            yield new
            with _writing(directory):
                if directory.exists():
                    os.rename(directory, old)
                try:
                    os.rename(new, directory)
                except OSError:
                    if old.exists():
                        os.rename(old, directory)
                    raise
            shutil.rmtree(old, ignore_errors=True)
        except BaseException:
            shutil.rmtree(new, ignore_errors=True)
            raise
    finally:
        os.close(lock)


def _take_lock(lock: int, directory: Path) -> bool:
    """Whether the open directory is now ours alone, and still has its name."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(lock), os.stat(directory))
    except OSError:
        return False


def _clear(directory: Path) -> None:
    for entry in directory.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def _is_empty(directory: Path) -> bool:
    return directory.is_dir() and not any(directory.iterdir())


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
