"""Every kernel is lowered for its hardware at real models' shapes, without the hardware.

`jax.export` runs Pallas' own lowering, on any machine; `tests/test_tpu_compile.py` goes on from there.
"""

import jax
import jax.numpy as jnp
import pytest
from headjax.kernels.head_attention import head_attention, pallas_mosaic_gpu, pallas_mosaic_tpu
from headjax.kernels.vocab_rank import pallas_mosaic_gpu as gpu_rank
from headjax.kernels.vocab_rank import pallas_mosaic_tpu as tpu_rank

from headjax.kernels import hopper, platform, tpu
from tests.helpers.lowering import MODELS, OPS, attention, shape

PLATFORMS = {"pallas_mosaic_tpu": "tpu", "pallas_mosaic_gpu": "cuda"}
DTYPES = {
    ("head_attention", "cuda"): ("bfloat16",),
    ("variant_decode", "cuda"): ("bfloat16",),
}


CASES = [
    pytest.param(op, implementation, dtype, id=f"{op}-{where}-{dtype}")
    for op in OPS
    for implementation, where in PLATFORMS.items()
    for dtype in DTYPES.get((op, where), ("float32", "bfloat16"))
]


@pytest.mark.parametrize(("op", "implementation", "dtype"), CASES)
@pytest.mark.parametrize("model", MODELS)
def test_lowers_for_its_platform(op: str, implementation: str, dtype: str, model: str):
    call, arguments = OPS[op](model, implementation, dtype)
    with platform.lowered():
        exported = jax.export.export(jax.jit(call), platforms=[PLATFORMS[implementation]])(*arguments)
    target = "tpu_custom_call" if implementation == "pallas_mosaic_tpu" else "mosaic_gpu"
    assert target in exported.mlir_module()


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("implementation", PLATFORMS)
@pytest.mark.parametrize("model", ["GPT-2 xl", "Gemma-2 9B"])
def test_lowers_where_64_bits_are_allowed(op: str, implementation: str, model: str):
    call, arguments = OPS[op](model, implementation, "bfloat16")
    with jax.enable_x64(True), platform.lowered():
        program = jax.export.export(jax.jit(call), platforms=[PLATFORMS[implementation]])(*arguments)
    assert not any(result.dtype in (jnp.int64, jnp.float64) for result in jax.tree.leaves(program.out_avals))


@pytest.mark.parametrize("model", ["GPT-2 xl", "Gemma-2 9B"])
def test_the_gradient_lowers_too(model: str):
    for implementation, where in PLATFORMS.items():
        call, (q, k, v, options) = attention(model, implementation, "bfloat16")

        def loss(q, k, v, options, call=call):
            return jnp.sum(call(q, k, v, options).z.astype(jnp.float32))

        with platform.lowered():
            gradient = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))
            jax.export.export(gradient, platforms=[where])(q, k, v, options)


@pytest.mark.parametrize("model", MODELS)
def test_tiles_fit_the_chips_memory(model: str):
    _, _, K, D, _ = MODELS[model]
    block = pallas_mosaic_tpu.BLOCK
    for vmem in tpu.VMEM.values():
        assert pallas_mosaic_tpu.vmem_bytes(block, block, K, itemsize=4) <= vmem
        for contracted in (K, tpu_rank.contracted_block(D)):
            assert tpu_rank.vmem_bytes(tpu_rank.BLOCK, contracted, itemsize=4) <= vmem
    assert pallas_mosaic_gpu.shared_memory_bytes(-(-K // hopper.LINE) * hopper.LINE) <= hopper.SHARED_MEMORY
    # Two blocks share a processor.
    assert 2 * gpu_rank.shared_memory_bytes() <= hopper.SHARED_MEMORY


def test_a_head_too_wide_for_the_chip_is_refused():
    q = shape(1, 64, 1, 1024, dtype="bfloat16")
    with platform.lowered(), pytest.raises(NotImplementedError, match="holds its tiles in shared memory"):
        jax.eval_shape(lambda q: head_attention(q, q, q, implementation="pallas_mosaic_gpu"), q)
    q = shape(1, 512, 1, 8192)
    with platform.lowered(), pytest.raises(NotImplementedError, match="holds its tiles in VMEM"):
        jax.eval_shape(lambda q: head_attention(q, q, q, implementation="pallas_mosaic_tpu"), q)
