"""Read and write one converted checkpoint: a directory that needs nothing else.

    headjax.json          format version, ModelConfig, dtype of every parameter, where it all came from,
                          what every other file must be, and a digest of all this
    params/embed          orbax: embed.*
    params/blocks/007     orbax: blocks.* of layer 7, without the L axis
    params/final          orbax: ln_final.* and unembed.*
    config.json, ...      the source's configuration and tokenizer, as they were

A layer is a unit of its own, so that writing holds one layer at a time and reading takes only what is
asked for. Every chunk of a parameter carries its CRC-32C: damage is found as bytes are read. Parameters are
named as `headjax.model.model_parameters` names them.
"""

import contextlib
import hashlib
import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh
from jax.typing import DTypeLike
from jaxtyping import Int

from headjax.config import ModelConfig
from headjax.engine.mesh import parameter_sharding
from headjax.errors import InputError, shown
from headjax.io import hold_lock, read_json
from headjax.model import parameter_shapes

HEADER = "headjax.json"
FORMAT_VERSION = 3
# Small enough that a device which wants an eighth of a large matrix does not read all of it.
CHUNK_BYTES = 1 << 24
# Left in a checkpoint whose parameters were found damaged as they were read.
DAMAGED = "damaged"
# Held while Python's hook for late errors is ours: all threads share it, and one of them reads layers ahead.
_HOOKED = threading.Lock()


class DamagedError(InputError):
    """A converted checkpoint whose files are not, or no longer, as they were written."""


class Group(NamedTuple):
    """Parameters stored together: those of one layer, or all those before or after the layers."""

    path: str
    layer: int | None
    names: tuple[str, ...]


class Stored(NamedTuple):
    """A parameter as it is stored, stacked over layers."""

    shape: tuple[int, ...]
    dtype: np.dtype


def parameter_groups(config: ModelConfig) -> list[Group]:
    """Every parameter's place in the directory, in the order of the forward pass."""
    embed, block, final = (
        tuple(name for name in parameter_shapes(config) if name.startswith(prefixes))
        for prefixes in ("embed.", "blocks.", ("ln_final.", "unembed."))
    )
    return [
        Group("params/embed", None, embed),
        *(Group(f"params/blocks/{layer:03}", layer, block) for layer in range(config.n_layers)),
        Group("params/final", None, final),
    ]


# --- reading ------------------------------------------------------------------------------------------


def is_converted(directory: Path) -> bool:
    """Whether a directory is what `write_checkpoint` writes."""
    _recover(directory)
    return os.path.isfile(Path(directory) / HEADER)


def _read_header(directory: Path) -> dict[str, Any]:
    _recover(directory)
    file = Path(directory) / HEADER
    try:
        header = read_json(file)
        version = header.get("format_version")
    except InputError as error:
        raise DamagedError(f"{error}: not the header of a converted checkpoint") from error
    if version != FORMAT_VERSION:
        rule = f"format version must be {FORMAT_VERSION}"
        raise DamagedError(f"{file}: {rule}; got {shown(version)}; convert again")
    if header != seal(header):
        raise DamagedError(f"{file}: must be as it was written; it is damaged or was edited: convert again")
    return header


def seal(header: dict[str, Any]) -> dict[str, Any]:
    """The header with its own digest: no other part of a checkpoint can tell what is true of it."""
    rest = {name: value for name, value in header.items() if name != "sha256"}
    return rest | {"sha256": hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()}


def read_config(directory: Path) -> ModelConfig:
    """The model's sizes and switches. Raises InputError where the directory holds no checkpoint."""
    return ModelConfig.from_json(json.dumps(_read_header(directory)["config"]))


def read_provenance(directory: Path) -> dict[str, Any]:
    """Where it came from: `source` id, `revision`, and per file `sha256`, `size` and `mtime_ns`."""
    return _read_header(directory)["provenance"]


def stored_dtypes(directory: Path) -> dict[str, np.dtype]:
    """Name -> dtype of every parameter as stored."""
    return {name: np.dtype(dtype) for name, dtype in _read_header(directory)["dtypes"].items()}


