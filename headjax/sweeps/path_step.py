"""The compiled part of path patching: what a sender's other output makes of the residual, and of the logits.

Three runs are told apart (Wang et al. 2022, "Interpretability in the Wild", appendix B): the clean one, which
`Prefill` holds; the *path* run, in which the sender writes what it writes on the corrupted prompt, every
other head writes what it wrote in the clean run, and norms and MLPs are computed anew; and the *final* run,
in which receivers read their queries, keys or values from the path run and everything else from its own.

In the path run no head looks anywhere, so each position is on its own and a layer costs its MLP. Both runs
are the clean one below the layer where they begin, and begin there, from the stored residual. The layers
where they begin are arguments of the compiled program: one program serves a sweep over all senders.

P is 1 (the last position alone is patched, and the final run is a decode step a layer, see variant_step.py)
or S (all are).
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.sharding import PartitionSpec
from jaxtyping import Bool, Float, Int

from headjax.axes import TokenMask, Tokens
from headjax.mesh import DATA_AXIS, ROWS, WHOLE
from headjax.metrics import logit_difference
from headjax.model import Block, Transformer
from headjax.sweeps.prefill import SPECS, Prefill, prefill
from headjax.sweeps.variant_step import Positions, TokenIds, layer_of
from kernels import dispatch
from kernels.variant_decode import variant_decode


class Patch(NamedTuple):
    """What path patching starts from.

    Attributes:
      clean: the run on the prompts.
      change: z on the corrupted prompts minus z on the prompts, float32.
      answers, distractors: whose logits are compared.
    """

    clean: Prefill
    change: Float[Array, "L B P H K"]
    answers: TokenIds
    distractors: TokenIds


class Reads(NamedTuple):
    """Which heads take their query, key or value from the path run."""

    q: Bool[Array | np.ndarray, "L H"]
    k: Bool[Array | np.ndarray, "L H"]
    v: Bool[Array | np.ndarray, "L H"]


# How arguments and results are split over the copies of a model on a mesh: of `patch_prefill`; and of the
# steps, whose patch, senders and results are given.
_BY_PROMPTS = Patch(SPECS, SPECS.z, ROWS, ROWS)
PREFILL_SPECS = {"prompts": ((ROWS,) * 5, (ROWS, _BY_PROMPTS)), "variants": ((WHOLE,) * 5, WHOLE)}
STEP_SPECS = {
    "prompts": (_BY_PROMPTS, WHOLE, PartitionSpec(None, DATA_AXIS)),
    "variants": (WHOLE, ROWS, ROWS),
}


@partial(dispatch.jit, static_argnames="positions")
def patch_prefill(
    model: Transformer,
    tokens: Tokens,
    corrupted: Tokens,
    mask: TokenMask,
    answers: TokenIds,
    distractors: TokenIds,
    *,
    positions: Positions,
) -> tuple[tuple[Float[Array, " B"], Float[Array, " B"]], Patch]:
    """The logit differences of the clean and of the corrupted prompts, and what patches start from."""
    clean, other = (prefill(model, ids, mask, keep=positions) for ids in (tokens, corrupted))
    difference = tuple(
        logit_difference(model, run.residual[-1, :, -1], answers, distractors) for run in (clean, other)
    )
    change = other.z.astype(jnp.float32) - clean.z.astype(jnp.float32)
    return difference, Patch(clean, change, jnp.asarray(answers), jnp.asarray(distractors))


@dispatch.jit
def direct_step(
    model: Transformer,
    tokens: Tokens,
    corrupted: Tokens,
    mask: TokenMask,
    answers: TokenIds,
    distractors: TokenIds,
) -> tuple[Float[Array, " B"], Float[Array, " B"], Float[Array, "B L H"]]:
    """The logit difference of the clean and of the corrupted prompts and, of the clean ones, with each head's
    change added to the last residual and nothing else changed."""
    arrays = (tokens, corrupted, mask, answers, distractors)
    (of_clean, of_corrupted), patch = patch_prefill(model, *arrays, positions="last")
    last = patch.clean.residual[-1, :, -1]

    def layer(inputs: tuple[Array, Array]) -> Array:
        change, W_O = inputs
        written = jnp.einsum(
            "bhk,hkd->hbd", change, W_O.astype(jnp.float32), precision=model.config.precision
        )
        return logit_difference(
            model, last[None] + written.astype(last.dtype), patch.answers, patch.distractors
        )

    patched = lax.map(layer, (patch.change[:, :, -1], model.blocks.attn.W_O[...]))
    return of_clean, of_corrupted, jnp.moveaxis(patched, 2, 0)


@dispatch.jit
def logits_step(
    model: Transformer,
    patch: Patch,
    senders: Int[Array | np.ndarray, "M 2"],
    start: Int[Array | np.ndarray, ""],
) -> Float[Array, "M B"]:
    """The logit difference at the end of the path run. `start`: no sender is below this layer."""
    path = _enter(patch, jnp.asarray(start), len(senders))
    path = lax.fori_loop(start, model.config.n_layers, _path_run(model, patch, jnp.asarray(senders)), path)
    return logit_difference(model, path[:, :, -1], patch.answers, patch.distractors)


@dispatch.jit
def receivers_step(
    model: Transformer,
    patch: Patch,
    senders: Int[Array | np.ndarray, "M 2"],
    reads: Reads,
    start: Int[Array | np.ndarray, ""],
    first: Int[Array | np.ndarray, ""],
    last: Int[Array | np.ndarray, ""],
) -> Float[Array, "M B"]:
    """The logit difference at the end of the final run.

    start: the lowest sender's layer; first: of the receivers above that, the lowest one's; last: the highest
    receiver's.
    """
    start, first, last = (jnp.asarray(layer) for layer in (start, first, last))
    reads = jax.tree.map(jnp.asarray, reads)
    path_layer = _path_run(model, patch, jnp.asarray(senders))
    path = lax.fori_loop(start, first, path_layer, _enter(patch, start, len(senders)))
    x = _enter(patch, first, len(senders))

    def layer(at: Array, x: Array, path: Array | None, queries: slice = slice(None)) -> Array:
        return _final_layer(model, patch.clean, at, x, path, reads, queries)

    # Above the last receiver nobody reads the path run. Of the top layer only the last position is needed.
    top = jnp.asarray(model.config.n_layers - 1, start.dtype)
    x, path = lax.fori_loop(
        first,
        jnp.minimum(last + 1, top),
        lambda at, both: (layer(at, *both), path_layer(at, both[1])),
        (x, path),
    )
    x = lax.fori_loop(last + 1, top, lambda at, x: layer(at, x, None), x)
    x = layer(top, x, path, slice(-1, None))
    return logit_difference(model, x[:, :, -1], patch.answers, patch.distractors)


def _path_run(
    model: Transformer, patch: Patch, senders: Int[Array, "M 2"]
) -> Callable[[Int[Array, ""], Float[Array, "M B P D"]], Float[Array, "M B P D"]]:
    """The path run's step: (layer, the residual before it) -> the residual after it."""
    at, head = senders.T
    # What each sender writes more than in the clean run, through its W_O.
    written = jnp.einsum(
        "mbpk,mkd->mbpd",
        patch.change[at, :, :, head],
        model.blocks.attn.W_O[...][at, head].astype(jnp.float32),
        precision=model.config.precision,
    )

    def step(layer: Int[Array, ""], x: Float[Array, "M B P D"]) -> Float[Array, "M B P D"]:
        block, z = layer_of((model.blocks, patch.clean.z), layer)
        more = jnp.where((at == layer)[:, None, None, None], written, 0).astype(x.dtype)
        return block.add(x, block.attn.output(z)[None] + more)

    return step


