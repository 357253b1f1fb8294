"""Devices and processes: the mesh, what lies where on it, and how a step is run over it.

A mesh has two axes. "data" holds copies of the model, each with its own prompts (or variants); "model"
splits one copy: attention heads, MLP hidden units and the vocabulary. A compiled step is a `shard_map`
over "data", so what one device does is the same program as on a single one; the compiler splits "model".
Several processes run the same program (`jax.distributed`), each with its own devices of one mesh.
"""

import glob
import math
import os
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import lru_cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from jax import Array
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.typing import ArrayLike

from headjax.errors import InputError
from headjax.kernels import dispatch

T = TypeVar("T")
DATA_AXIS = "data"
MODEL_AXIS = "model"
AXES = (DATA_AXIS, MODEL_AXIS)
ROWS = P(DATA_AXIS)  # an array whose first axis are prompts
OF_LAYERS = P(None, DATA_AXIS)  # one whose second axis are: the first are layers
WHOLE = P()  # one that every copy of the model has whole

# Axis letters of every parameter; the legend is in axes.py (P: learned positions; N: heads whose queries or
# keys are normed together, an axis that is not there where each is normed alone).
PARAMETER_AXES = {
    "embed.W_E": "V D",
    "embed.W_pos": "P D",
    "blocks.ln1.scale": "L D",
    "blocks.ln1.bias": "L D",
    "blocks.ln1_post.scale": "L D",
    "blocks.ln1_post.bias": "L D",
    "blocks.ln2.scale": "L D",
    "blocks.ln2.bias": "L D",
    "blocks.ln2_post.scale": "L D",
    "blocks.ln2_post.bias": "L D",
    "blocks.attn.W_Q": "L D H K",
    "blocks.attn.W_K": "L D G K",
    "blocks.attn.W_V": "L D G K",
    "blocks.attn.W_O": "L H K D",
    "blocks.attn.b_Q": "L H K",
    "blocks.attn.b_K": "L G K",
    "blocks.attn.b_V": "L G K",
    "blocks.attn.b_O": "L D",
    "blocks.attn.q_norm.scale": "L N K",
    "blocks.attn.q_norm.bias": "L N K",
    "blocks.attn.k_norm.scale": "L N K",
    "blocks.attn.k_norm.bias": "L N K",
    "blocks.mlp.W_in": "L D F",
    "blocks.mlp.W_gate": "L D F",
    "blocks.mlp.W_out": "L F D",
    "blocks.mlp.b_in": "L F",
    "blocks.mlp.b_gate": "L F",
    "blocks.mlp.b_out": "L D",
    "ln_final.scale": "D",
    "ln_final.bias": "D",
    "unembed.rows": "V D",
    "unembed.b_U": "V",
}

# Heads, MLP hidden and vocabulary. Query heads of one key/value head are neighbours, so that where both
# counts divide, equal parts of each keep a key/value head on the device of its query heads.
SPLIT_AXES = frozenset("HGFV")


# --- processes and devices ----------------------------------------------------------------------------


def start_processes(distributed: str | None) -> None:
    """Joins the processes of this program into one; call it before anything touches a device.

    `distributed` is "COORDINATOR:PORT,COUNT,ID", or None: then processes find each other on TPU pods and
    under SLURM, and elsewhere this one is alone. Raises InputError for any other text, and where processes
    that should find each other do not.
    """
    if jax.distributed.is_initialized():
        return
    if distributed is None:
        if _on_tpu() or int(os.environ.get("SLURM_NTASKS", "1")) > 1:
            try:
                jax.distributed.initialize()
            except (ValueError, RuntimeError) as error:
                raise InputError(
                    "processes on a TPU or under SLURM must find each other, or field 'distributed' must say "
                    f"how (localhost:9911,1,0: this one is alone); {error}"
                ) from error
        return
    address, *numbers = distributed.split(",")
    if ":" not in address or len(numbers) != 2 or not all(number.isdecimal() for number in numbers):
        raise InputError(f"field 'distributed' must be COORDINATOR:PORT,COUNT,ID; got {distributed!r}")
    count, own = map(int, numbers)
    jax.distributed.initialize(address, count, own)


def _on_tpu() -> bool:
    """Whether JAX will use a TPU of this machine: libtpu may be installed without one."""
    wanted = "tpu" in os.environ.get("JAX_PLATFORMS", "tpu")
    chips = glob.glob("/dev/accel[0-9]*") or glob.glob("/dev/vfio/[0-9]*")
    return wanted and bool(chips) and find_spec("libtpu") is not None


def is_first_process() -> bool:
    """Whether this process is the one that writes and prints."""
    return jax.process_index() == 0