def check_files(directory: Path, unexpected: Iterable[str] = ()) -> None:
    """Raises DamagedError unless every file is as it was written.

    Of parameters' files only the sizes are looked at: their bytes are checked as they are read.

    Args:
      unexpected: names of files that would change what the others mean, such as a tokenizer's; one that
        is there must have been written with the rest, if any of them was.
    """
    recorded, unexpected = _read_header(directory)["files"], set(unexpected)
    for name, written in recorded.items():
        file = Path(directory) / name
        try:
            now = _describe(directory, name)
        except OSError as error:
            raise DamagedError(f"{file}: cannot be read: {error.strerror or error}; convert again") from error
        if now != written:
            raise DamagedError(f"{file}: must be as it was written; it changed: convert again")
    for name in unexpected - set(recorded) if unexpected & set(recorded) else ():
        if (file := Path(directory) / name).exists():
            raise DamagedError(f"{file}: was not there when the checkpoint was written: convert again")


def was_damaged(directory: Path) -> bool:
    """Whether a parameter was found damaged when it was read, as far as that could be noted."""
    return (Path(directory) / DAMAGED).exists()


def _describe(directory: Path, name: str) -> dict[str, Any]:
    """What `check_files` holds a file against: its size and, unless it holds parameters, its digest."""
    file = Path(directory) / name
    size = file.stat().st_size
    if name.startswith("params/"):
        return {"size": size}
    with open(file, "rb") as stream:
        return {"size": size, "sha256": hashlib.file_digest(stream, "sha256").hexdigest()}


def _restore(
    directory: Path, group: Group, chosen: dict[str, Stored], mesh: Mesh | None
) -> dict[str, np.ndarray | Array]:
    """Of the group's parameters the chosen ones: on the mesh, or as numpy arrays where there is none."""
    import orbax.checkpoint as ocp  # it takes a second, so only when it is needed

    path, item, how = Path(directory).resolve() / group.path, {}, {}
    # Of several processes each asks for its own parts. One that has all devices reads arrays whole and places
    # them: as many bytes as by parts, in two thirds of the time where eight devices split them.
    by_orbax = mesh is not None and jax.process_count() > 1
    for name in (name for name in group.names if name in chosen):
        shape = chosen[name].shape if group.layer is None else chosen[name].shape[1:]
        sharding = None if mesh is None else parameter_sharding(name, shape, mesh)
        item[name] = jax.ShapeDtypeStruct(shape, chosen[name].dtype, sharding=sharding)
        how[name] = (
            ocp.ArrayRestoreArgs(sharding=sharding, global_shape=shape)
            if by_orbax
            else ocp.RestoreArgs(restore_type=np.ndarray)
        )
    if not item:
        return {}
    read = partial(_read_arrays, path, item, how)
    try:
        # All at once takes a third of the time that one by one takes.
        with _HOOKED, _silent_after_failure([partial(read, [name]) for name in item]):
            result = read(item)
        for name, wanted in item.items():
            # Where its own metadata is damaged orbax may give the description of an array for it.
            if not isinstance(found := result[name], np.ndarray | Array):
                raise ValueError(f"{name} is not in it")
            if found.shape != wanted.shape or found.dtype != wanted.dtype:
                raise ValueError(f"{name} must be {wanted.dtype} {list(wanted.shape)}")
    except (OSError, ValueError, KeyError) as error:
        with contextlib.suppress(OSError):
            (Path(directory) / DAMAGED).touch()
        raise DamagedError(f"{path}: cannot be read: {_reason(error)}; convert again") from error
    if mesh is None or by_orbax:
        return result
    return {name: jax.device_put(array, item[name].sharding) for name, array in result.items()}


def _read_arrays(
    path: Path, item: dict[str, Any], how: dict[str, Any], names: Iterable[str]
) -> dict[str, Any]:
    """The named ones of orbax's item, which lies at the path."""
    import orbax.checkpoint as ocp

    asked = {"item": {name: item[name] for name in names}}
    asked["restore_args"] = {name: how[name] for name in names}
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        return checkpointer.restore(path, args=ocp.args.PyTreeRestore(**asked, partial_restore=True))


@contextlib.contextmanager
def _silent_after_failure(one_by_one: Sequence[Callable[[], object]]) -> Iterator[None]:
    """Where one parameter cannot be read, orbax closes its event loop before the others are there, and each
    of them would put a traceback on stderr. They come in while each is read anew."""
    hook = sys.unraisablehook
    sys.unraisablehook = partial(_without_late_ones, hook)
    try:
        yield
    except Exception:
        for read in one_by_one:
            with contextlib.suppress(Exception):
                read()
        raise
    finally:
        sys.unraisablehook = hook


