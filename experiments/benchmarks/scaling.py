"""Benchmark of growth: what each device computes and receives, on 1 to 8 devices, in the compiled programs.

Read off XLA's own account of the partitioned programs and not timed: forced CPU devices share their cores.
A loop's body counts once: for a forward sweep that is one layer, and all other loops are made to end after
one pass, by chunks as large as all there is. What eight devices find is compared with what one does before
anything is printed. At the end every analysis that runs prompts, whole, on the trained model of the
repository: all its programs, as often as they are called.
"""

import contextlib
import re
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P

import headjax
from headjax.analyses import (
    AttentionPatterns,
    CircuitDiscovery,
    DynamicScores,
    GradientAttribution,
    HeadAblation,
    LogitAttribution,
    PathPatching,
)
from headjax.analyses.base import Analysis
from headjax.analyses.relation_scores import compile_scores, deal_heads
from headjax.config import ModelConfig, Rotary
from headjax.engine import hits as scores
from headjax.engine import mesh as mesh_module
from headjax.engine import metrics as metrics_module
from headjax.engine.hits import screening_stages
from headjax.engine.mesh import (
    AXES,
    DATA_AXIS,
    ROWS,
    WHOLE,
    compile_step,
    fetch,
    parameter_sharding,
    place,
    upload,
)
from headjax.engine.prefill import SPECS, prefill
from headjax.engine.variant_step import VariantEdit, variant_step
from headjax.model import Transformer, build_model, model_parameters

DEVICES = (1, 2, 4, 8)
CONFIG = ModelConfig(
    **{"family": "llama", "n_layers": 3, "n_heads": 16, "n_kv_heads": 8, "d_head": 32, "d_model": 512},
    **{"d_mlp": 1536, "vocab_size": 8192, "max_positions": 64, "norm": "rms", "norm_eps": 1e-5},
    **{"rotary": Rotary(32, 10000.0), "activation": "silu", "gated_mlp": True},
    **{"parallel_residual": False, "tied_embeddings": True},
)
# As many pairs as a head has dimensions: more of them would pass through a loop over the heads.
PROMPTS, LENGTH, VARIANTS, PAIRS = 16, 24, 32, CONFIG.d_head
COLLECTIVE = re.compile(
    r"= (.*?) (?:all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)(?:-start)?\("
)
SHAPE = re.compile(r"([a-z]+)(\d*)\[([\d,]*)\]")


class Cost(NamedTuple):
    """Of one device in one run of a program: operations, and bytes of what collectives give it."""

    flop: float
    received: int


def cost_of(compiled: Any) -> Cost:
    """XLA's account of a partitioned program."""
    received = 0
    for shapes in COLLECTIVE.findall(compiled.as_text()):
        for _, bits, sizes in SHAPE.findall(shapes):
            received += int(bits or 8) // 8 * int(np.prod([int(n) for n in sizes.split(",") if n], initial=1))
    return Cost(compiled.cost_analysis()["flops"], received)