def _enter(patch: Patch, layer: Int[Array, ""], n: int) -> Float[Array, "M B P D"]:
    """The residual before a layer below which n runs are the clean one."""
    x = layer_of(patch.clean.residual, layer)
    return jnp.broadcast_to(x[None], (n, *x.shape))


def _final_layer(
    model: Transformer,
    clean: Prefill,
    layer: Int[Array, ""],
    x: Float[Array, "M B P D"],
    path: Float[Array, "M B P D"] | None,
    reads: Reads,
    queries: slice,
) -> Float[Array, "M B Q D"]:
    """The residual after a layer of the final run, at the positions of the queries.

    A receiver's key and value are its own: where heads share them, the others see what the final run gives.
    """
    block, cache, reads = layer_of((model.blocks, (clean.k, clean.v), reads), layer)
    M, B, P, _ = x.shape
    positions = jnp.tile(clean.positions[:, -P:], (M, 1))
    q, k, v = _project(block, x, positions)
    if path is not None:
        share = model.config.n_heads // model.config.n_kv_heads
        k, v, *cache = (jnp.repeat(part, share, axis=2) for part in (k, v, *cache))
        other_q, other_k, other_v = _project(block, path, positions)
        others = (other_q, jnp.repeat(other_k, share, axis=2), jnp.repeat(other_v, share, axis=2))
        q, k, v = (
            jnp.where(read[None, None, :, None], other, own)
            for read, other, own in zip(reads, others, (q, k, v), strict=True)
        )
    if P == 1:
        q, k, v = (part.reshape(M, B, *part.shape[2:]) for part in (q, k, v))
        how = {"precision": model.config.precision, "implementation": model.config.implementation}
        z = variant_decode(q, *cache, k, v, valid=clean.valid, **how)
        z = z.reshape(M * B, 1, *z.shape[2:])
    else:
        z = block.attn.attend(q[:, queries], k, v, jnp.tile(clean.valid, (M, 1)))
    x = x[:, :, queries]
    return block.add(x, block.attn.output(z).reshape(x.shape))


def _project(
    block: Block, x: Float[Array, "M B P D"], positions: Int[Array, "MB P"]
) -> tuple[Float[Array, "MB P H K"], Float[Array, "MB P G K"], Float[Array, "MB P G K"]]:
    """Queries, keys and values, with variants and prompts together as rows."""
    return block.attn.project(block.ln1(x).reshape(*positions.shape, x.shape[-1]), positions)
