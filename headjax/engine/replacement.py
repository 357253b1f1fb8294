"""What takes the place of an ablated head's output: zeros, a mean, or another prompt's output."""

from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int

from headjax.data.prompts import PromptBatch
from headjax.engine.batches import Replacement, Track, check_prompts, prompt_chunks, untracked
from headjax.engine.layer_sweep import Ends, LayerRun, Sweep, run_sweep
from headjax.engine.mesh import ROWS, data_parts, fetch, model_mesh, spread
from headjax.engine.prefill import SPECS, prefill
from headjax.errors import InputError
from headjax.kernels import dispatch
from headjax.model import Block, Transformer
from headjax.parameters.layered import LayeredModel

ABLATIONS = ("zero", "mean", "resample")


def find_replacement(
    model: Transformer | LayeredModel,
    prompts: PromptBatch,
    ablation: str,
    *,
    positions: str,
    mean_over: str = "prompts",
    batch_size: int = 64,
    seed: int = 0,
    track: Track = untracked,
) -> Replacement:
    """The heads' replacement outputs, ready to be asked for any of the prompts.

    Args:
      ablation: "zero"; "mean", over the prompts of the same relation; "resample": the outputs of the
        prompt's corrupted partner or, where prompts have none, of another prompt of the same relation,
        drawn by the seed. What is done to a prompt never depends on other relations.
      mean_over: "prompts" gives every position its own mean, positions counted from the end of the
        prompts; "tokens" is one mean over all prompts and positions.

    Raises InputError for another `ablation`, for prompts that have nobody to be resampled from: a single one
    or, at all positions, one without another of the same length; and for what replaces all positions in a
    model that is read layer by layer, unless it is zeros.
    """
    prompts = check_prompts(
        prompts, model.config, positions=positions, mean_over=mean_over, batch_size=batch_size
    )
    if isinstance(model, LayeredModel) and ablation in ("mean", "resample"):
        if positions != "last":
            rule = "a model read layer by layer knows what replaces the last position"
            raise InputError(f"{rule}; got {positions!r} positions and ablation {ablation!r}")
        how = {"batch_size": batch_size, "track": track, "label": f"replacement ({ablation})"}
        return _layer_by_layer(model, prompts, ablation, mean_over, seed, how)
    match ablation:
        case "zero":
            return lambda rows: np.zeros((model.config.n_layers, 1, 1, 1, 1), np.float32)
        case "mean":
            keep = "all" if mean_over == "tokens" else positions
            means, group = _mean_outputs(model, prompts, keep, mean_over, batch_size)
            return lambda rows: means[:, group[rows]] if means.shape[1] > 1 else means
        case "resample":
            tokens, mask = find_donors(prompts, positions, seed)
            mesh = model_mesh(model)
            run = spread(prefill, mesh, (ROWS, ROWS), SPECS, keep=positions)

            def outputs(rows: Int[np.ndarray, " rows"]) -> Float[Array, "L rows P H K"]:
                n = -(-len(rows) // data_parts(mesh)) * data_parts(mesh)  # as many for each copy of the model
                z = run(model, tokens[np.resize(rows, n)], mask[np.resize(rows, n)]).z
                return z if n == len(rows) else z[:, : len(rows)]

            return outputs
    raise InputError(f"field 'ablation' must be one of {', '.join(ABLATIONS)}; got {ablation!r}")


def relation_groups(prompts: PromptBatch) -> Int[np.ndarray, " B"]:
    """Which relation each prompt belongs to, as a number."""
    relations = [prompt.relation for prompt in prompts.prompts]
    return np.unique(relations, return_inverse=True)[1]


def _mean_outputs(
    model: Transformer, prompts: PromptBatch, keep: str, mean_over: str, batch_size: int
) -> tuple[Float[np.ndarray, "L R P H K"], Int[np.ndarray, " B"]]:
    """The mean of every relation, and which relation each prompt belongs to."""
    group = relation_groups(prompts)
    member = group[:, None] == np.arange(group.max() + 1)[None]
    kept = slice(-1, None) if keep == "last" else slice(None)
    total = count = 0.0
    mesh = model_mesh(model)
    run = spread(_sum_outputs, mesh, (ROWS, ROWS, ROWS), keep=keep)
    for chunk, rows in enumerate(prompt_chunks(len(prompts.tokens), batch_size, data_parts(mesh))):
        own = chunk * len(rows) + np.arange(len(rows)) < len(prompts.tokens)  # not what it was filled up with
        weight = (prompts.mask[rows] & own[:, None])[:, kept, None] & member[rows][:, None]
        sums = fetch(run(model, prompts.tokens[rows], prompts.mask[rows], weight))
        total, count = total + sums.sum(axis=0, dtype=np.float64), count + weight.sum(axis=0).T
    if mean_over == "tokens":
        total, count = total.sum(axis=2, keepdims=True), count.sum(axis=1, keepdims=True)
    # Where none of a relation's prompts reaches so far back, nothing asks for the mean either.
    return (total / np.maximum(count, 1)[:, :, None, None]).astype(np.float32), group


@partial(dispatch.jit, static_argnames="keep")
def _sum_outputs(
    model: Transformer,
    tokens: Int[Array, "B S"],
    mask: Bool[Array, "B S"],
    weight: Bool[Array, "B P R"],
    *,
    keep: str,
) -> Float[Array, "1 L R P H K"]:
    """The sum over these prompts alone; the first axis is there to gather those of several devices."""
    z = prefill(model, tokens, mask, keep=keep).z.astype(jnp.float32)
    z = jnp.where(weight.any(axis=2)[None, :, :, None, None], z, 0)  # a zero times a NaN would be a NaN
    return jnp.einsum("lbphk,bpr->lrphk", z, weight.astype(jnp.float32), precision="highest")[None]


def _layer_by_layer(
    model: LayeredModel, prompts: PromptBatch, ablation: str, mean_over: str, seed: int, how: dict[str, Any]
) -> Replacement:
    """What replaces the last position, of one pass through the model."""
    if ablation == "resample":
        tokens, mask = find_donors(prompts, "last", seed)
        z = run_sweep(LAST_OUTPUTS, model, (tokens, mask), **how)
        return lambda rows: np.moveaxis(z[rows], 0, 1)[:, :, None]
    over_tokens = mean_over == "tokens"
    sweep = SUMMED_OUTPUTS if over_tokens else LAST_OUTPUTS
    z = run_sweep(sweep, model, (prompts.tokens, prompts.mask), **how)
    group = relation_groups(prompts)
    counts = prompts.mask.sum(axis=1) if over_tokens else np.ones(len(group))
    members = [np.flatnonzero(group == one) for one in range(group.max() + 1)]
    means = [z[rows].sum(axis=0, dtype=np.float64) / counts[rows].sum() for rows in members]
    mean = np.stack(means, axis=1).astype(np.float32)[:, :, None]
    return lambda rows: mean[:, group[rows]]


def _last_outputs(_block: Block, ran: LayerRun, _asked: None, _shared: None) -> Float[Array, "B H K"]:
    return ran.z[:, -1].astype(jnp.float32)


def _summed_outputs(_block: Block, ran: LayerRun, _asked: None, _shared: None) -> Float[Array, "B H K"]:
    """Over a prompt's own tokens."""
    return jnp.where(ran.valid[:, :, None, None], ran.z.astype(jnp.float32), 0).sum(axis=1)


def _by_prompt(
    _model: Transformer, _asked: None, z: Float[Array, "L B H K"], _ends: Ends
) -> Float[Array, "B L H K"]:
    return jnp.moveaxis(z, 0, 1)


def _nothing(*_: Any) -> None:
    """What these sweeps ask of the prompts."""


LAST_OUTPUTS = Sweep("last_outputs", _nothing, _last_outputs, _by_prompt)
SUMMED_OUTPUTS = Sweep("summed_outputs", _nothing, _summed_outputs, _by_prompt)


def find_donors(
    prompts: PromptBatch, positions: str, seed: int
) -> tuple[Int[np.ndarray, "B S"], Bool[np.ndarray, "B S"]]:
    """Tokens and mask of the prompts whose outputs replace each prompt's."""
    if prompts.corrupted is not None:
        return prompts.corrupted, prompts.mask
    group = relation_groups(prompts)
    if positions == "all":  # every one of them must meet a token of the donor
        group = group * (prompts.mask.shape[1] + 1) + prompts.mask.sum(axis=1)
    donor = np.arange(len(group))
    rng = np.random.default_rng(seed)
    for one in np.unique(group):
        members = np.flatnonzero(group == one)
        if len(members) == 1:
            same = " of its relation" + (" and length" if positions == "all" else "")
            name = prompts.prompts[members[0]].name
            raise InputError(f"resampling needs corrupted partners or another prompt{same}; {name} has none")
        circle = rng.permutation(members)
        donor[circle] = np.roll(circle, 1)  # nobody is their own donor
    return prompts.tokens[donor], prompts.mask[donor]
