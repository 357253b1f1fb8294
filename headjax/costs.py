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
from headjax.engine.hits import CHUNKS, DRAWS, HELD_LOGITS, SLOTS, Stage, Targets, relation_hits
from headjax.engine.layer_sweep import Sweep, whole_sweep
from headjax.engine.mesh import SPLIT_AXES, parameter_axes
from headjax.engine.path_step import Entries, Reads, logits_step, patch_prefill, receivers_step
from headjax.engine.prefill import prefill
from headjax.engine.replacement import LAST_OUTPUTS
from headjax.engine.variant_step import VariantEdit, variant_step
from headjax.engine.variants import ENOUGH_ROWS, HOST_BYTES, fitting_variants
from headjax.model import Block, Transformer, abstract_block, abstract_model, parameter_shapes
from headjax.study import Study
from headjax.traced import Compiled, Program, n_bytes_of, shape, trace

# Shares of (head, pair) that enter each stage of screened counting (engine/hits.py), those of a pretrained
# model: SmolLM2-135M, means over its 270 heads. Of 4,096 pairs of 19 relations 0.093, 0.037, 0.020, 0.012; of
# 384 prompts of dynamic scores 0.075, 0.034, 0.018, 0.011. (Random weights: 0.04, 0.01, 0.005, 0.002.) The
# last one, of vocabularies like Llama's, is between that and the 0.006 that are hits.
STAGE_SHARES = (1.0, 0.09, 0.035, 0.02, 0.012, 0.008)


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
      programs: that are compiled.
      variants: how many are run at once, where there are any.
      passes: through the layers, of a model that is read layer by layer.
    """

    flops: float
    activations: float
    programs: frozenset[Compiled]
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
    flops, programs = chunks * copies * program.flops, frozenset({program.compiled})
    return Cost(flops, program.n_bytes, programs, passes=passes)


def replacement(
    study: Study, machine: Machine, batch: PromptBatch, positions: str, ablation: str, mean_over: str
) -> Cost:
    """engine/replacement.py: what it takes to have the outputs that replace a head's."""
    if ablation == "zero":
        return NOTHING
    keep = "all" if ablation == "mean" and mean_over == "tokens" else positions
    cost = mapped(study, machine, prefill, batch.tokens, batch.mask, keep=keep)
    if ablation == "mean":
        (program,) = cost.programs
        cost = cost._replace(programs=frozenset({program._replace(name="_sum_outputs")}))
    return cost


def variants(
    study: Study,
    machine: Machine,
    batch: PromptBatch,
    start: Int[np.ndarray, " M"],
    positions: str,
    groups: tuple[int, ...] = (),
    filled_to: int | None = None,
) -> Cost:
    """engine/variants.py: a clean run and every variant, from the layer that each batch of them starts at,
    the first of which holds one more that edits nothing. `groups`: the numbers of prompts that are run group
    by group; `filled_to` as there."""
    how = {"groups": groups, "filled_to": filled_to}
    prompts, size, own = dealt(study, machine, batch.tokens, len(start), positions, **how)
    model, (tokens, mask, answers), L = abstract(study), asked(prompts), study.config.n_layers
    clean = trace(machine.platform, prefill, model, tokens, mask, keep=positions)
    edit, at = VariantEdit(shape(own, L, study.config.n_heads), shape(L, 1, 1, 1, 1)), shape(dtype=jnp.int32)
    given = (clean.gives, edit, at, answers, None)
    step = trace(machine.platform, variant_step, model, *given, positions=positions)
    # One pass of the loop a layer above the first; of all positions the last layer is not in it.
    passes = np.maximum(L - (1 if positions == "last" else 2) - begins(start, size), 0)
    flops = len(passes) * step.flops + int(passes.sum()) * step.loops[0]
    return swept(prompts, machine, clean, step, flops, clean.gives)._replace(variants=size)


