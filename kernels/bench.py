"""`python -m kernels.bench [op ...]`: what every implementation of every kernel reaches on this machine.

Numbers are checked before a time is printed. Each line gives the median time, TFLOP/s, GB/s, and the share
of the roofline: the least time that a large matmul and a large copy, timed right before, allow, over the
time taken. A CPU may be busy with other work as well: there the time is what this process spent on all cores
together, the least of several, and rates are those of one core. An implementation that cannot run here is
named with its reason. Sizes are a model's on an accelerator and smaller on a CPU.
"""

import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from .head_attention import IMPLEMENTATIONS as ATTENTION
from .head_attention import head_attention
from .variant_decode import IMPLEMENTATIONS as DECODE
from .variant_decode import variant_decode
from .vocab_rank import IMPLEMENTATIONS as RANK
from .vocab_rank import vocab_rank

ON_CPU = jax.default_backend() == "cpu"
DTYPES = ("float32",) if ON_CPU else ("bfloat16", "float32")
REPEATS, typical, clock = (
    (5, min, time.process_time) if ON_CPU else (20, statistics.median, time.perf_counter)
)
PRECISION = "highest"  # of float32 products; a product of bfloat16s is exact anyway


class Case(NamedTuple):
    """One thing to time.

    Attributes:
      call: ``(implementation, *arguments)``.
      flops: multiplications and additions that the definition needs, twice the products.
      bytes: read and written at least once.
      tolerance: how far results may differ from XLA's, relative to the largest.
      tile_bytes: read once more between a product and what is made of it: a CPU has no registers for a tile.
    """

    name: str
    call: Callable
    arguments: tuple
    implementations: tuple[str, ...]
    flops: float
    bytes: float
    tolerance: float
    tile_bytes: float = 0


def random(key: int, *shape: int, dtype: str) -> Array:
    return jax.random.normal(jax.random.key(key), shape, dtype)


def attention_cases(dtype: str) -> Iterator[Case]:
    # name, B, S, H, G, K
    models = (
        [("short prompts", 24, 16, 12, 12, 64), ("long", 1, 256, 12, 12, 64)]
        if ON_CPU
        else [
            ("GPT-2 xl", 64, 16, 25, 25, 64),
            ("GPT-2 xl", 16, 1024, 25, 25, 64),
            ("Phi-2", 4, 2048, 32, 32, 80),
            ("Pythia 12B", 4, 2048, 40, 40, 128),
            ("Qwen2.5-7B", 4, 2048, 28, 4, 128),
            ("Llama-3.1-8B", 64, 20, 32, 8, 128),
            ("Llama-3.1-8B", 2, 4096, 32, 8, 128),
            ("Llama-3.1 70B", 2, 4096, 64, 8, 128),
        ]
    )
    for name, B, S, H, G, K in models:
        q, k, v = (random(i, B, S, n, K, dtype=dtype) for i, n in enumerate((H, G, G)))

        def call(implementation: str, q: Array, k: Array, v: Array) -> Array:
            if implementation == "cudnn":
                return jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation="cudnn")
            return head_attention(q, k, v, precision=PRECISION, implementation=implementation).z

        cudnn = jax.default_backend() == "gpu" and dtype == "bfloat16"  # it has no float32
        names = (*ATTENTION, "cudnn") if cudnn else tuple(ATTENTION)
        half = 2 * 2 * B * H * K * S * (S + 1) / 2  # causal: half of two products
        yield Case(f"{name} {S}", call, (q, k, v), names, half, 2 * q.nbytes + 2 * k.nbytes, 3e-2)


def decode_cases(dtype: str) -> Iterator[Case]:
    models = (
        [("GPT-2", 48, 8, 16, 12, 12, 64)]
        if ON_CPU
        else [
            ("GPT-2 xl", 1200, 24, 16, 25, 25, 64),
            ("Qwen2.5-7B", 1200, 24, 64, 28, 4, 128),
            ("Llama-3.1 70B", 1200, 24, 64, 64, 8, 128),
        ]
    )
    for name, M, B, S, H, G, K in models:
        shapes = ((M, B, H, K), (B, S, G, K), (B, S, G, K), (M, B, G, K), (M, B, G, K))
        arguments = tuple(random(i, *shape, dtype=dtype) for i, shape in enumerate(shapes))

        def call(implementation: str, *arguments: Array) -> Array:
            return variant_decode(*arguments, precision=PRECISION, implementation=implementation)

        size = sum(x.nbytes for x in arguments) + arguments[0].nbytes
        yield Case(f"{name}, {M} variants", call, arguments, tuple(DECODE), 4 * M * B * H * K * S, size, 3e-2)


def rank_cases(dtype: str) -> Iterator[Case]:
    # name, H, N, K, D, V
    models = (
        [("GPT-2 small", 2, 500, 64, 768, 50257), ("GPT-2 xl", 1, 500, 64, 1600, 50257)]
        if ON_CPU
        else [
            ("GPT-2 xl", 25, 2000, 64, 1600, 50257),
            ("Llama-3.1-8B", 8, 2000, 128, 4096, 128256),
            ("Llama-3.1 70B", 8, 2000, 128, 8192, 128256),
        ]
    )
    for name, H, N, K, D, V in models:
        unembed = random(0, V, D, dtype=dtype)
        target = jax.random.randint(jax.random.key(1), (N,), 0, V)
        q, W_O = random(2, H, N, K, dtype=dtype), random(3, H, K, D, dtype=dtype) * D**-0.5
        x = random(4, 1, N, D, dtype=dtype)

        def residuals(implementation: str, x: Array, unembed: Array, target: Array) -> Array:
            return through_tokens(implementation, x, unembed, target, None)

        names, read = (*RANK, "materialised"), unembed.nbytes
        logits = 4 * N * V if ON_CPU else 0
        flops, arguments = 2 * H * K * V * (D + N), (q, unembed, target, W_O)
        yield Case(f"{name}, {H} heads", through_tokens, arguments, names, flops, read, 3e-2, H * logits)
        flops, arguments = 2 * N * D * V, (x, unembed, target)
        yield Case(f"{name}, residuals", residuals, arguments, names, flops, read, 3e-2, logits)


