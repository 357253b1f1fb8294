"""Every kernel is lowered for its hardware at real models' shapes, without the hardware.

`jax.export` runs Pallas' own lowering, on any machine; `tests/test_tpu_compile.py` goes on from there.
"""

import jax
import jax.numpy as jnp
import pytest

from kernels import hopper, platform, tpu
from kernels.head_attention import head_attention, pallas_mosaic_gpu, pallas_mosaic_tpu
from kernels.variant_decode import variant_decode
from kernels.vocab_rank import pallas_mosaic_gpu as gpu_rank
from kernels.vocab_rank import pallas_mosaic_tpu as tpu_rank
from kernels.vocab_rank import vocab_rank

# name -> H, G, K, D, V
MODELS = {
    "GPT-2 xl": (25, 25, 64, 1600, 50257),
    "Pythia 12B": (40, 40, 128, 5120, 50688),
    "Phi-2": (32, 32, 80, 2560, 51200),
    "Llama-3.1 70B": (64, 8, 128, 8192, 128256),
    "Gemma-2 9B": (16, 8, 256, 3584, 256000),
}
SOFT_CAP = {"Gemma-2 9B": 50.0}  # of the models that have one; they have windows too
PLATFORMS = {"pallas_mosaic_tpu": "tpu", "pallas_mosaic_gpu": "cuda"}
DTYPES = {
    ("head_attention", "cuda"): ("bfloat16",),
    ("variant_decode", "cuda"): ("bfloat16",),
}


def shape(*sizes: int, dtype="float32") -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, jnp.dtype(dtype))


def attention(model: str, implementation: str, dtype: str):
    """All of the model's options at once, 2 prompts of 1000 positions; a window is an array."""
    H, G, K, _, _ = MODELS[model]
    B, S = 2, 1000
    options = {
        "valid": shape(B, S, dtype=bool),
        "gain": shape(B, 1, H),
        "replacement": shape(1, S, H, K),
    }
    if model in SOFT_CAP:
        options["window"] = shape(dtype="int32")
    tensors = shape(B, S, H, K, dtype=dtype), shape(B, S, G, K, dtype=dtype), shape(B, S, G, K, dtype=dtype)

    def call(q, k, v, options):
        how = {"soft_cap": SOFT_CAP.get(model), "precision": "highest", "implementation": implementation}
        return head_attention(q, k, v, **options, **how)

    return call, (*tensors, options)


def decode(model: str, implementation: str, dtype: str):
    """1,200 variants against a cache of 24 prompts of 16 positions."""
    H, G, K, _, _ = MODELS[model]
    M, B, S = 1200, 24, 16
    shapes = ((M, B, H, K), (B, S, G, K), (B, S, G, K), (M, B, G, K), (M, B, G, K))
    arguments = [shape(*sizes, dtype=dtype) for sizes in shapes]

    def call(q, k, v, k_new, v_new, options):
        how = {"soft_cap": SOFT_CAP.get(model), "precision": "highest", "implementation": implementation}
        return variant_decode(q, k, v, k_new, v_new, **options, **how)

    options = {"valid": shape(B, S, dtype=bool)}
    if model in SOFT_CAP:
        options["window"] = shape(dtype="int32")
    return call, (*arguments, options)


def rank(model: str, implementation: str, dtype: str):
    """2,000 pairs under every head with a cap, then the log-probabilities of 300 residuals."""
    H, _, K, D, V = MODELS[model]
    arguments = {
        "q": shape(H, 2000, K, dtype=dtype),
        "W_O": shape(H, K, D, dtype=dtype),
        "x": shape(1, 300, D, dtype=dtype),
        "unembed": shape(V, D, dtype=dtype),
        "bias": shape(V),
        "target": shape(2000, dtype="int32"),
    }

    def call(a):
        how = {"precision": "highest", "implementation": implementation}
        hits = vocab_rank(a["q"], a["unembed"], a["target"], W_O=a["W_O"], cap=a["target"], **how)
        logprobs = vocab_rank(a["x"], a["unembed"], a["target"][:300], bias=a["bias"], with_lse=True, **how)
        return hits.above, hits.below, logprobs

    return call, (arguments,)


OPS = {"head_attention": attention, "variant_decode": decode, "vocab_rank": rank}
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
