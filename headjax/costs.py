"""What each sweep costs, from sizes alone: products, memory, compiled programs. Nothing here runs anything.

FLOP are those of matrix products, 2 a multiplication and addition; norms, softmax and the like are left out.
Bytes are of what is alive at once beside the parameters, generously. Both follow the sweeps' own code, whose
files are named at each function.
"""

import math
from itertools import pairwise
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from headjax.config import ModelConfig
from headjax.engine.batches import prompt_chunks
from headjax.engine.hits import CHUNKS, DRAWS, HELD_LOGITS, SLOTS
from headjax.engine.mesh import SPLIT_AXES, parameter_axes
from headjax.engine.metrics import TILE_LOGITS
from headjax.engine.variants import HOST_BYTES, fitting_variants, numbers_per_row
from headjax.model import parameter_shapes
from headjax.study import Study

# Shares of (head, pair) that enter each stage of screened counting (engine/hits.py), for ordinary weights:
# a model whose heads implement many relations has more of them left.
STAGE_SHARES = (1.0, 0.04, 0.01, 0.005, 0.002, 0.001)


class Prompts(NamedTuple):
    """Chunks of B prompts of S tokens, which are run at once; `copies` of the model share a chunk."""

    chunks: int
    B: int
    S: int
    copies: int = 1

    @property
    def own(self) -> int:
        """Prompts that one copy runs at once."""
        return -(-self.B // self.copies)


class Cost(NamedTuple):
    """Of one sweep.

    Attributes:
      flops: in all.
      activations: bytes alive at once beside the parameters, on a device.
      programs: compiled functions, each with what tells its shapes apart.
      variants: how many are run at once, where there are any.
      passes: through the layers, of a model that is read layer by layer.
    """

    flops: float
    activations: float
    programs: frozenset[tuple]
    variants: int | None = None
    passes: int = 1

    def __add__(self, other: "Cost") -> "Cost":
        """One after the other."""
        return Cost(
            self.flops + other.flops,
            max(self.activations, other.activations),
            self.programs | other.programs,
            self.variants or other.variants,
            self.passes + other.passes,
        )


NOTHING = Cost(0, 0, frozenset(), passes=0)


class Machine(NamedTuple):
    """What the plan is for.

    Attributes:
      n_devices: of which `model_parts` share each copy of the model.
      memory: of one device, in bytes.
      rate: FLOP/s of one device; None where nobody said.
      platform: whose sizes of tiles and batches hold: "cpu", or "gpu" for any accelerator.
    """

    n_devices: int
    model_parts: int
    memory: float
    rate: float | None
    platform: str

    @property
    def copies(self) -> int:
        """Of the model, each with its own prompts or variants."""
        return self.n_devices // self.model_parts


def parameter_bytes(config: ModelConfig, itemsize: int, parts: int) -> int:
    """Bytes of all parameters on each device where so many share the model (headjax/engine/mesh.py)."""

    def own(name: str, shape: tuple[int, ...]) -> int:
        sizes = zip(parameter_axes(name, shape), shape, strict=True)
        return math.prod(n // parts if axis in SPLIT_AXES and n % parts == 0 else n for axis, n in sizes)

    return itemsize * sum(own(name, shape) for name, shape in parameter_shapes(config).items())


# --- one row of one layer -----------------------------------------------------------------------------


def projections(c: ModelConfig) -> int:
    """W_Q, W_K and W_V."""
    return 2 * c.d_model * c.d_head * (c.n_heads + 2 * c.n_kv_heads)


def output(c: ModelConfig) -> int:
    """W_O."""
    return 2 * c.n_heads * c.d_head * c.d_model


def mlp(c: ModelConfig) -> int:
    return (3 if c.gated_mlp else 2) * 2 * c.d_model * c.d_mlp


def rest(c: ModelConfig) -> int:
    """W_O and the MLP."""
    return output(c) + mlp(c)


def attention(c: ModelConfig, n_keys: int) -> int:
    """Scores and weighted values of one query of every head; masked keys are computed too."""
    return 4 * c.n_heads * c.d_head * n_keys


def unembedding(c: ModelConfig) -> int:
    return 2 * c.d_model * c.vocab_size


def forward(c: ModelConfig, B: int, S: int) -> int:
    """All layers over B prompts of S tokens, without the unembedding."""
    return c.n_layers * B * S * (projections(c) + rest(c) + attention(c, S))


# --- forward sweeps -----------------------------------------------------------------------------------


def prefill_bytes(c: ModelConfig, B: int, S: int, positions: str, itemsize: int) -> int:
    """engine/prefill.py: what is kept, and what is alive inside a layer."""
    P = S if positions == "all" else 1
    kept = c.n_layers * B * (2 * S * c.n_kv_heads + P * c.n_heads) * c.d_head
    residual = (c.n_layers + 1) * B * P * c.d_model
    return itemsize * (kept + residual + B * S * numbers_per_row(c, S))


def layer_bytes(c: ModelConfig, B: int, S: int, itemsize: int) -> int:
    """engine/layer_sweep.py: what is alive inside a layer."""
    return itemsize * B * S * (numbers_per_row(c, S) + 2 * c.d_model)


def logit_bytes(platform: str) -> int:
    """metrics.py: one tile of logits, and what is made of it."""
    return 3 * 4 * TILE_LOGITS[platform]


def replacement(c: ModelConfig, prompts: Prompts, ablation: str, positions: str, mean_over: str) -> Cost:
    """engine/replacement.py: what it takes to have the outputs that replace a head's."""
    chunks, B, S, _ = prompts
    if ablation == "zero":
        return NOTHING
    keep = "all" if ablation == "mean" and mean_over == "tokens" else positions
    name = {"mean": "_sum_outputs", "resample": "prefill"}[ablation]
    programs = frozenset({(name, B, S, keep)})
    return Cost(chunks * forward(c, B, S), prefill_bytes(c, prompts.own, S, keep, 4), programs)


def variants(
    c: ModelConfig,
    prompts: Prompts,
    start: Int[np.ndarray, " M"],
    size: int,
    positions: str,
    itemsize: int,
    platform: str,
    copies: int = 1,
) -> Cost:
    """engine/variants.py: a clean run and every variant, from the layer that each batch of them starts at,
    the first of which holds one more that edits nothing; the copies share the variants where they do not
    share the prompts."""
    chunks, B, S, _ = prompts
    size = max(1, min(size, 1 + len(start)))
    firsts = np.sort([np.min(start), *start])[::size].tolist()
    flops = forward(c, B, S)
    flops += sum(size * B * (variant(c, S, first, positions) + unembedding(c)) for first in firsts)
    rows = -(-size * B // copies) * (S if positions == "all" else 1)
    activations = itemsize * rows * numbers_per_row(c, S)
    activations += 2 * prefill_bytes(c, prompts.own, S, positions, itemsize)  # and where later ones enter
    programs = {("prefill", B, S, positions), ("variant_step", B, S, positions, size)}
    return Cost(chunks * flops, activations + logit_bytes(platform), frozenset(programs), size)


def variant(c: ModelConfig, S: int, start: int, positions: str) -> int:
    """engine/variant_step.py: one variant of one prompt that is edited from layer `start` on."""
    layer = projections(c) + rest(c) + attention(c, S)
    above = c.n_layers - 1 - start
    if positions == "last":
        return rest(c) + above * layer
    last_layer = S * projections(c) + attention(c, S) + rest(c)
    return S * rest(c) + max(0, above - 1) * S * layer + (last_layer if above else 0)


def dynamic_scores(c: ModelConfig, prompts: Prompts, n_targets: int, itemsize: int, platform: str) -> Cost:
    """analyses/dynamic_scores.py: a forward pass, then both kinds of z of every head as pairs."""
    chunks, B, S, _ = prompts
    tokens = stages(c.vocab_size, c.d_model, chunks * B, n_targets)
    flops = forward(c, B, S) + c.n_layers * hit_flops(c, tokens, 2 * B, platform)
    own = prompts.own
    activations = layer_bytes(c, own, S, itemsize) + hit_bytes(c, tokens, 2 * own, platform)
    return Cost(chunks * flops, activations, frozenset({("dynamic_scores", B, S)}))


def clean_run(c: ModelConfig, prompts: Prompts, itemsize: int, platform: str) -> Cost:
    """engine/clean_run.py: a forward pass, and metrics at the last position."""
    chunks, B, S, _ = prompts
    flops = chunks * (forward(c, B, S) + B * unembedding(c))
    activations = layer_bytes(c, prompts.own, S, itemsize) + logit_bytes(platform)
    return Cost(flops, activations, frozenset({("clean_run", B, S)}))


def logit_attribution(c: ModelConfig, prompts: Prompts, metrics: int, itemsize: int) -> Cost:
    """analyses/logit_attribution.py, once a metric."""
    chunks, B, S, _ = prompts
    heads = c.n_layers * B * 2 * c.d_model * (c.n_heads * c.d_head + 1)
    programs = frozenset(("logit_attribution", B, S, metric) for metric in range(metrics))
    flops = metrics * chunks * (forward(c, B, S) + heads)
    return Cost(flops, layer_bytes(c, prompts.own, S, itemsize), programs, passes=metrics)


def gradient_attribution(
    c: ModelConfig, prompts: Prompts, metrics: int, positions: str, itemsize: int
) -> Cost:
    """analyses/gradient_attribution.py: no derivative with respect to a parameter, so backward costs what
    forward does, attention twice as much; every layer's inner values are kept for it."""
    chunks, B, S, _ = prompts
    there_and_back = 2 * (forward(c, B, S) + B * unembedding(c)) + c.n_layers * B * S * attention(c, S)
    inside = c.n_layers * prompts.own * S * (numbers_per_row(c, S) + c.n_heads * S)
    programs = frozenset(("_gradient", B, S, positions, metric) for metric in range(metrics))
    activations = inside * itemsize + 3 * 4 * prompts.own * c.vocab_size
    return Cost(metrics * chunks * there_and_back, activations, programs, passes=2 * metrics)


def attention_patterns(c: ModelConfig, prompts: Prompts, itemsize: int, n_patterns: int = 3) -> Cost:
    """analyses/attention_patterns.py: the pattern once more beside the forward pass, and its sums."""
    chunks, B, S, _ = prompts
    pattern = c.n_layers * B * S * S * 2 * c.n_heads * (c.d_head + n_patterns)
    scores = 4 * 4 * prompts.own * c.n_heads * S * S
    activations = prompts.own * S * numbers_per_row(c, S) * itemsize + scores
    flops = chunks * (forward(c, B, S) + pattern)
    return Cost(flops, activations, frozenset({("attention_patterns", B, S)}))


def kept_patterns(c: ModelConfig, prompts: Prompts, itemsize: int) -> Cost:
    """analyses/attention_patterns.py: the pattern once more beside the forward pass, a byte a weight kept."""
    chunks, B, S, _ = prompts
    pattern = c.n_layers * B * S * S * 2 * c.n_heads * c.d_head
    kept = (c.n_layers + 4) * prompts.own * c.n_heads * S * S
    activations = prompts.own * S * numbers_per_row(c, S) * itemsize + kept
    return Cost(chunks * (forward(c, B, S) + pattern), activations, frozenset({("kept_patterns", B, S)}))


def direct_effects(c: ModelConfig, prompts: Prompts, itemsize: int) -> Cost:
    """engine/path_step.py `direct_step`: prompts and their corrupted partners, every head's change through
    its W_O, and two logits of every one of these."""
    chunks, B, S, _ = prompts
    heads = c.n_layers * B * (output(c) + 2 * c.d_model * (1 + c.n_heads))
    flops = chunks * (2 * forward(c, B, S) + heads)
    activations = 2 * prefill_bytes(c, prompts.own, S, "last", itemsize)
    return Cost(flops, activations, frozenset({("direct_step", B, S)}))


def paths(
    c: ModelConfig,
    prompts: Prompts,
    start: Int[np.ndarray, " M"],
    size: int,
    positions: str,
    itemsize: int,
    receivers: tuple[int, ...] = (),
) -> Cost:
    """engine/path_step.py: senders by the layer that each begins at, into receivers' layers or to the logits.

    In the path run a layer costs its MLP. The final run, which begins at the lowest receiver above the
    senders, costs a whole layer and, up to the highest receiver, the path run's projections too.
    """
    chunks, B, S, _ = prompts
    P, L, size = (S if positions == "all" else 1), c.n_layers, max(1, min(size, 1 + len(start)))
    flops = 2 * forward(c, B, S)
    for first in np.sort([np.min(start), *start])[::size].tolist():
        end = max(receivers) + 1 if receivers else L
        row = (end - first) * mlp(c) + 2 * c.d_head * c.d_model
        if receivers:
            into = min((layer for layer in receivers if layer > first), default=end)
            row += (L - into) * (projections(c) + attention(c, S) + rest(c)) + (end - into) * projections(c)
        flops += size * B * P * row + (end - first) * B * P * output(c)
        flops += size * B * 2 * c.d_model  # the logit difference
    rows = size * prompts.own * P
    activations = itemsize * (2 * rows * numbers_per_row(c, S))
    activations += 3 * prefill_bytes(c, prompts.own, S, positions, itemsize)
    step = "receivers_step" if receivers else "logits_step"
    programs = {("patch_prefill", B, S, positions), (step, B, S, positions, size)}
    return Cost(chunks * flops, activations, frozenset(programs), size)


def copy_scores(c: ModelConfig, n_names: int, heads_at_once: int) -> Cost:
    """analyses/copy_score.py: a block for every name, then each head's output of each, and its negative,
    through the unembedding. `activations` are all that it holds: it does not need the model."""
    G, H, K, D, V = c.n_kv_heads, c.n_heads, c.d_head, c.d_model, c.vocab_size
    layer = n_names * (2 * D * G * K + H * (2 * K * D + 2 * 2 * D * V))
    flops = n_names * (projections(c) + attention(c, 1) + rest(c)) + c.n_layers * layer
    block = D * K * 2 * (G + H) + (3 if c.gated_mlp else 2) * D * c.d_mlp
    held = V * D * (1 if c.tied_embeddings else 2) + max(block, 2 * D * K * (G + H))
    logits = 2 * heads_at_once * n_names * V
    return Cost(flops, 4 * (held + 2 * logits), frozenset({("first_state",), ("_layer_hits",)}))


def salient_operations(
    c: ModelConfig, n_layers: int, n_heads: int, n_tokens: int, n_rows: int, tile: int, first_mlp: bool
) -> Cost:
    """analyses/salient_operations.py, of so many layers: every token's row through every head of a layer, and
    the salient ones of each head against the vocabulary. `n_rows`: tokens; as held, see `copy_scores`."""
    H, K, D = n_heads, c.d_head, c.d_model
    rows = -(-n_rows // tile) * tile  # tiles are full
    layer = rows * H * (2 * D * K + 2 * K * K) + H * n_tokens * (4 * K * D + rows * 2 * D)
    held = rows * D * (3 if first_mlp else 2) + 2 * D * K * (c.n_kv_heads + 2 * H)
    activations = 4 * (held + 2 * tile * H * max(K, n_tokens))
    flops = n_layers * layer + first_mlp * rows * mlp(c)
    return Cost(flops, activations, frozenset({("_layer_best",)}))


# --- relation hits ------------------------------------------------------------------------------------


class Tokens(NamedTuple):
    """engine/hits.py `screening_stages`: the targets that come by themselves, the tokens of each stage."""

    targets: int
    counted: list[int]


def stages(vocab_size: int, d_model: int, n_pairs: int, n_targets: int) -> Tokens:
    """Those for so many pairs with so many distinct targets."""
    seen = [n for n in DRAWS if 2 * (n_targets + n) < vocab_size]
    counted = [*(end - start for start, end in pairwise([0, *seen])), vocab_size]
    if not seen or n_pairs > d_model:
        return Tokens(n_targets if seen else 0, counted)
    return Tokens(0, [n_targets + counted[0], *counted[1:]])


def hit_flops(c: ModelConfig, tokens: Tokens, n_pairs: int, platform: str) -> int:
    """engine/hits.py `relation_hits` of one layer's heads."""
    H, K, D = c.n_heads, c.d_head, c.d_model
    n_slots = min(n_pairs, K)
    flops = H * 2 * K * D * min(tokens.targets, n_pairs)  # the pairs' own logits, the cheaper way round
    for share, T in zip(STAGE_SHARES, tokens.counted, strict=False):
        if share == 1 and n_pairs > K:  # heads with more pairs than K: W_O U, then rows of K
            chunk = min(n_pairs, max(CHUNKS[platform].rows, CHUNKS[platform].logits // T))
            flops += H * 2 * K * T * (D + -(-n_pairs // chunk) * chunk)
        else:  # rows of D, some of each head made at a time, then multiplied a chunk at a time
            slots = min(n_slots, SLOTS)
            made = min(n_slots, -(-math.ceil(share * n_pairs) // slots) * slots)
            flops += 2 * H * made * K * D
            flops += _rows_run(math.ceil(share * H * n_pairs), H * n_slots, T, platform) * 2 * D * T
    return flops


def _rows_run(n_chosen: int, n_rows: int, T: int, platform: str) -> int:
    """engine/hits.py `_in_chunks`: how many rows it takes to run the chosen ones in chunks of its sizes."""
    rows = CHUNKS[platform].rows
    sizes = {min(n * rows, n_rows) for n in (1, 2, 4) if n == 1 or n * rows * T <= HELD_LOGITS}
    whole, left = divmod(n_chosen, max(sizes))
    return whole * max(sizes) + (min(size for size in sizes if size >= left) if left else 0)


def hit_bytes(c: ModelConfig, tokens: Tokens, n_pairs: int, platform: str) -> int:
    """engine/hits.py: the stages' rows beside the unembedding, a chunk of logits, what is known of pairs."""
    H, K, D, V = c.n_heads, c.d_head, c.d_model, c.vocab_size
    chunk = CHUNKS[platform]
    logits = max(chunk.rows * V, min(chunk.logits, n_pairs * V)) + K * V
    pairs = H * n_pairs * (K + 8) + H * min(n_pairs, K) * D
    return 4 * ((tokens.targets + sum(tokens.counted)) * D + 2 * logits + pairs)


def relation_scores(
    c: ModelConfig, n_pairs: int, n_sources: int, n_targets: int, first_mlp: bool, platform: str
) -> Cost:
    """analyses/relation_scores.py. `activations` are all that it holds: it does not need the model."""
    D, F = c.d_model, c.d_mlp
    tokens = stages(c.vocab_size, D, n_pairs, n_targets)
    layer = n_sources * 2 * D * c.n_kv_heads * c.d_head + hit_flops(c, tokens, n_pairs, platform)
    n_matrices = 3 if c.gated_mlp else 2
    flops = c.n_layers * layer + first_mlp * n_sources * n_matrices * 2 * D * F
    embeddings = c.vocab_size * D * (1 if c.tied_embeddings else 2)
    two_layers = 2 * D * c.d_head * (c.n_heads + c.n_kv_heads)
    # The first block's MLP is gone before the stages' rows and the layers come.
    held = max(first_mlp * n_matrices * D * F, two_layers) + embeddings + 2 * n_sources * D
    activations = 4 * held + hit_bytes(c, tokens, n_pairs, platform)
    return Cost(flops, activations, frozenset({("_hits_of_heads",)}))


# --- of a study ---------------------------------------------------------------------------------------


def itemsize(study: Study) -> int:
    """Bytes of a number in forward passes."""
    return jnp.dtype(study.compute.dtype).itemsize


def chunked(study: Study, tokens: Int[np.ndarray, "B S"], copies: int) -> Prompts:
    """Prompts as a sweep cuts them."""
    chunks = prompt_chunks(len(tokens), study.compute.batch_size, copies)
    return Prompts(len(chunks), len(chunks[0]), tokens.shape[1], copies)


def ablated_variants(
    study: Study,
    machine: Machine,
    tokens: Int[np.ndarray, "B S"],
    start: Int[np.ndarray, " M"],
    positions: str,
    groups: tuple[int, ...] = (),
) -> Cost:
    """`variants` over a study's prompts; `groups` are the numbers of prompts that are run group by group."""
    batch_size = study.compute.batch_size
    at_once = min(batch_size, max(groups, default=len(tokens)))
    # Copies share the prompts of a batch, or the variants where there are fewer prompts than copies.
    by_prompt = machine.copies if at_once >= machine.copies else 1
    prompts = chunked(study, tokens, by_prompt)
    if groups:
        n_chunks = sum(-(-n // at_once) for n in groups)
        prompts = Prompts(n_chunks, -(-at_once // by_prompt) * by_prompt, tokens.shape[1], by_prompt)
    size = variant_batch(study, machine, prompts, positions)
    how = (positions, itemsize(study), machine.platform, machine.copies)
    return variants(study.config, prompts, start, size, *how)


def patched_paths(
    study: Study,
    machine: Machine,
    tokens: Int[np.ndarray, "B S"],
    positions: str,
    receivers: tuple[int, ...] = (),
) -> Cost:
    """`paths` from every head below the receivers, given by their layers, or to the logits."""
    config = study.config
    start = np.repeat(np.arange(max(receivers, default=config.n_layers)), config.n_heads)
    at_once = min(study.compute.batch_size, len(tokens))
    prompts = chunked(study, tokens, machine.copies if at_once >= machine.copies else 1)
    size = variant_batch(study, machine, prompts, positions, streams=2)
    return paths(config, prompts, start, size, positions, itemsize(study), receivers)


def variant_batch(study: Study, machine: Machine, prompts: Prompts, positions: str, streams: int = 1) -> int:
    """How many variants of so many residual streams a sweep runs at once, as engine/variants.py has it."""
    if study.compute.variant_batch is not None:
        return study.compute.variant_batch
    held = parameter_bytes(study.config, itemsize(study), machine.model_parts)
    free = HOST_BYTES if machine.platform == "cpu" else max(0, machine.memory - held)
    shape, n_bytes = (streams * prompts.own, prompts.S), itemsize(study)
    size = fitting_variants(study.config, shape, positions, int(free), n_bytes, machine.platform)
    return (1 + size) * machine.copies // prompts.copies