def mesh_of(data: int, model: int) -> Mesh:
    """The first devices of this process."""
    devices = np.array(jax.devices()[: data * model]).reshape(data, model)
    return Mesh(devices, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def static_scores(model: Transformer, mesh: Mesh) -> tuple[Cost, np.ndarray]:
    """One layer of relation scores: cost, and the number of hits of each head."""
    attn, rng = model.blocks.attn, np.random.default_rng(0)
    targets = rng.permutation(CONFIG.vocab_size)[:PAIRS].astype(np.int32)
    x = rng.normal(size=(2, PAIRS, CONFIG.d_model)).astype(np.float32)
    one = np.zeros(PAIRS, np.int32)
    shared = (x, screening_stages(model.W_E, targets), np.arange(PAIRS, dtype=np.int32), one, one + 10)
    shared = jax.tree.map(lambda values: place(values, mesh, WHOLE), shared)
    dealt = deal_heads([(attn.W_V[0], attn.W_O[0])], np.ones(CONFIG.n_heads, bool), mesh)
    program = compile_scores(mesh, 1, "highest").lower(*dealt, *shared).compile()
    found, _ = program(*dealt, *shared)  # beside what its ops chose
    return cost_of(program), fetch(found)


def ablation(model: Transformer, mesh: Mesh) -> tuple[Cost, np.ndarray]:
    """One step of the ablation sweep: cost, and the log-probabilities of all variants and prompts."""
    placed = {
        name: jax.device_put(values, parameter_sharding(name, values.shape, mesh))
        for name, values in model_parameters(model).items()
    }
    model, rng = build_model(model.config, placed), np.random.default_rng(0)
    rows = partial(place, mesh=mesh, spec=ROWS)
    tokens = rng.integers(0, CONFIG.vocab_size, (PROMPTS, LENGTH)).astype(np.int32)
    mask = np.ones_like(tokens, dtype=bool)
    run = compile_step(prefill, mesh, (WHOLE, ROWS, ROWS), SPECS, (("keep", "last"),))
    clean = run(model, rows(tokens), rows(mask))
    gain = np.ones((VARIANTS, CONFIG.n_layers, CONFIG.n_heads), np.float32)
    gain[np.arange(1, VARIANTS), 0, np.arange(1, VARIANTS) % CONFIG.n_heads] = 0
    edit = VariantEdit(gain, np.zeros((CONFIG.n_layers, 1, 1, 1, 1), np.float32))
    whole = partial(place, mesh=mesh, spec=WHOLE)
    arguments = (model, clean, jax.tree.map(whole, edit), whole(np.int32(0)), rows(tokens[:, 0]), None)
    in_specs = (WHOLE, SPECS, WHOLE, WHOLE, ROWS, ROWS)
    static = (("positions", "last"),)
    program = compile_step(variant_step, mesh, in_specs, P(None, DATA_AXIS), static)
    compiled = program.lower(*arguments).compile()
    (metrics, _), _ = compiled(*arguments)
    return cost_of(compiled), fetch(metrics).logprob


WAYS = {
    "relation scores, heads over all devices": (static_scores, lambda n: mesh_of(n, 1)),
    "ablation, prompts over data": (ablation, lambda n: mesh_of(n, 1)),
    "ablation, model over model": (ablation, lambda n: mesh_of(1, n)),
}


ANALYSES = (
    *(DynamicScores(), LogitAttribution(), AttentionPatterns(), GradientAttribution()),
    *(HeadAblation(replacement="mean"), HeadAblation(replacement="resample", positions="all")),
    *(PathPatching(prompts="ioi"), CircuitDiscovery(prompts="ioi", n_stages=1)),
)


@contextlib.contextmanager
def counted() -> Iterator[list[Cost]]:
    """The cost of every program that sweeps call inside, once a call."""
    costs: list[Cost] = []
    known: dict[Any, Cost] = {}
    spread = mesh_module.spread

    def counting(
        step: Callable, mesh: Mesh | None, in_specs: tuple, out_specs: Any = ROWS, **static: Any
    ) -> Callable:
        run = spread(step, mesh, in_specs, out_specs, **static)
        fixed = tuple(sorted(static.items()))
        program = step if mesh is None else compile_step(step, mesh, (WHOLE, *in_specs), out_specs, fixed)

        def call(model: Any, *arrays: Any) -> Any:
            placed = upload(arrays, mesh, in_specs)
            key = (step, fixed, str(jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), placed)))
            if key not in known:
                known[key] = cost_of(program.lower(model, *placed, **({} if mesh else static)).compile())
            costs.append(known[key])
            return run(model, *placed)

        return call

    users = [module for module in list(sys.modules.values()) if getattr(module, "spread", None) is spread]
    for module in users:
        module.spread = counting
    try:
        yield costs
    finally:
        for module in users:
            module.spread = spread


def whole_analysis(analysis: Analysis, n_devices: int) -> tuple[Cost, list[np.ndarray]]:
    """The cost of all its programs for each of one or all devices, and its scores."""
    study = headjax.open("trained-llama", n_prompts=8, mesh={"data": max(DEVICES), "model": 1})
    if n_devices == 1:
        vars(study)["mesh"] = None  # a study takes all devices there are
    with counted() as costs:
        found = study.run(analysis)
    total = Cost(sum(one.flop for one in costs), sum(one.received for one in costs))
    return total, [grid.scores for grid in found.grids]


def bench_scaling() -> float:
    """Prints the table; returns the least share of the work of one device that eight share out evenly."""
    jax.config.update("jax_num_cpu_devices", max(DEVICES))
    metrics_module.TILE_LOGITS["cpu"] = 2**40
    scores.CHUNKS["cpu"] = scores.Chunk(rows=2**20, logits=2**40)
    model = Transformer(CONFIG, rngs=nnx.Rngs(0))
    print(f"{jax.device_count()} forced {jax.default_backend()} devices, jax {jax.__version__}; not timed")
    print(f"{CONFIG.n_heads} heads of {CONFIG.d_head}, {CONFIG.n_kv_heads} key/value heads, d_model")
    print(f"{CONFIG.d_model}, MLP {CONFIG.d_mlp}, vocabulary {CONFIG.vocab_size}; {PAIRS} pairs;")
    print(f"{VARIANTS} variants of {PROMPTS} prompts\n")
    evenness = []
    for name, (measure, mesh) in WAYS.items():
        first, expected = measure(model, mesh(1))
        print(f"{name}\n    devices   MFLOP each   of one device's   KiB received by each")
        for n in DEVICES:
            cost, found = (first, expected) if n == 1 else measure(model, mesh(n))
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
            share = first.flop / cost.flop / n
            print(f"    {n:7}   {cost.flop / 1e6:10.1f}   {share:14.0%}   {cost.received / 1024:20.1f}")
        evenness.append(share)
    evenness.append(bench_analyses())
    print(f"ratio {min(evenness):.2f}x")
    return min(evenness)


def bench_analyses() -> float:
    """Prints a line an analysis; returns the least share that eight devices share out evenly."""
    n = max(DEVICES)
    print(f"whole analyses of the trained Llama, prompts over {n} devices")
    print("    MFLOP of one   of each of all   evenness   KiB received by each")
    shares = []
    for analysis in ANALYSES:
        one, expected = whole_analysis(analysis, 1)
        each, found = whole_analysis(analysis, n)
        for ours, theirs in zip(found, expected, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)
        shares.append(one.flop / each.flop / n)
        flop = f"{one.flop / 1e6:12.1f}   {each.flop / 1e6:14.1f}   {shares[-1]:8.0%}"
        print(f"    {flop}   {each.received / 1024:12.1f}   {analysis}", flush=True)
    return min(shares)