def _without_late_ones(hook: Callable[[Any], object], unraisable: Any) -> None:
    if "Event loop is closed" not in str(unraisable.exc_value):
        hook(unraisable)


@partial(jax.jit, donate_argnums=0)
def _insert(stacks: dict[str, Array], layer: dict[str, Array], index: Int[Array, ""]) -> dict[str, Array]:
    """Writes one layer into the stacked parameters, in their dtype.

    In place: the slice update is; a scatter (`.at[].set`) would copy the whole stack on CPU.
    """
    update = partial(jax.lax.dynamic_update_index_in_dim, index=index, axis=0)
    return {name: update(stack, layer[name].astype(stack.dtype)) for name, stack in stacks.items()}


def _chosen(directory: Path, names: Sequence[str] | None) -> tuple[ModelConfig, dict[str, Stored]]:
    """The config, and all parameters or the named ones."""
    header = _read_header(directory)
    config = ModelConfig.from_json(json.dumps(header["config"]))
    shapes = parameter_shapes(config)
    unknown = set(names or ()) - set(shapes)
    if unknown:
        raise ValueError(f"parameters are {', '.join(shapes)}; got {', '.join(sorted(unknown))}")
    return config, {
        name: Stored(shape, np.dtype(header["dtypes"][name]))
        for name, shape in shapes.items()
        if names is None or name in names
    }


def read_parameters(
    directory: Path,
    names: Sequence[str] | None = None,
    dtype: DTypeLike | None = None,
    mesh: Mesh | None = None,
) -> dict[str, Array]:
    """Name -> array of all parameters, or of the named ones; nothing else is read.

    A layer is read, goes to where it will stay (see headjax/engine/mesh.py), then the next one: beyond the
    result one layer is held at a time. Of several processes each reads its own parts of it alone.

    Args:
      dtype: of every result; as stored where None.
      mesh: the devices to spread over; JAX's default device where None.

    Raises InputError where a file is missing or damaged, ValueError for a name the model has not.
    """
    config, chosen = _chosen(directory, names)
    dtypes = {name: np.dtype(dtype or stored.dtype) for name, stored in chosen.items()}
    stacks = {
        name: jnp.zeros(shape, dtypes[name], device=mesh and parameter_sharding(name, shape, mesh))
        for name, (shape, _) in chosen.items()
        if name.startswith("blocks.")
    }
    result = {}
    for group in parameter_groups(config):
        arrays = _restore(directory, group, chosen, mesh)
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
    config, chosen = _chosen(directory, names)
    group = next(group for group in parameter_groups(config) if group.layer == layer)
    arrays = _restore(directory, group, chosen, mesh)
    return {name: jnp.asarray(array.astype(dtype or array.dtype)) for name, array in arrays.items()}


class Converted:
    """The parameters of a converted checkpoint (see `headjax.parameters.Parameters`)."""

    def __init__(self, directory: Path, config: ModelConfig | None = None):
        """`config` is the checkpoint's own unless it is given with other settings of how to compute."""
        self._directory = directory
        self.config = read_config(directory) if config is None else config
        self.provenance = read_provenance(directory)

    def read(
        self, names: Iterable[str], layer: int | None = None, dtype: DTypeLike | None = None
    ) -> dict[str, Array]:
        if layer is None:
            return read_parameters(self._directory, list(names), dtype)
        return read_layer(self._directory, layer, list(names), dtype)

    def rows(self, name: str, ids: Int[np.ndarray, "..."]) -> Array:
        return self.read((name,))[name][ids].astype(jnp.float32)


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
            files = [file.relative_to(temporary) for file in temporary.rglob("*") if file.is_file()]
            names = sorted(file.as_posix() for file in files)
            header["files"] = {name: _describe(temporary, name) for name in names}
            (temporary / HEADER).write_text(json.dumps(seal(header), indent=2), encoding="utf-8")


