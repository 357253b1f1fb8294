"""Benchmark of head ablation against one forward pass for each head, on random GPT-2 shapes.

The usual way, in torch: for each head a forward pass whose hook zeroes the head's slice of the output
projection's input. It is timed for a sample of heads, as users call the model and also with the logits of the
last position alone; so is one compiled forward pass of our own, always with the last position's alone. The
sweeps over the last and over all positions are timed whole, preparation included. Both sweeps'
log-probabilities are compared with torch's before anything is timed.
"""

import statistics
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
import torch
import transformers

from experiments.benchmarks.measure import seconds
from experiments.benchmarks.torch_gpt2 import SHAPES, gpt2_twins, smallest_ratio
from headjax.analyses.head_ablation import head_ablation
from headjax.axes import Head
from headjax.config import ModelConfig
from headjax.data.prompts import Prompt, PromptBatch
from headjax.engine.metrics import Metrics, next_token_metrics
from headjax.model import Transformer, mask_positions
from headjax.model.edits import HeadEdit

N_PROMPTS, N_TOKENS = 24, 16
REPEATS = 3
TOLERANCE = 1e-4  # absolute, on log-probabilities
CHECKED = 6  # heads compared with torch


def random_prompts(config: ModelConfig, seed: int = 0) -> PromptBatch:
    """Random tokens and answers, all prompts of one length."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, config.vocab_size, (N_PROMPTS, N_TOKENS)).astype(np.int32)
    return PromptBatch(
        tokens=tokens,
        mask=np.ones(tokens.shape, bool),
        sources=np.full(N_PROMPTS, -1, np.int32),
        answers=rng.integers(0, config.vocab_size, N_PROMPTS).astype(np.int32),
        distractors=None,
        corrupted=None,
        prompts=tuple(Prompt(f"prompt {i}", "", "", relation="random") for i in range(N_PROMPTS)),
        bos=False,
    )


@torch.no_grad()
def torch_forward(
    theirs: transformers.GPT2LMHeadModel,
    prompts: PromptBatch,
    head: Head,
    *,
    positions: slice = slice(-1, None),
    logits_to_keep: int = 0,
) -> np.ndarray:
    """Log-probabilities [B] of the answers without one head."""
    width = theirs.config.n_embd // theirs.config.n_head
    mine = slice(head.head * width, (head.head + 1) * width)

    def hook(_module, arguments):
        z = arguments[0].clone()
        z[:, positions, mine] = 0
        return (z,)

    handle = theirs.transformer.h[head.layer].attn.c_proj.register_forward_pre_hook(hook)
    try:
        tokens = torch.tensor(prompts.tokens).long()
        logits = theirs(tokens, use_cache=False, logits_to_keep=logits_to_keep).logits[:, -1]
    finally:
        handle.remove()
    return logits.log_softmax(-1)[torch.arange(len(logits)), torch.tensor(prompts.answers).long()].numpy()


@jax.jit
def own_forward(model: Transformer, prompts: tuple, edit: HeadEdit) -> Metrics:
    """Metrics [B] of one whole forward pass of our own; the last position's logits alone."""
    tokens, mask, answers = prompts
    positions = mask_positions(mask)

    def layer(x, inputs):
        block, layer_edit = inputs
        return block(x, positions, None, layer_edit)[0], None

    x, _ = jax.lax.scan(layer, model.embed(tokens, positions), (model.blocks, edit))
    return next_token_metrics(model, x[:, -1], answers)


class Work(NamedTuple):
    """Multiplications and additions of the products with weights, for one head, averaged over heads."""

    torch: float
    forward: float
    last: float
    all: float


def work(config: ModelConfig) -> Work:
    """What each way has to compute."""
    L, D = config.n_layers, config.d_model
    projections = 2 * 3 * D * config.n_heads * config.d_head  # of one row in one layer
    rest = 2 * D * config.n_heads * config.d_head + 2 * 2 * D * config.d_mlp
    unembedding = 2 * D * config.vocab_size
    rows, above = N_PROMPTS * N_TOKENS, (L - 1) / 2  # layers above the edited one, on average
    forward = rows * L * (projections + rest)
    # Of the last layer all positions' keys and values are needed, everything else of the last one only.
    whole_layers = (L - 1) * (L - 2) / 2 / L
    last_layer = (L - 1) / L * (rows * projections + N_PROMPTS * rest)
    return Work(
        torch=forward + rows * unembedding,
        forward=forward + N_PROMPTS * unembedding,
        last=N_PROMPTS * (rest + above * (projections + rest) + unembedding),
        all=rows * (rest + whole_layers * (projections + rest)) + last_layer + N_PROMPTS * unembedding,
    )