def through_tokens(implementation: str, q: Array, unembed: Array, target: Array, W_O: Array | None) -> Array:
    """Counts above, as a share of the vocabulary: two roundings may order near-equal logits differently."""
    if implementation != "materialised":
        rank = vocab_rank(q, unembed, target, W_O=W_O, precision=PRECISION, implementation=implementation)
        return rank.above / unembed.shape[0]

    def one_head(head: tuple[Array, Array | None]) -> Array:
        """The logits of one head in memory, then compared: what XLA does when it is asked plainly."""
        q, W_O = head
        columns = unembed if W_O is None else dot("vd,kd->vk", unembed, W_O).astype(q.dtype)
        logits = dot("nk,vk->nv", q, columns)
        own = jnp.take_along_axis(logits, target[:, None], axis=1)
        return jnp.sum(logits > own, axis=1) / unembed.shape[0]

    return jax.lax.map(one_head, (q, W_O))


def dot(equation: str, x: Array, y: Array) -> Array:
    return jnp.einsum(equation, x, y, precision=PRECISION, preferred_element_type=jnp.float32)


OPS = {"head_attention": attention_cases, "variant_decode": decode_cases, "vocab_rank": rank_cases}


def seconds_of(function: Callable, *arguments: Array) -> float:
    """Compiled and warmed up first."""
    jax.block_until_ready(function(*arguments))
    times = []
    for _ in range(REPEATS):
        start = clock()
        jax.block_until_ready(function(*arguments))
        times.append(clock() - start)
    return typical(times)


def roofline(dtype: str) -> tuple[float, float]:
    """Operations and bytes a second, of a large matmul and a large copy in this run."""
    n = 2048 if ON_CPU else 8192
    x = random(0, n, n, dtype=dtype)
    flops = 2 * n**3 / seconds_of(jax.jit(lambda x: jnp.matmul(x, x, precision=PRECISION)), x)
    block = random(1, (2**26 if ON_CPU else 2**30) // x.dtype.itemsize, dtype=dtype)
    copied = 2 * block.nbytes / seconds_of(jax.jit(lambda x: x + jnp.ones((), x.dtype)), block)
    return flops, copied


class Timing(NamedTuple):
    """What one implementation of a case reaches; `seconds` is None where it does not run, or not right.

    Attributes:
      differs: from XLA, relative to its largest number; None where it does not run.
      said: why there is no time, else "".
      of_roofline: share of the least time that the machine's rates allow.
    """

    implementation: str
    seconds: float | None
    differs: float | None
    said: str
    of_roofline: float | None


def timings(case: Case, rates: tuple[float, float]) -> Iterator[Timing]:
    """Of every implementation that runs here and agrees with XLA; `rates`: operations and bytes a second."""
    expected = np.asarray(jax.jit(lambda *a: case.call("xla", *a))(*case.arguments), np.float32)
    flop_rate, byte_rate = rates
    floor = max(case.flops / flop_rate, case.bytes / byte_rate) + case.tile_bytes / byte_rate
    for name in case.implementations:
        if name == "reference":
            continue
        compiled = jax.jit(lambda *a, name=name: case.call(name, *a))
        try:
            actual = np.asarray(compiled(*case.arguments), np.float32)
        except NotImplementedError as error:
            yield Timing(name, None, None, f"not here: {error}", None)
            continue
        worst = float(np.abs(actual - expected).max() / np.abs(expected).max())
        if not worst <= case.tolerance:
            said = f"WRONG: differs from XLA by {worst:.1e} of the largest"
            yield Timing(name, None, worst, said, None)
            continue
        seconds = seconds_of(compiled, *case.arguments)
        yield Timing(name, seconds, worst, "", floor / seconds)


def report(case: Case, dtype: str) -> None:
    """Prints them."""
    rates = roofline(dtype)
    print(f"  {case.name}, {dtype}: matmul {rates[0] / 1e12:.3f} TFLOP/s, copy {rates[1] / 1e9:.1f} GB/s")
    for timing in timings(case, rates):
        label, seconds = f"    {timing.implementation:18}", timing.seconds
        if seconds is None:
            print(f"{label} {timing.said}")
            continue
        print(
            f"{label} {seconds * 1e3:9.3f} ms  {case.flops / seconds / 1e12:8.3f} TFLOP/s  "
            f"{case.bytes / seconds / 1e9:8.1f} GB/s  {timing.of_roofline:5.0%} of the roofline"
        )


def main() -> None:
    chosen = sys.argv[1:] or list(OPS)
    unknown = set(chosen) - set(OPS)
    if unknown:
        sys.exit(f"ops are {', '.join(OPS)}; got {', '.join(sorted(unknown))}")
    device = jax.devices()[0]
    how = f"{typical.__name__} of {REPEATS}, {clock.__name__}"
    print(f"{device.device_kind} ({jax.default_backend()}), jax {jax.__version__}, {how}")
    for op in chosen:
        print(op)
        for dtype in DTYPES:
            for case in OPS[op](dtype):
                report(case, dtype)


if __name__ == "__main__":
    main()