def check_alike(what: str, digest: Callable[[], bytes]) -> None:
    """Raises InputError, in every process, unless all processes give the same digest; one alone need not."""
    if jax.process_count() == 1:
        return
    digests = multihost_utils.process_allgather(np.frombuffer(digest(), np.uint8))
    others = [i for i, other in enumerate(digests) if not np.array_equal(other, digests[0])]
    if others:
        raise InputError(
            f"all processes must have the same {what}; process {', '.join(map(str, others))} differs from 0"
        )


def one_by_one(work: Callable[[], T]) -> T:
    """What `work` gives: the first process does it before the others, which then find it done.

    For files on a disk that they share; where each has its own, every process does the work.
    """
    if jax.process_count() == 1:
        return work()
    if not is_first_process():
        multihost_utils.sync_global_devices("the first process is done")
        return work()
    try:
        return work()
    finally:
        multihost_utils.sync_global_devices("the first process is done")


def make_mesh(shape: Mapping[str, int] | None, model_bytes: int = 0) -> Mesh | None:
    """All devices of all processes as "data" x "model"; None where there is one device.

    Args:
      shape: sizes of the two axes, either may be left out; None: "model" as small as lets a copy of the
        model's `model_bytes` take half of a device's memory, and all other devices hold more copies.

    Raises InputError for a shape that does not match the devices.
    """
    n_devices = jax.device_count()
    if shape is None:
        shape = {MODEL_AXIS: _smallest_split(model_bytes)}
    unknown = set(shape) - set(AXES)
    if unknown:
        raise InputError(f"a mesh has the axes {' and '.join(AXES)}; got {', '.join(sorted(unknown))}")
    for axis, size in shape.items():
        if size < 1:
            raise InputError(f"sizes of a mesh must be at least 1; got {axis} {size}")
    given = math.prod(shape.values())
    if len(shape) < len(AXES) and n_devices % given == 0:
        other = next(axis for axis in AXES if axis not in shape)
        shape = {MODEL_AXIS: 1, **shape, other: n_devices // given}
        given = n_devices
    if given != n_devices:
        product = " x ".join(f"{axis} {size}" for axis, size in shape.items())
        raise InputError(f"a mesh must hold all {n_devices} devices; {product} are {given}")
    if n_devices == 1:
        return None
    sizes = tuple(shape[axis] for axis in AXES)
    return jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _smallest_split(model_bytes: int) -> int:
    statistics = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" not in statistics:  # CPU devices share one memory: nothing is won by splitting a model
        return 1
    sizes = [n for n in range(1, jax.device_count() + 1) if jax.device_count() % n == 0]
    return next((n for n in sizes if model_bytes / n <= statistics["bytes_limit"] / 2), sizes[-1])


def model_mesh(tree: Any) -> Mesh | None:
    """The mesh that a model's parameters lie on; None for one on a single device."""
    sharding = jax.tree.leaves(tree)[0].sharding
    return sharding.mesh if isinstance(sharding, NamedSharding) and sharding.mesh.size > 1 else None


def data_parts(mesh: Mesh | None) -> int:
    """How many copies of the model run side by side."""
    return 1 if mesh is None else mesh.shape[DATA_AXIS]


def vocabulary_parts(vocab_size: int) -> int:
    """In how many parts the vocabulary lies on the devices, inside a step that `spread` runs."""
    parts = jax.sharding.get_abstract_mesh().shape.get(MODEL_AXIS, 1)
    return parts if vocab_size % parts == 0 else 1


# --- what lies where ----------------------------------------------------------------------------------


def parameter_axes(name: str, shape: tuple[int, ...]) -> list[str]:
    """The axis letters of a parameter of this shape, stacked over layers or of one layer."""
    return PARAMETER_AXES[name].split()[-len(shape) :]


def parameter_sharding(name: str, shape: tuple[int, ...], mesh: Mesh) -> NamedSharding:
    """How a parameter lies on the mesh: split over "model" where that divides it, else one copy each.

    `shape` is the stacked parameter's or, without the leading L, one layer's.
    """
    letters = parameter_axes(name, shape)
    parts = dict(mesh.shape).get(MODEL_AXIS, 1)
    split = [
        MODEL_AXIS if letter in SPLIT_AXES and size % parts == 0 else None
        for letter, size in zip(letters, shape, strict=True)
    ]
    if parts == 1:
        split = []
    return NamedSharding(_with_both_axes(mesh), P(*split))


def _with_both_axes(mesh: Mesh) -> Mesh:
    """The mesh, whatever axes and kinds of axes it came with: the compiler places what is computed."""
    missing = tuple(axis for axis in AXES if axis not in mesh.axis_names)
    names = (*mesh.axis_names, *missing)
    devices = mesh.devices.reshape(*mesh.devices.shape, *[1] * len(missing))
    return Mesh(devices, names, axis_types=(AxisType.Auto,) * len(names))


def place(values: ArrayLike, mesh: Mesh, spec: P) -> Array:
    """An array that every process has whole, on the mesh; each process uploads its own parts alone."""
    values, sharding = np.asarray(values), NamedSharding(mesh, spec)
    if jax.process_count() == 1:
        return jax.device_put(values, sharding)
    return jax.make_array_from_callback(values.shape, sharding, lambda part: values[part])


def fetch(tree: Any) -> Any:
    """The same tree of numpy arrays, whole, in every process."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    return jax.tree.map(lambda leaf: np.asarray(multihost_utils.process_allgather(leaf, tiled=True)), tree)


def fetch_each(computed: Iterable[tuple[T, Any]]) -> Iterator[tuple[T, Any]]:
    """(name, `fetch` of what is computed), each while the next one is computed already: devices need not wait
    until the host has what they gave."""
    waiting: deque[tuple[T, Any]] = deque()
    for name, tree in computed:
        if jax.process_count() == 1:
            jax.tree.map(lambda leaf: leaf.copy_to_host_async(), tree)
        waiting.append((name, tree))
        del tree
        if len(waiting) > 1:
            name, tree = waiting.popleft()
            yield name, fetch(tree)
            del tree
    while waiting:
        name, tree = waiting.popleft()
        yield name, fetch(tree)


def computes_here() -> bool:
    """Whether the host's own cores are what JAX computes on."""
    return jax.default_backend() == "cpu"


def one_ahead(begin: Callable[[T], Any], following: Callable[[T], T | None]) -> Callable[[T], Any]:
    """`begin`, which sets a device to work, for keys that come one after the other: when the results of one
    are handed out the device works on the following one's already, and need not wait until the host has them.

    Where the following one cannot be begun it is tried again in its own turn, and says why. On a CPU, which
    is host and device, none is begun early: two programs at once take longer than one after the other.
    """
    if computes_here():
        return begin
    begun: dict[T, Any] = {}

    def begin_next(key: T) -> Any:
        result = begun.pop(key) if key in begun else begin(key)
        begun.clear()
        if (after := following(key)) is not None:
            with suppress(jax.errors.JaxRuntimeError):
                begun[after] = begin(after)
        return result

    return begin_next


def free_host_memory() -> int:
    """Bytes of this machine's memory that programs can have."""
    with suppress(OSError):
        found = re.search(
            r"^MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text("utf-8"), re.MULTILINE
        )
        if found:
            return 1024 * int(found[1])
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


# --- running a step -----------------------------------------------------------------------------------


@lru_cache(maxsize=64)
def compile_step(step: Callable, mesh: Mesh, in_specs: tuple, out_specs: Any, static: tuple = ()) -> Callable:
    """The jitted step that `spread` calls: over "data" by hand, over "model" as the compiler sees fit."""
    return dispatch.jit(
        jax.shard_map(
            partial(step, **dict(static)),
            mesh=mesh,
            in_specs=in_specs,
            out_specs=out_specs,
            axis_names={DATA_AXIS},
            check_vma=False,
        )
    )


def spread(step: Callable, mesh: Mesh | None, in_specs: tuple, out_specs: Any = ROWS, **static) -> Callable:
    """A step over (model, *arrays) with the arrays split over "data"; the step itself where mesh is None.

    Args:
      in_specs: one spec, or tree of specs, for every argument after the model, which is not split.
      static: keyword arguments of the step, the same in every call.
    """
    if mesh is None:
        return lambda model, *arrays: step(model, *upload(arrays), **static)
    run = compile_step(step, mesh, (WHOLE, *in_specs), out_specs, tuple(sorted(static.items())))
    return lambda model, *arrays: run(model, *upload(arrays, mesh, in_specs))


def upload(tree: Any, mesh: Mesh | None = None, specs: Any = WHOLE) -> Any:
    """The same tree with numpy's arrays on the device, or the mesh's; what is there already stays as it is.

    `specs`: a tree of which one spec may stand for a whole part of the other.
    """
    if mesh is None:
        return jax.tree.map(lambda leaf: leaf if isinstance(leaf, Array) else jax.device_put(leaf), tree)
    return jax.tree.map(lambda spec, part: jax.tree.map(partial(_placed, mesh, spec), part), specs, tree)


def _placed(mesh: Mesh, spec: P, leaf: Any) -> Any:
    return leaf if isinstance(leaf, Array) else place(leaf, mesh, spec)
