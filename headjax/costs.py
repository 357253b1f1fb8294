"""What each sweep costs: products, memory, compiled programs. Nothing here runs anything.

A sweep says which programs it runs, how often and on what; what one costs is counted in the traced program
(headjax/traced.py). What depends on the weights, how many pairs screening leaves, is worked out from measured
shares.
"""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import ShapeDtypeStruct
from jaxtyping import Int

from headjax.config import ModelConfig
from headjax.data.prompts import PromptBatch
from headjax.engine.batches import prompt_chunks
from headjax.engine.hits import CHUNKS, DRAWS, HELD_LOGITS, SLOTS
from headjax.engine.layer_sweep import Sweep, whole_sweep
from headjax.engine.mesh import SPLIT_AXES, parameter_axes
from headjax.engine.path_step import Entries, Reads, logits_step, patch_prefill, receivers_step
from headjax.engine.prefill import prefill
from headjax.engine.replacement import LAST_OUTPUTS
from headjax.engine.variant_step import VariantEdit, variant_step
from headjax.engine.variants import ENOUGH_ROWS, HOST_BYTES, fitting_variants
from headjax.model import Block, Transformer, abstract_block, abstract_model, parameter_shapes
from headjax.study import Study
from headjax.traced import Program, n_bytes_of, shape, trace

# Shares of (head, pair) that enter each stage of screened counting (engine/hits.py), for ordinary weights:
# a model whose heads implement many relations has more of them left.
STAGE_SHARES = (1.0, 0.04, 0.01, 0.005, 0.002, 0.001)


class Prompts(NamedTuple):
    """Chunks of B prompts of S tokens, which are run at once; `copies` of the model share a chunk."""

    chunks: int
    B: int
    S: int
    copies: int = 1


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


# --- forward sweeps -----------------------------------------------------------------------------------


def abstract(study: Study) -> Transformer:
    """The model as forward passes have it, with shapes in place of arrays."""
    return abstract_model(study.config, jnp.dtype(study.compute.dtype))


def chunked(study: Study, tokens: Int[np.ndarray, "B S"], copies: int) -> Prompts:
    """Prompts as a sweep cuts them."""
    chunks = prompt_chunks(len(tokens), study.compute.batch_size, copies)
    return Prompts(len(chunks), len(chunks[0]), tokens.shape[1], copies)


