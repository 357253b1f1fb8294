"""Whole sweeps on an accelerator: the sections of `python -m kernels.device_check` that need models.

Random weights of published sizes. `sweeps`: relation scores, ablation at the last position and dynamic
scores, through XLA and through the platform's kernels, which must find the same. `torch`: relation scores as
published and one forward pass a head, in torch on the same device, for some heads. `profile`: a trace.
"""

import argparse
import contextlib
import dataclasses
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from headjax.kernels.device_check import Note, run_section

from headjax import costs, zoo
from headjax.analyses.dynamic_scores import dynamic_scores
from headjax.analyses.head_ablation import head_ablation
from headjax.analyses.relation_scores import relation_scores, relation_weights
from headjax.config import ModelConfig, Rotary
from headjax.data.hit_rule import HitRule
from headjax.data.prompts import Prompt, PromptBatch, TokenPairs
from headjax.data.relations import Relation
from headjax.kernels import platform
from headjax.model import Transformer, build_model, model_parameters, parameter_shapes
from headjax.parameters import InMemory
from headjax.study import Compute, Study

LLAMA_8B = ModelConfig(
    **{"family": "llama", "n_layers": 32, "n_heads": 32, "n_kv_heads": 8, "d_head": 128, "d_model": 4096},
    **{"d_mlp": 14336, "vocab_size": 128256, "max_positions": 8192, "norm": "rms", "norm_eps": 1e-5},
    **{"rotary": Rotary(128, 500000.0), "activation": "silu", "gated_mlp": True},
    **{"parallel_residual": False, "tied_embeddings": False},
)
GPT2_XL = ModelConfig(
    **{"family": "gpt2", "n_layers": 48, "n_heads": 25, "n_kv_heads": 25, "d_head": 64, "d_model": 1600},
    **{"d_mlp": 6400, "vocab_size": 50257, "max_positions": 1024, "norm": "layer", "norm_eps": 1e-5},
    **{"rotary": None, "activation": "gelu_tanh", "gated_mlp": False},
    **{"parallel_residual": False, "tied_embeddings": True},
)
TINY = dataclasses.replace(
    LLAMA_8B,
    **{"n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "d_head": 16, "d_model": 32, "d_mlp": 48},
    **{"vocab_size": 997, "rotary": Rotary(16, 500000.0)},
)
# Name -> config, dtype, relations, pairs of each, prompts, tokens of each.
SIZES = {
    "Llama-3.1-8B": (LLAMA_8B, "bfloat16", 15, 100, 100, 20),
    "GPT-2 xl": (GPT2_XL, "float32", 15, 100, 24, 16),
}
TINY_SIZES = {"tiny": (TINY, "float32", 2, 20, 4, 8)}
RULE = HitRule(top_k=25, top_k_copying=3, first_mlp=True)
TOLERANCE = {"float32": 1e-4, "bfloat16": 3e-2}


def random_model(config: ModelConfig, dtype: str) -> Transformer:
    """Weights whose products keep their size, made where they are used; gains are 1, biases 0."""

    def array(i: int, name: str, shape: tuple[int, ...]) -> jax.Array:
        if name.endswith((".scale", ".bias")) or ".b_" in name:
            return jnp.full(shape, name.endswith(".scale"), dtype)
        fan_in = {"W_O": config.n_heads * config.d_head, "W_out": config.d_mlp}.get(
            name.rpartition(".")[2], config.d_model
        )
        draw = jax.jit(lambda: jax.random.normal(jax.random.key(i), shape, dtype) * fan_in**-0.5)
        return draw()

    shapes = parameter_shapes(config)
    return build_model(
        config, {name: array(i, name, shape) for i, (name, shape) in enumerate(shapes.items())}
    )


def random_pairs(config: ModelConfig, n_relations: int, n_pairs: int) -> list[TokenPairs]:
    """Of different tokens."""
    tokens = np.random.default_rng(0).permutation(config.vocab_size)[: 2 * n_relations * n_pairs]
    sources, targets = tokens.astype(np.int32).reshape(2, n_relations, n_pairs)
    names = [f"relation {i}" for i in range(n_relations)]
    return [
        TokenPairs(Relation(name, (), name, "Random"), *pair, ())
        for name, *pair in zip(names, sources, targets, strict=True)
    ]


def random_prompts(config: ModelConfig, n_prompts: int, n_tokens: int) -> PromptBatch:
    """All of one length, each with a source."""
    rng = np.random.default_rng(1)
    return PromptBatch(
        tokens=rng.integers(0, config.vocab_size, (n_prompts, n_tokens)).astype(np.int32),
        mask=np.ones((n_prompts, n_tokens), bool),
        sources=np.full(n_prompts, n_tokens // 2, np.int32),
        answers=rng.integers(0, config.vocab_size, n_prompts).astype(np.int32),
        distractors=None,
        corrupted=None,
        prompts=tuple(Prompt(f"prompt {i}", "", "", relation="random") for i in range(n_prompts)),
        bos=False,
    )


def sweeps_of(
    model: Transformer, name: str, sizes: dict[str, tuple]
) -> dict[str, tuple[Callable[[], Any], float]]:
    """Sweep -> (what runs it and gives arrays, its FLOP)."""
    config, dtype, n_relations, n_pairs, n_prompts, n_tokens = sizes[name]
    pairs, prompts = random_pairs(config, n_relations, n_pairs), random_prompts(config, n_prompts, n_tokens)
    top_k = np.full(n_prompts, RULE.top_k, np.int32)
    N, B = n_relations * n_pairs, n_prompts
    kind = "cpu" if jax.default_backend() == "cpu" else "gpu"
    machine, compute = costs.Machine(1, 1, 2**36, None, kind), Compute(dtype=dtype, batch_size=B)
    study = Study(zoo.Source(Path(), name, None), name, config, None, (), (), compute=compute)
    start = np.repeat(np.arange(config.n_layers), config.n_heads)
    implementation = model.config.implementation

    def scores() -> Any:
        return relation_scores(relation_weights(InMemory(model)), pairs, RULE, implementation=implementation)

    def ablation() -> Any:
        return head_ablation(model, prompts, batch_size=B).ablated.logprob

    def dynamic() -> Any:
        return list(dynamic_scores(model, prompts, top_k, batch_size=B).scores.values())

    return {
        "relation scores": (scores, costs.relation_scores(config, N, N, N, True, kind).flops),
        "ablation, last position": (
            ablation,
            costs.variants(study, machine, prompts, start, "last").flops,
        ),
        "dynamic scores": (dynamic, costs.dynamic_scores(study, machine, prompts).flops),
    }


def kernels_here() -> list[str | None]:
    """None, which is XLA, and this platform's own."""
    backend = jax.default_backend()
    return [None, *(name for name, needed in platform.PLATFORMS.items() if needed == backend)]


def with_implementation(model: Transformer, implementation: str | None) -> Transformer:
    """The same weights, computed by another implementation."""
    config = dataclasses.replace(model.config, implementation=implementation)
    return build_model(config, model_parameters(model))


def sweeps(note: Note, tiny: bool) -> None:
    """Seconds, TFLOP/s, memory and compile time of each; numbers of the kernels held against XLA's."""
    sizes = TINY_SIZES if tiny else SIZES
    tries = [(name, sweep, kernel) for name in sizes for sweep in range(3) for kernel in kernels_here()]
    models: dict[str, Transformer] = {}
    expected: dict[tuple[str, str], Any] = {}
    for name, index, kernel in note.each(tries, str):
        if name not in models:
            models.clear()  # a device holds one at a time
            models[name] = random_model(*sizes[name][:2])
        model = with_implementation(models[name], kernel)
        sweep, (run, flops) = list(sweeps_of(model, name, sizes).items())[index]
        about = {"model": name, "sweep": sweep, "implementation": kernel or "xla"}
        try:
            (found, first), (_, again) = _timed(run), _timed(run)
        except Exception as error:
            note("sweep failed", **about, why=f"{type(error).__name__}: {error}"[:500], wrong=True)
            continue
        arrays = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(found)]
        reference = expected.setdefault((name, sweep), arrays)
        size = max(float(abs(one).max()) for one in reference) or 1.0
        differs = max(
            float(abs(one - other).max()) / size for one, other in zip(arrays, reference, strict=True)
        )
        memory = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
        note(
            "sweep",
            **about,
            seconds=again,
            compiling=first - again,
            tflops=flops / again / 1e12,
            peak_bytes=memory,
            differs=differs,
            wrong=not differs <= TOLERANCE[sizes[name][1]],
        )


def _timed(run: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    found = jax.block_until_ready(run())
    return found, time.perf_counter() - start


def in_torch(note: Note, tiny: bool) -> None:
    """Relation scores as published and one forward pass a head, for some heads, against the sweeps."""
    try:
        import torch

        from experiments.benchmarks.torch_gpt2 import gpt2_twins
    except ImportError as error:
        note("no torch", why=str(error))
        return
    where = "cuda" if torch.cuda.is_available() else "cpu"
    config = dataclasses.replace(
        GPT2_XL, n_layers=2, d_model=64, n_heads=4, n_kv_heads=4, d_head=16, d_mlp=128
    )
    config = dataclasses.replace(config, vocab_size=997) if tiny else GPT2_XL
    ours, theirs = gpt2_twins(config)
    theirs = theirs.to(where)
    sizes = {"GPT-2 xl": (config, "float32", *((2, 20, 4, 8) if tiny else (15, 100, 24, 16)))}
    _, _, n_relations, n_pairs, n_prompts, n_tokens = sizes["GPT-2 xl"]
    runs = sweeps_of(ours, "GPT-2 xl", sizes)
    n_heads = config.n_layers * config.n_heads

    prompts = random_prompts(config, n_prompts, n_tokens)
    _timed(runs["ablation, last position"][0])
    found, own = _timed(runs["ablation, last position"][0])
    each, worst = [], 0.0
    for layer, head in _some(config, 6):
        expected, seconds = _forward_without(torch, theirs, prompts, layer, head, where)
        each.append(seconds)
        worst = max(worst, float(abs(np.asarray(found[layer, head]) - expected).max()))
    usual = float(np.median(each)) * n_heads
    about = {"torch": usual, "ours": own, "ratio": usual / own, "differs": worst, "device": where}
    note("ratio", sweep="ablation, last position", **about, wrong=not worst <= 1e-3)

    _timed(runs["relation scores"][0])
    scores, own = _timed(runs["relation scores"][0])
    pairs = random_pairs(config, n_relations, n_pairs)
    each, worst = [], 0.0
    for layer, head in _some(config, 2):
        expected, seconds = _published(torch, ours, pairs, layer, head, where)
        each.append(seconds)
        got = np.asarray([scores.plain[r, layer, head] for r in range(n_relations)])
        worst = max(worst, float(abs(got - expected).max()))
    usual = float(np.median(each)) * n_heads
    # A pair more or less is a logit within rounding of the target's.
    about = {"torch": usual, "ours": own, "ratio": usual / own, "differs": worst, "device": where}
    note("ratio", sweep="relation scores", **about, wrong=not worst <= 2 / n_pairs)


def _some(config: ModelConfig, n: int) -> Iterator[tuple[int, int]]:
    """Heads drawn by chance."""
    heads = np.random.default_rng(0).permutation(config.n_layers * config.n_heads)[:n]
    return (divmod(int(head), config.n_heads) for head in heads)


def _forward_without(
    torch: Any, theirs: Any, prompts: PromptBatch, layer: int, head: int, where: str
) -> tuple[np.ndarray, float]:
    """Log-probabilities [B] of the answers without one head at the last position, and the seconds."""
    width = theirs.config.n_embd // theirs.config.n_head

    def hook(_module: Any, arguments: tuple) -> tuple:
        z = arguments[0].clone()
        z[:, -1, head * width : (head + 1) * width] = 0
        return (z,)

    tokens = torch.tensor(prompts.tokens, device=where).long()
    answers = torch.tensor(prompts.answers, device=where).long()
    handle = theirs.transformer.h[layer].attn.c_proj.register_forward_pre_hook(hook)
    try:
        with torch.no_grad():
            for _ in range(2):  # the first one warms up
                start = time.perf_counter()
                logits = theirs(tokens, use_cache=False, logits_to_keep=1).logits[:, -1]
                found = logits.log_softmax(-1)[torch.arange(len(logits), device=where), answers].cpu().numpy()
                seconds = time.perf_counter() - start
    finally:
        handle.remove()
    return found, seconds


def _published(
    torch: Any, ours: Transformer, pairs: list[TokenPairs], layer: int, head: int, where: str
) -> tuple[np.ndarray, float]:
    """Scores of one head as published: all logits of every relation's sources, sorted; and the seconds."""
    weights = relation_weights(InMemory(ours))
    sources = np.concatenate([one.sources for one in pairs])
    x = weights.embedding[sources]
    x = np.asarray(weights.first_mlp(x) if layer else x)
    W_V, W_O = list(weights.layers)[layer]
    n_share = ours.config.n_heads // ours.config.n_kv_heads
    arrays = (x, W_V[:, head // n_share], W_O[head], weights.unembed)
    arrays = tuple(np.asarray(array, np.float32) for array in arrays)
    x, W_V, W_O, U = (torch.tensor(array, device=where) for array in arrays)
    for _ in range(2):
        start, shares, first = time.perf_counter(), [], 0
        for one in pairs:
            logits = x[first : first + len(one.sources)] @ (W_V @ W_O) @ U.T
            best = logits.topk(RULE.top_k, dim=1).indices
            targets = torch.tensor(one.targets, device=where)[:, None]
            shares.append((best == targets).any(dim=1).float().mean().item())
            first += len(one.sources)
        seconds = time.perf_counter() - start
    return np.array(shares), seconds


def profile(note: Note, tiny: bool) -> None:
    """A trace of last-position ablation of the larger model."""
    sizes = TINY_SIZES if tiny else SIZES
    name = next(iter(sizes))
    run, _ = sweeps_of(random_model(*sizes[name][:2]), name, sizes)["ablation, last position"]
    _timed(run)
    directory = note.directory / "profile"
    with jax.profiler.trace(str(directory)):
        _timed(run)
    note("profile", directory=str(directory))


SECTIONS = {"sweeps": sweeps, "torch": in_torch, "profile": profile}


def main(arguments: list[str]) -> int:
    """One section, as `kernels.device_check` starts it."""
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmarks.device")
    parser.add_argument("--section", choices=SECTIONS, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--tiny", action="store_true")
    given = parser.parse_args(arguments)
    with contextlib.suppress(FileExistsError):
        given.out.mkdir(parents=True)
    run_section(SECTIONS[given.section], given.out, given.section, 60 * given.minutes, given.tiny)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