def compare(name: str, rate: float) -> float:
    """Prints numbers, times and floors for one shape; returns how much faster the last-position sweep is."""
    ours, theirs = gpt2_twins(SHAPES[name])
    config = ours.config
    prompts = random_prompts(config)
    n_heads = config.n_layers * config.n_heads
    sample = [Head(*divmod(int(i), config.n_heads)) for i in np.linspace(0, n_heads - 1, CHECKED)]

    def forward(head: Head) -> np.ndarray:
        edit = HeadEdit.ablate(config, [head], n_positions=N_TOKENS, positions="last")
        arrays = (prompts.tokens, prompts.mask, prompts.answers)
        return np.asarray(own_forward(ours, arrays, edit).logprob)

    # The first runs compile, warm up, and are compared.
    last = head_ablation(ours, prompts).ablated.logprob
    everywhere = head_ablation(ours, prompts, positions="all").ablated.logprob
    worst = 0.0
    for head in sample:
        expected = torch_forward(theirs, prompts, head)
        expected_all = torch_forward(theirs, prompts, head, positions=slice(None), logits_to_keep=1)
        pairs = ((last[head], expected), (forward(head), expected), (everywhere[head], expected_all))
        worst = max(worst, *(float(np.abs(ours - theirs).max()) for ours, theirs in pairs))
    if not worst <= TOLERANCE:
        raise AssertionError(f"{name}: log-probabilities differ from torch's by {worst:.1e}")
    print(f"{name}: {n_heads} heads, {N_PROMPTS} prompts x {N_TOKENS} tokens")
    print(f"  log-probabilities of {CHECKED} heads, last and all positions: within {worst:.1e} of torch's")

    ways: dict[str, Callable[[Head], object]] = {
        "torch": lambda head: torch_forward(theirs, prompts, head),
        "torch, last logits": lambda head: torch_forward(theirs, prompts, head, logits_to_keep=1),
        "own forward": forward,
        "last": lambda _: head_ablation(ours, prompts),
        "all": lambda _: head_ablation(ours, prompts, positions="all"),
    }
    whole = ("last", "all")  # all heads in one call; one elsewhere
    times: dict[str, list[float]] = {way: [] for way in ways}
    for i in range(REPEATS):  # in turn, so that whatever else the machine does meets all
        for way, call in ways.items():
            again = 1 if way in whole else 3
            call_times = [seconds(lambda: call(sample[i % CHECKED])) for _ in range(again)]  # noqa: B023
            times[way].append(statistics.median(call_times) / (n_heads if way in whole else 1))
    each = {way: statistics.median(column) for way, column in times.items()}

    flops = work(config)
    for way, per_head, label in (
        ("torch", flops.torch, f"torch, one forward a head (hook; {CHECKED} heads timed)"),
        ("torch, last logits", flops.forward, "torch, the same, logits of the last position only"),
        ("own forward", flops.forward, f"ours, one compiled forward a head ({CHECKED} heads timed)"),
        ("last", flops.last, "sweep, last position (all heads timed)"),
        ("all", flops.all, "sweep, all positions (all heads timed)"),
    ):
        floor = per_head * n_heads / rate
        total = each[way] * n_heads
        print(
            f"  {label}: {total:.2f} s, {per_head * n_heads / 1e9:.0f} GFLOP, floor {floor:.2f} s,"
            f" {floor / total:.0%} of it"
        )
    print(
        f"  last-position sweep: {each['torch'] / each['last']:.1f}x torch,"
        f" {each['torch, last logits'] / each['last']:.1f}x torch with the last position's logits only,"
        f" {each['own forward'] / each['last']:.1f}x our own forwards"
    )
    print(f"  all-position sweep: {each['own forward'] / each['all']:.2f}x our own forwards")
    return each["torch"] / each["last"]


def bench_ablation() -> float:
    """Prints the comparison for every shape; the smallest ratio to torch is the benchmark's."""
    return smallest_ratio(compare)