def mapped(
    study: Study,
    machine: Machine,
    step: Sweep | Callable[..., Any],
    *arrays: np.ndarray,
    replacement: ShapeDtypeStruct | None = None,
    passes: int = 1,
    **static: Any,
) -> Cost:
    """engine/batches.py `map_prompts`, or `run_sweep`: a step over the rows of all arrays."""
    chunks, B, _, copies = chunked(study, arrays[0], machine.copies)
    own = [shape(B // copies, *array.shape[1:], dtype=array.dtype) for array in arrays]
    own += [] if replacement is None else [replacement]
    model = abstract(study)
    run, model = (whole_sweep(step), (model, None)) if isinstance(step, Sweep) else (step, model)
    program = trace(machine.platform, run, model, *own, **static)
    return Cost(chunks * copies * program.flops, program.n_bytes, frozenset({program.key}), passes=passes)


def replacement(
    study: Study, machine: Machine, batch: PromptBatch, positions: str, ablation: str, mean_over: str
) -> Cost:
    """engine/replacement.py: what it takes to have the outputs that replace a head's."""
    if ablation == "zero":
        return NOTHING
    keep = "all" if ablation == "mean" and mean_over == "tokens" else positions
    cost = mapped(study, machine, prefill, batch.tokens, batch.mask, keep=keep)
    return cost if ablation == "resample" else cost._replace(programs=frozenset({("_sum_outputs", keep)}))


def variants(
    study: Study,
    machine: Machine,
    batch: PromptBatch,
    start: Int[np.ndarray, " M"],
    positions: str,
    groups: tuple[int, ...] = (),
) -> Cost:
    """engine/variants.py: a clean run and every variant, from the layer that each batch of them starts at,
    the first of which holds one more that edits nothing. `groups`: the numbers of prompts that are run group
    by group."""
    prompts, size, own = dealt(study, machine, batch.tokens, len(start), positions, groups=groups)
    model, (tokens, mask, answers), L = abstract(study), asked(prompts), study.config.n_layers
    clean = trace(machine.platform, prefill, model, tokens, mask, keep=positions)
    edit, at = VariantEdit(shape(own, L, study.config.n_heads), shape(L, 1, 1, 1, 1)), shape(dtype=jnp.int32)
    given = (clean.gives, edit, at, answers, None)
    step = trace(machine.platform, variant_step, model, *given, positions=positions)
    # One pass of the loop a layer above the first; of all positions the last layer is not in it.
    passes = np.maximum(L - (1 if positions == "last" else 2) - begins(start, size), 0)
    flops = clean.flops + len(passes) * step.flops + int(passes.sum()) * step.loops[0]
    n_bytes = max(clean.n_bytes, n_bytes_of(clean.gives) + step.n_bytes)
    return Cost(prompts.chunks * machine.copies * flops, n_bytes, frozenset({clean.key, step.key}), size)


def paths(
    study: Study,
    machine: Machine,
    batch: PromptBatch,
    positions: str,
    receivers: tuple[int, ...] = (),
) -> Cost:
    """engine/path_step.py: from every head below the receivers, given by their layers, or to the logits."""
    L, H = study.config.n_layers, study.config.n_heads
    start = np.repeat(np.arange(max(receivers, default=L)), H)
    prompts, size, own = dealt(study, machine, batch.tokens, len(start), positions, streams=2)
    model, (tokens, mask, answers) = abstract(study), asked(prompts)
    both = (tokens, tokens, mask, answers, answers)
    clean = trace(machine.platform, patch_prefill, model, *both, positions=positions)
    patch, at = clean.gives[1], shape(dtype=jnp.int32)
    entries = Entries(patch.clean.residual, patch.clean.residual)
    given = (model, patch, entries, shape(own, 2, dtype=jnp.int32))
    step = to_logits = trace(machine.platform, logits_step, *given, at)
    first, flops = begins(start, size), clean.flops
    if receivers:
        reads = Reads(*[shape(L, H, dtype=bool)] * 3)
        step = trace(machine.platform, receivers_step, *given, reads, at, at, at)
        # Below the first receiver a layer is one of the path run alone; the top one is in neither loop.
        layers = np.sort(receivers)
        into, end = layers[np.searchsorted(layers, first, side="right")], min(layers[-1] + 1, L - 1)
        flops += to_logits.loops[0] * (into - first).sum() + step.loops[0] * np.maximum(end - into, 0).sum()
        flops += step.loops[1] * len(first) * (L - 1 - end)
    else:
        flops += step.loops[0] * (L - first).sum()
    flops = int(flops) + len(first) * step.flops
    n_bytes = max(clean.n_bytes, n_bytes_of((patch, entries)) + step.n_bytes)
    return Cost(prompts.chunks * machine.copies * flops, n_bytes, frozenset({clean.key, step.key}), size)


def asked(prompts: Prompts) -> tuple[ShapeDtypeStruct, ...]:
    """Tokens and mask of the prompts that one copy runs at once, and what stands for an answer of each."""
    B, S = prompts.B // prompts.copies, prompts.S
    return shape(B, S, dtype=jnp.int32), shape(B, S, dtype=bool), shape(B, dtype=jnp.int32)


def begins(start: Int[np.ndarray, " M"], size: int) -> Int[np.ndarray, " batches"]:
    """The layer at which each batch of variants begins: one more than there are, that changes nothing."""
    return np.sort([np.min(start), *start])[::size]


def dealt(
    study: Study,
    machine: Machine,
    tokens: Int[np.ndarray, "B S"],
    n_variants: int,
    positions: str,
    streams: int = 1,
    groups: tuple[int, ...] = (),
) -> tuple[Prompts, int, int]:
    """Prompts as engine/variants.py cuts them, how many variants of so many residual streams run at once, and
    of these how many in each copy of the model."""
    compute, copies = study.compute, machine.copies
    at_once = min(compute.batch_size, max(groups, default=len(tokens)))
    # Copies share the prompts of a batch, or the variants where there are fewer prompts than copies.
    by_prompt = copies if at_once >= copies else 1
    prompts = chunked(study, tokens, by_prompt)
    if groups:
        n_chunks = sum(-(-n // at_once) for n in groups)
        prompts = Prompts(n_chunks, -(-at_once // by_prompt) * by_prompt, tokens.shape[1], by_prompt)
    size, H = compute.variant_batch, study.config.n_heads
    if size is None and compute.stream:  # engine/layered_variants.py
        size = 1 + H * -(-ENOUGH_ROWS[machine.platform] // (H * prompts.B))
    elif size is None:
        n_bytes = jnp.dtype(compute.dtype).itemsize
        held = parameter_bytes(study.config, n_bytes, machine.model_parts)
        free = HOST_BYTES if machine.platform == "cpu" else max(0, machine.memory - held)
        rows = (streams * prompts.B // by_prompt, prompts.S)
        size = fitting_variants(study.config, rows, positions, int(free), n_bytes, machine.platform)
        size = (1 + size) * copies // by_prompt
    size = max(1, min(size, 1 + n_variants))
    return prompts, size, -(-size // (copies // by_prompt))


# --- relation hits ------------------------------------------------------------------------------------


class Tokens(NamedTuple):
    """engine/hits.py `screening_stages`: the targets that come by themselves, the tokens of each stage."""

    targets: int
    counted: list[int]


def stages_of(c: ModelConfig, n_pairs: int, n_targets: int) -> Tokens:
    """Those for so many pairs with so many distinct targets."""
    seen = [n for n in DRAWS if 2 * (n_targets + n) < c.vocab_size]
    counted = [*(end - start for start, end in pairwise([0, *seen])), c.vocab_size]
    if not seen or n_pairs > c.d_model:
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


def block_mlp(c: ModelConfig, n_rows: int) -> Program:
    """The MLP of a block with its norms, of so many rows."""
    return trace("cpu", Block.mlp_write, abstract_block(c), shape(n_rows, c.d_model))


def dynamic_scores(study: Study, machine: Machine, batch: PromptBatch) -> Cost:
    """analyses/dynamic_scores.py: a forward pass, then both kinds of z of every head as pairs."""
    c, (chunks, B, _, copies) = study.config, chunked(study, batch.tokens, machine.copies)
    forward = mapped(study, machine, LAST_OUTPUTS, batch.tokens, batch.mask)
    tokens, own = stages_of(c, chunks * B, len(np.unique(batch.answers))), 2 * B // copies
    flops = chunks * copies * c.n_layers * hit_flops(c, tokens, own, machine.platform)
    n_bytes = hit_bytes(c, tokens, own, machine.platform)
    programs = frozenset(("dynamic_scores", key) for key in forward.programs)
    return Cost(forward.flops + flops, forward.activations + n_bytes, programs)


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
    D = c.d_model
    tokens = stages_of(c, n_pairs, n_targets)
    layer = n_sources * 2 * D * c.n_kv_heads * c.d_head + hit_flops(c, tokens, n_pairs, platform)
    block = block_mlp(c, n_sources)
    flops = c.n_layers * layer + first_mlp * block.flops
    embeddings = c.vocab_size * D * (1 if c.tied_embeddings else 2)
    two_layers = 2 * D * c.d_head * (c.n_heads + c.n_kv_heads)
    # The first block's MLP is gone before the stages' rows and the layers come.
    held = (
        max(first_mlp * n_bytes_of(abstract_block(c).mlp) // 4, two_layers) + embeddings + 2 * n_sources * D
    )
    activations = 4 * held + hit_bytes(c, tokens, n_pairs, platform)
    return Cost(flops, activations, frozenset({("_hits_of_heads",)}))
