"""`python -m tests.helpers.compile_for_tpu CHIP DTYPE`: libtpu compiles the TPU kernels for a described chip.

CHIP is a topology, `v5e:2x2`. A process of its own, because a loaded libtpu takes its lock, writes logs and
looks for its machine. Prints one line of JSON for each program: its name and the compiler's error, or null.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from headjax.kernels.head_attention import head_attention
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from headjax.kernels import platform
from tests.helpers.lowering import MODELS, OPS, attention, shape

NAME = "pallas_mosaic_tpu"
# What keeps libtpu from asking a cloud's metadata server which machine this is, and from refusing to be
# loaded twice.
ENVIRONMENT = {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "JAX_PLATFORMS": "cpu"}
GRADIENT, SHARDED = "gradient", "heads over 4 chips"
PROGRAMS = (*(f"{op}, {model}" for op in OPS for model in MODELS), GRADIENT, SHARDED)


def programs(devices: list, dtype: str) -> Iterator[tuple[str, Callable, tuple]]:
    """Name, function and arguments, each placed on the chip."""
    alone = SingleDeviceSharding(devices[0])

    def place(arguments, sharding):
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), arguments)

    for op, build in OPS.items():
        for model in MODELS:
            call, arguments = build(model, NAME, dtype)
            yield f"{op}, {model}", call, place(arguments, alone)

    call, (*tensors, options) = attention("Phi-2", NAME, dtype)

    def loss(q, k, v, options):
        return jnp.sum(call(q, k, v, options).z.astype(jnp.float32))

    yield GRADIENT, jax.grad(loss, argnums=(0, 1, 2)), place((*tensors, options), alone)

    H, G, K, _, _ = MODELS["Llama-3.1 70B"]
    mesh, heads = Mesh(np.array(devices[:4]), ("heads",)), PartitionSpec(None, None, "heads")
    tensors = (shape(1, 1000, H, K, dtype=dtype), *[shape(1, 1000, G, K, dtype=dtype)] * 2)

    def attend(q, k, v):
        return tuple(head_attention(q, k, v, precision="highest", implementation=NAME))

    sharded = jax.shard_map(attend, mesh=mesh, in_specs=heads, out_specs=heads, check_vma=False)
    yield SHARDED, sharded, place(tensors, NamedSharding(mesh, heads))


def main(chip: str, dtype: str) -> None:
    import libtpu

    os.environ.setdefault("TPU_LIBRARY_PATH", libtpu.get_library_path())
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    jax.config.update("jax_numpy_rank_promotion", "raise")
    devices = topologies.get_topology_desc(platform="tpu", topology_name=chip).devices
    for name, function, arguments in programs(devices, dtype):
        error = None
        try:
            with platform.lowered():
                jax.jit(function).trace(*arguments).lower(lowering_platforms=("tpu",)).compile()
        except jax.errors.JaxRuntimeError as refused:
            error = str(refused)
        print(json.dumps({"program": name, "error": error}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