def paths(
    study: Study, machine: Machine, batch: PromptBatch, positions: str, receivers: tuple[int, ...] = ()
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
    first = begins(start, size)
    flops = len(first) * step.flops + int((L - first).sum()) * step.loops[0]
    if receivers:
        reads = Reads(*[shape(L, H, dtype=bool)] * 3)
        step = trace(machine.platform, receivers_step, *given, reads, at, at, at)
        # Below the first receiver a layer is one of the path run alone; the top one is in neither loop.
        layers = np.sort(receivers)
        into, end = layers[np.searchsorted(layers, first, side="right")], min(layers[-1] + 1, L - 1)
        both, above = int(np.maximum(end - into, 0).sum()), len(first) * int(L - 1 - end)
        flops = int((into - first).sum()) * to_logits.loops[0] + len(first) * step.flops
        flops += both * step.loops[0] + above * step.loops[1]
    return swept(prompts, machine, clean, step, flops, (patch, entries))._replace(variants=size)


def swept(prompts: Prompts, machine: Machine, clean: Program, step: Program, flops: int, shared: Any) -> Cost:
    """A clean run of each chunk of the prompts, and so many FLOP of a step that is given what is shared."""
    flops = prompts.chunks * machine.copies * (clean.flops + flops)
    n_bytes = max(clean.n_bytes, n_bytes_of(shared) + step.n_bytes)
    return Cost(flops, n_bytes, frozenset({clean.compiled, step.compiled}))


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
    filled_to: int | None = None,
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
    size = max(1, min(size, filled_to or 1 + n_variants))
    return prompts, size, -(-size // (copies // by_prompt))


# --- relation hits ------------------------------------------------------------------------------------


def hits(c: ModelConfig, n_pairs: int, n_targets: int, at_once: int, platform: str) -> Program:
    """engine/hits.py `relation_hits` of one layer's heads, stages included, of so many pairs in all. How many
    of them each stage looks at depends on the weights: FLOP are those of STAGE_SHARES."""
    seen = [n for n in DRAWS if 2 * (n_targets + n) < c.vocab_size]
    counted = [*(end - start for start, end in pairwise([0, *seen])), c.vocab_size]
    apart = bool(seen) and n_pairs > c.d_model  # `screening_stages`
    if seen and not apart:
        counted[0] += n_targets

    def stage(kind: type[Stage | Targets], n_tokens: int) -> Stage | Targets:
        return kind(shape(n_tokens, c.d_model), shape(at_once, dtype=jnp.int32), shape())

    stages = (*[stage(Targets, n_targets)] * apart, *(stage(Stage, n_tokens) for n_tokens in counted))
    heads = shape(c.n_heads, at_once, c.d_head), shape(c.n_heads, c.d_head, c.d_model)
    program = trace(platform, relation_hits, *heads, stages, shape(at_once, dtype=jnp.int32))
    flops = hit_flops(c, counted, at_once, platform)
    if apart:  # the pairs' own logits, the cheaper way round
        flops += c.n_heads * 2 * c.d_head * c.d_model * min(n_targets, at_once)
    return program._replace(flops=flops, n_bytes=program.n_bytes + n_bytes_of(stages))


def hit_flops(c: ModelConfig, counted: list[int], n_pairs: int, platform: str) -> int:
    """engine/hits.py `count_undecided`, over so many tokens in each stage."""
    H, K, D = c.n_heads, c.d_head, c.d_model
    n_slots, flops = min(n_pairs, K), 0
    for share, T in zip(STAGE_SHARES, counted, strict=False):
        left = math.ceil(share * n_pairs)
        if left > K:  # of every head: W_O U, then rows of K
            chunk = min(n_pairs, max(CHUNKS[platform].rows, CHUNKS[platform].logits // T))
            flops += H * 2 * K * T * (D + -(-left // chunk) * chunk)
        else:  # rows of D, some of each head made at a time, then multiplied a chunk at a time
            slots = min(n_slots, SLOTS)
            made = min(n_slots, -(-left // slots) * slots)
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
    chunks, B, _, copies = chunked(study, batch.tokens, machine.copies)
    forward = mapped(study, machine, LAST_OUTPUTS, batch.tokens, batch.mask)
    n_targets, own = len(np.unique(batch.answers)), 2 * B // copies
    of_layer = hits(study.config, chunks * B, n_targets, own, machine.platform)
    flops = forward.flops + chunks * copies * study.config.n_layers * of_layer.flops
    (program,), both = forward.programs, of_layer.compiled.operations
    program = program._replace(name="dynamic_scores", operations=program.operations + both)
    return Cost(flops, forward.activations + of_layer.n_bytes, frozenset({program}))


def relation_scores(
    c: ModelConfig, n_pairs: int, n_sources: int, n_targets: int, first_mlp: bool, platform: str
) -> Cost:
    """analyses/relation_scores.py. `activations` are all that it holds: it does not need the model."""
    of_layer, mlp = hits(c, n_pairs, n_targets, n_pairs, platform), block_mlp(c, n_sources)
    project = n_sources * 2 * c.d_model * c.n_kv_heads * c.d_head
    flops = c.n_layers * (project + of_layer.flops) + first_mlp * mlp.flops
    two_layers = 2 * 4 * c.d_model * c.d_head * (c.n_heads + c.n_kv_heads)
    # The first block's MLP is gone before the layers come; the last stage is the unembedding.
    held = of_layer.n_bytes + max(first_mlp * n_bytes_of(abstract_block(c).mlp), two_layers)
    held += 2 * 4 * c.d_model * n_sources
    return Cost(flops, held, frozenset({of_layer.compiled._replace(name="_hits_of_heads")}))
