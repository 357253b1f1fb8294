"""What takes the place of an ablated head's output: zeros, a mean, or another prompt's output."""

from collections.abc import Callable
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int

from headjax.errors import InputError
from headjax.model import Transformer
from headjax.prompts import PromptBatch
from headjax.sweeps.batches import prompt_chunks
from headjax.sweeps.prefill import prefill

ABLATIONS = ("zero", "mean", "resample")

# For the prompts at these rows: [L B|1 P|1 H|1 K|1], P as the prefill keeps positions.
Replacement = Callable[[Int[np.ndarray, "rows"]], Float[Array | np.ndarray, "L #rows #P #H #K"]]


def find_replacement(
    model: Transformer,
    prompts: PromptBatch,
    ablation: str,
    *,
    positions: Literal["last", "all"],
    mean_over: Literal["prompts", "tokens"] = "prompts",
    batch_size: int = 64,
    seed: int = 0,
) -> Replacement:
    """The heads' replacement outputs, ready to be asked for any of the prompts.

    Args:
      ablation: "zero"; "mean", over these prompts; "resample": the outputs of the prompt's corrupted
        partner or, where prompts have none, of another of the prompts, drawn by the seed.
      mean_over: "prompts" gives every position its own mean, positions counted from the end of the
        prompts; "tokens" is one mean over all prompts and positions.

    Raises InputError for another `ablation`, and for prompts that have nobody to be resampled from: a
    single one or, at all positions, one without another of the same length.
    """
    match ablation:
        case "zero":
            return lambda rows: np.zeros((model.config.n_layers, 1, 1, 1, 1), np.float32)
        case "mean":
            keep = "all" if mean_over == "tokens" else positions
            mean = _mean_outputs(model, prompts, keep, mean_over, batch_size)
            return lambda rows: mean
        case "resample":
            tokens, mask = _donors(prompts, positions, seed)
            return lambda rows: prefill(model, tokens[rows], mask[rows], keep=positions).z
    raise InputError(f"field 'ablation' must be one of {', '.join(ABLATIONS)}; got {ablation!r}")


def _mean_outputs(
    model: Transformer, prompts: PromptBatch, keep: str, mean_over: str, batch_size: int
) -> Float[np.ndarray, "L 1 P H K"]:
    total = count = 0.0
    for chunk, rows in enumerate(prompt_chunks(len(prompts.tokens), batch_size)):
        own = chunk * len(rows) + np.arange(len(rows)) < len(prompts.tokens)  # not what it was filled up with
        weight = (prompts.mask[rows] & own[:, None])[:, slice(-1, None) if keep == "last" else slice(None)]
        sums = _sum_outputs(model, prompts.tokens[rows], prompts.mask[rows], weight, keep=keep)
        total, count = total + np.asarray(sums, np.float64), count + weight.sum(axis=0)
    if mean_over == "tokens":
        total, count = total.sum(axis=1, keepdims=True), count.sum(keepdims=True)
    return (total / count[:, None, None])[:, None].astype(np.float32)


@partial(jax.jit, static_argnames="keep")
def _sum_outputs(
    model: Transformer,
    tokens: Int[Array, "B S"],
    mask: Bool[Array, "B S"],
    weight: Bool[Array, "B P"],
    *,
    keep: str,
) -> Float[Array, "L P H K"]:
    z = prefill(model, tokens, mask, keep=keep).z.astype(jnp.float32)
    return jnp.where(weight[None, :, :, None, None], z, 0).sum(axis=1)


def _donors(
    prompts: PromptBatch, positions: str, seed: int
) -> tuple[Int[np.ndarray, "B S"], Bool[np.ndarray, "B S"]]:
    """Tokens and mask of the prompts whose outputs replace each prompt's."""
    if prompts.corrupted is not None:
        return prompts.corrupted, prompts.mask
    lengths = prompts.mask.sum(axis=1)
    # At all positions every one of them must meet a token of the donor.
    group = lengths if positions == "all" else np.zeros_like(lengths)
    donor = np.arange(len(lengths))
    rng = np.random.default_rng(seed)
    for one in np.unique(group):
        members = np.flatnonzero(group == one)
        if len(members) == 1:
            same = " of the same length" if positions == "all" else ""
            name = prompts.prompts[members[0]].name
            raise InputError(f"resampling needs corrupted partners or another prompt{same}; {name} has none")
        circle = rng.permutation(members)
        donor[circle] = np.roll(circle, 1)  # nobody is their own donor
    return prompts.tokens[donor], prompts.mask[donor]