def _save(path: Path, arrays: dict[str, np.ndarray]) -> None:
    import orbax.checkpoint as ocp  # it takes a second, so only when it is needed

    class WithChecksums(ocp.type_handlers.NumpyHandler):
        """Orbax's writer of numpy arrays, with a CRC-32C in every chunk; whoever reads them checks it."""

        async def _open_and_write(self, value: np.ndarray, tspec: dict[str, Any], ts_context: Any) -> None:
            tspec["metadata"]["codecs"][0]["configuration"]["codecs"].append({"name": "crc32c"})
            await super()._open_and_write(value, tspec, ts_context)

    writers = ocp.type_handlers.create_type_handler_registry(
        (np.ndarray, WithChecksums()),
        (jax.Array, ocp.type_handlers.ArrayHandler()),  # without which orbax warns
    )
    handler = ocp.PyTreeCheckpointHandler(
        use_zarr3=True, use_compression=False, type_handler_registry=writers
    )
    chunks = {name: ocp.SaveArgs(chunk_byte_size=CHUNK_BYTES) for name in arrays}
    with ocp.Checkpointer(handler) as checkpointer:
        checkpointer.save(path, args=ocp.args.PyTreeSave(arrays, save_args=chunks))


@contextlib.contextmanager
def _writing(directory: Path) -> Iterator[None]:
    """Whatever writing raises is the disk's fault: tensorstore reports a full one as a ValueError."""
    try:
        yield
    except InputError:
        raise
    except (OSError, ValueError) as error:
        raise InputError(f"{directory}: cannot be written: {_reason(error)}") from error


def _sibling(directory: Path, what: str) -> Path:
    """A name beside a checkpoint that is only ever ours."""
    directory = Path(os.path.abspath(directory))
    return directory.parent / f".{directory.name}.headjax-{what}"


@contextlib.contextmanager
def _replacing(directory: Path) -> Iterator[Path]:
    """An empty sibling that takes the directory's place at the end, or vanishes on any exception.

    Its name is fixed and it is locked while it is written (the lock ends with the process): what a
    killed run left is found and removed, and two runs do not write the same checkpoint.
    """
    directory = directory.resolve()
    new, old = _sibling(directory, "new"), _sibling(directory, "old")
    with contextlib.ExitStack() as stack:
        with _writing(directory):
            directory.parent.mkdir(parents=True, exist_ok=True)
            if not stack.enter_context(hold_lock(_sibling(directory, "lock"))):
                raise InputError(f"{directory}: is being written by another process")
            _put_back(directory)
            if directory.exists() and not _is_replaceable(directory):
                raise InputError(
                    f"{directory}: only a converted checkpoint is replaced; this is something else"
                )
            for left in (new, old):
                shutil.rmtree(left, ignore_errors=True)
            new.mkdir()
        try:
            yield new
            with _writing(directory):
                if directory.exists():
                    os.rename(directory, old)
                try:
                    os.rename(new, directory)
                except OSError:
                    _put_back(directory)
                    raise
        finally:
            _remove(new)
        shutil.rmtree(old, ignore_errors=True)


def _remove(directory: Path) -> None:
    """Removes it, and what threads of a failed writing still put there in the next moments."""
    for _ in range(20):
        shutil.rmtree(directory, ignore_errors=True)
        if not directory.exists():
            return
        time.sleep(0.05)


def _put_back(directory: Path) -> None:
    """Undoes the first of two renames, where a writer was killed before the second. Under its lock."""
    if (old := _sibling(directory, "old")).exists() and not directory.exists():
        os.rename(old, directory)


def _recover(directory: Path) -> None:
    """Puts back a checkpoint that a writer moved aside before it was killed, if there is such a one."""
    # os.path and not pathlib: a name that is no file's, such as a model's or one too long, is not here.
    if not os.path.exists(directory) and os.path.exists(_sibling(directory, "old")):
        # Where the writer lives, the new one takes its place within the second.
        with contextlib.suppress(OSError), hold_lock(_sibling(directory, "lock"), timeout=1.0) as held:
            if held:
                _put_back(directory)


def _is_replaceable(directory: Path) -> bool:
    """Whether nothing but a converted checkpoint is lost with a directory, be it one without its header."""
    parts = all((directory / part).is_dir() for part in ("params/embed", "params/final"))
    return is_converted(directory) or parts or (directory.is_dir() and not any(directory.iterdir()))


def _reason(error: Exception) -> str:
    """What an error says, without the state of tensorstore that it prints after it."""
    said = str(error).partition(" [")[0].partition("\n")[0]
    return shown(ValueError(said or type(error).__name__))
