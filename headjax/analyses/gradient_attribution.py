"""Gradient attribution: every head's first-order effect on a metric, from one forward and backward pass.

A head's gain g (see `edits.HeadEdit`) is 1 in a clean run and 0 in an ablated one, so the derivative of the
metric with respect to g, at 1, estimates clean minus ablated for all heads at once: the mask gradient of
Michel et al. 2019, "Are Sixteen Heads Really Better than One?", with its sign, and the attribution patching
of Nanda 2023 with the ablation's replacement as the corrupted value.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int

from headjax import costs
from headjax.analyses.base import Ablating, Coordinates, Measured, effect_grids
from headjax.axes import Head, Residual, by_score
from headjax.costs import Cost, Machine
from headjax.data.prompts import PromptBatch
from headjax.engine.batches import (
    Remember,
    Track,
    Work,
    check_prompts,
    compute_anew,
    describe_rows,
    map_prompts,
    prompt_chunks,
    untracked,
)
from headjax.engine.layer_sweep import Ends, Sweep, run_sweep
from headjax.engine.mesh import ROWS, WHOLE, data_parts, fetch, fetch_each, free_host_memory, spread
from headjax.engine.replacement import Replacement, find_replacement
from headjax.errors import InputError
from headjax.grid import Coordinate, GridSet, HeadGrid
from headjax.kernels import dispatch
from headjax.model import Block, Transformer, mask_positions
from headjax.model.edits import HeadEdit
from headjax.options import option
from headjax.parameters.layered import LayeredModel
from headjax.report.options import Report
from headjax.report.table import Page, Table
from headjax.result import Result
from headjax.study import Study
from headjax.traced import shape


def _logprob(
    logits: Float[Array, "B V"], answers: Int[Array, " B"], _: Int[Array, " B"]
) -> Float[Array, " B"]:
    return _logit(jax.nn.log_softmax(logits), answers)


def _logit_diff(
    logits: Float[Array, "B V"], answers: Int[Array, " B"], distractors: Int[Array, " B"]
) -> Float[Array, " B"]:
    return _logit(logits, answers) - _logit(logits, distractors)


def _logit(logits: Float[Array, "B V"], tokens: Int[Array, " B"]) -> Float[Array, " B"]:
    return jnp.take_along_axis(logits, tokens[:, None], axis=1)[:, 0]


# Metrics that have a derivative; accuracy has none.
DIFFERENTIABLE: dict[str, Callable[..., Array]] = {"logprob": _logprob, "logit_diff": _logit_diff}


class GradientEffects(NamedTuple):
    """The metric of the clean run, and its derivative with respect to every head's gain."""

    clean: Float[Array | np.ndarray, " B"]
    effects: Float[Array | np.ndarray, "B L H"]


def gradient_attribution(
    model: Transformer | LayeredModel,
    prompts: PromptBatch,
    *,
    metric: str = "logprob",
    positions: str = "last",
    replacement: Replacement | None = None,
    batch_size: int = 16,
    track: Track = untracked,
    remember: Remember = compute_anew,
) -> GradientEffects:
    """The derivative of the metric with respect to every head's gain, for each prompt.

    Args:
      metric: "logprob" or "logit_diff", both at the last position.
      positions: where the gain acts; "all" is one gain for all positions.
      replacement: what stands in for z at gain 0 (`find_replacement` for the same prompts and positions);
        None: zeros.

    Raises InputError for a metric without a derivative, for "logit_diff" of prompts without distractors,
    and for derivatives that are not finite.
    """
    prompts = check_prompts(prompts, model.config, positions=positions, batch_size=batch_size)
    if metric not in DIFFERENTIABLE:
        raise InputError(f"a gradient needs one of the metrics {', '.join(DIFFERENTIABLE)}; got {metric!r}")
    if metric == "logit_diff" and prompts.distractors is None:
        raise InputError(f"metric 'logit_diff' needs a distractor; {prompts.prompts[0].name} has none")
    replacement = replacement or find_replacement(model, prompts, "zero", positions=positions)
    distractors = prompts.answers if prompts.distractors is None else prompts.distractors
    arrays = (prompts.tokens, prompts.mask, prompts.answers, distractors)
    how = (batch_size, track, "gradient attribution", remember, replacement)
    run = _layer_by_layer if isinstance(model, LayeredModel) else partial(map_prompts, _gradient)
    found = run(model, arrays, *how, metric=metric, positions=positions)
    finite = np.isfinite(found.clean) & np.isfinite(found.effects).all(axis=(1, 2))
    if not finite.all():
        name = prompts.prompts[int(np.argmin(finite))].name
        raise InputError(f"derivatives must be finite numbers; {name} gives NaN or infinity")
    return found


@partial(dispatch.jit, static_argnames=("metric", "positions"))
def _gradient(
    model: Transformer,
    tokens: Int[Array, "B S"],
    mask: Bool[Array, "B S"],
    answers: Int[Array, " B"],
    distractors: Int[Array, " B"],
    replacement: Float[Array, " L #B #P #H #K"],
    *,
    metric: str,
    positions: str,
) -> GradientEffects:
    config, (B, S) = model.config, tokens.shape
    at, valid = mask_positions(mask), jnp.asarray(mask)

    def layer(x: Residual, inputs: tuple[Block, HeadEdit]) -> tuple[Residual, None]:
        block, edit = inputs
        return block(x, at, valid, edit)[0], None

    def total(gain: Float[Array, "L B 1 H"]) -> tuple[Float[Array, ""], Float[Array, " B"]]:
        edits = HeadEdit(_everywhere(gain, S, positions), replacement)
        x, _ = jax.lax.scan(layer, model.embed(tokens, at), (model.blocks, edits))
        values = DIFFERENTIABLE[metric](model.logits(x[:, -1]), answers, distractors)
        return values.sum(), values

    # A prompt's gains reach its own metric alone, so the sum's derivative is every prompt's own.
    ones = jnp.ones((config.n_layers, B, 1, config.n_heads), jnp.float32)
    gradient, clean = jax.grad(total, has_aux=True)(ones)
    return GradientEffects(clean, jnp.moveaxis(gradient[:, :, 0], 1, 0))


def _everywhere(gain: Float[Array, "*L B 1 H"], S: int, positions: str) -> Float[Array, "*L B P H"]:
    """Gains at all S positions, 1 before the last one where it alone is edited."""
    if positions == "all":
        return gain
    before = jnp.ones((*gain.shape[:-2], S - 1, gain.shape[-1]), gain.dtype)
    return jnp.concatenate([before, gain], axis=-2)


# --- of a model that is read layer by layer: forwards, keeping the residual before each layer, then backwards


def _layer_by_layer(
    model: LayeredModel,
    arrays: tuple[np.ndarray, ...],
    batch_size: int,
    track: Track,
    label: str,
    remember: Remember,
    replacement: Replacement,
    *,
    metric: str,
    positions: str,
) -> GradientEffects:
    """Prompts go through the model in groups whose residuals fit into the host's memory."""
    n_prompts, S = arrays[0].shape
    chunks = prompt_chunks(n_prompts, batch_size, data_parts(model.mesh))
    row_bytes = model.config.n_layers * S * model.config.d_model * model.outer.W_E.dtype.itemsize

    def group_size() -> int:
        return max(1, int(free_host_memory() // 4 // (row_bytes * len(chunks[0]))))

    n_at_once = remember(f"{label}, how many chunks a group", group_size)
    groups = [chunks[i : i + n_at_once] for i in range(0, len(chunks), n_at_once)]
    run = partial(_there_and_back, model, arrays, replacement, metric, positions, track, label)
    found = [
        remember(f"{label} ({metric}), {describe_rows(np.concatenate(group))}", partial(run, group))
        for group in groups
    ]
    return jax.tree.map(lambda *parts: np.concatenate(parts)[:n_prompts], *found)


def _there_and_back(
    model: LayeredModel,
    arrays: tuple[np.ndarray, ...],
    replacement: Replacement,
    metric: str,
    positions: str,
    track: Track,
    label: str,
    chunks: list[Int[np.ndarray, " rows"]],
) -> GradientEffects:
    mesh, L = model.mesh, model.config.n_layers
    rows = np.concatenate(chunks)
    (tokens, mask, *asked), size = ([array[rows] for array in arrays]), len(chunks[0])
    how = {"batch_size": size, "track": track, "label": f"{label}, forwards"}
    before, last = run_sweep(RESIDUALS, model, (tokens, mask), **how)
    parts = [slice(i, i + size) for i in range(0, len(rows), size)]

    top = spread(_metric_gradient, mesh, (ROWS, ROWS, ROWS), metric=metric)
    clean, slopes = [], []
    for part in parts:
        value, slope = fetch(top(model.outer, last[part], *(array[part] for array in asked)))
        clean.append(value)
        slopes.append(np.zeros(before[part, 0].shape, slope.dtype))
        slopes[-1][:, -1] = slope

    def run(layer: int, block: Block) -> Iterator[tuple[int, Any]]:
        """(chunk, (its slope before the layer, the effects of the layer's heads))."""
        for i, part in enumerate(parts):
            instead = np.asarray(replacement(rows[part]))[layer]
            spec = ROWS if len(instead) > 1 else WHOLE
            back = spread(_pull_back, mesh, (ROWS, ROWS, spec, ROWS), positions=positions)
            yield i, back(block, before[part, layer], mask[part], instead, slopes[i])

    effects = np.zeros((len(rows), L, model.config.n_heads), np.float32)
    for i, block in enumerate(track(model.layers(backwards=True), L, f"{label}, backwards")):
        layer = L - 1 - i
        for chunk, (slope, of_heads) in fetch_each(run(layer, block)):
            slopes[chunk] = slope
            effects[parts[chunk], layer] = of_heads
        del block  # or it would stay while the next one is waited for
    return GradientEffects(np.concatenate(clean), effects)


def _residuals(
    _model: Transformer, _asked: None, kept: Float[Array, "L B S D"], ends: Ends
) -> tuple[Float[Array, "B L S D"], Float[Array, "B D"]]:
    return jnp.moveaxis(kept, 0, 1), ends.last


# The residual before every layer, and the last one at the last position.
RESIDUALS = Sweep("residuals", lambda *_: None, lambda _block, ran, *_: ran.before, _residuals)


@partial(dispatch.jit, static_argnames="metric")
def _metric_gradient(
    outer: Transformer,
    last: Float[Array, "B D"],
    answers: Int[Array, " B"],
    distractors: Int[Array, " B"],
    *,
    metric: str,
) -> tuple[Float[Array, " B"], Float[Array, "B D"]]:
    """The metric, and its derivative with respect to the last residual."""

    def total(last: Float[Array, "B D"]) -> tuple[Float[Array, ""], Float[Array, " B"]]:
        values = DIFFERENTIABLE[metric](outer.logits(last), answers, distractors)
        return values.sum(), values

    slope, values = jax.grad(total, has_aux=True)(last)
    return values, slope


@partial(dispatch.jit, static_argnames="positions")
def _pull_back(
    block: Block,
    x: Residual,
    mask: Bool[Array, "B S"],
    replacement: Float[Array, "#B #P #H #K"],
    slope: Residual,
    *,
    positions: str,
) -> tuple[Residual, Float[Array, "B H"]]:
    """From the derivative with respect to the residual after a layer to those with respect to the residual
    before it and to its heads' gains."""
    B, S = mask.shape

    def layer(x: Residual, gain: Float[Array, "B 1 H"]) -> Residual:
        edit = HeadEdit(_everywhere(gain, S, positions), replacement)
        return block(x, mask_positions(mask), jnp.asarray(mask), edit)[0]

    gain = jnp.ones((B, 1, block.config.n_heads), jnp.float32)
    before, of_heads = jax.vjp(layer, x, gain)[1](slope)
    return before, of_heads[:, 0]


class Agreement(NamedTuple):
    """How well an estimate ranks the heads.

    Attributes:
      spearman: rank correlation of the signed effects; NaN where one side is the same for all heads.
      missed: heads of the exact top that are not in the estimate's, largest effect first.
      n_top: how many heads the top has.
    """

    spearman: float
    missed: tuple[Head, ...]
    n_top: int


def agreement(
    exact: Float[np.ndarray, "L H"], estimate: Float[np.ndarray, "L H"], share: float = 0.05
) -> Agreement:
    """Compares exact ablation effects with their estimate; the top are the largest effects of either sign.

    The top holds that share of the heads, rounded up; ties go by layer, then head.
    """
    import scipy.stats  # it takes a second, so only when it is needed

    n_top = int(np.ceil(share * exact.size))
    found = by_score(np.abs(estimate), n_top)
    missed = tuple(head for head in by_score(np.abs(exact), n_top) if head not in found)
    same = np.ptp(exact) == 0 or np.ptp(estimate) == 0
    spearman = np.nan if same else scipy.stats.spearmanr(exact, estimate, axis=None).statistic
    return Agreement(float(spearman), missed, n_top)


@dataclass(frozen=True, kw_only=True)
class GradientAttribution(Measured, Ablating):
    """The first-order estimate of head ablation, of every metric that has a derivative.

    Attributes:
      positions: where the gain acts, "last" or "all".
    """

    kind = "gradient_attribution"
    streams = True
    drawn_by = "metric"
    positions: str = option("last", choices=("last", "all"))

    def stream_fault(self) -> str:
        if self.positions == "last" or self.replacement == "zero":
            return ""
        return f"at all positions it needs replacement 'zero'; got {self.replacement!r}"

    def check(self, study: Study, before: Coordinates) -> set[Coordinate]:
        self.check_donors(study, self.positions)
        return self.effects_on(study, "gradient", self._metrics(study))

    def cost(self, study: Study, machine: Machine) -> Cost:
        batch = study.task_batch(self.prompts)
        cost = costs.replacement(study, machine, batch, self.positions, **self.how)
        arrays = (batch.tokens, batch.mask, batch.answers, batch.answers)
        # Of a model that is read layer by layer: forwards and backwards.
        how = {"replacement": shape(study.config.n_layers, 1, 1, 1, 1), "passes": 2}
        for metric in self._metrics(study):
            how |= {"metric": metric, "positions": self.positions}
            cost += costs.mapped(study, machine, _gradient, *arrays, **how)
        return cost

    def run(self, study: Study, work: Work) -> Result:
        batch, batch_size = study.task_batch(self.prompts), study.compute.batch_size
        replacement = find_replacement(
            *(study.sweep_model(), batch),
            **self.how,
            positions=self.positions,
            batch_size=batch_size,
            seed=study.seed,
            track=work.track,
        )
        where = {"replacement": self.replacement, "positions": self.positions}
        grids: list[HeadGrid] = []
        for metric in self._metrics(study):
            found = gradient_attribution(
                study.sweep_model(),
                batch,
                metric=metric,
                positions=self.positions,
                replacement=replacement,
                batch_size=batch_size,
                track=work.track,
                remember=work.remember,
            )
            grids += effect_grids(study, batch, "gradient", found.effects, metric, found.clean, **where)
        return Result(GridSet(tuple(grids)))

    def _metrics(self, study: Study) -> tuple[str, ...]:
        return self.metrics_of(study.task_batch(self.prompts), tuple(DIFFERENTIABLE), "gradient")

    def tables(self, name: str, found: Result, report: Report) -> list[Table | Page]:
        """How well it agrees with exact ablation, where that was measured in the same way."""
        rows = []
        for estimate in found.grids.select(analysis=name):
            exact = found.grids.select(
                model=estimate.model,
                relation=estimate.relation,
                measure="ablation",
                part="",  # single heads, not groups
                metric=estimate.metric,
                replacement=estimate.replacement,
                positions=estimate.positions,
            )
            for grid in exact:
                one = agreement(grid.scores, estimate.scores)
                named = (estimate.model, estimate.relation, estimate.metric)
                rows.append(AgreementRow(*named, one.spearman, one.n_top, " ".join(map(str, one.missed))))
        if not rows:
            return []
        text = "Gradient against exact ablation\n" + agreement_table(rows)
        return [Table(self.stem(name, "gradient_agreement"), AgreementRow._fields, rows, text)]


class AgreementRow(NamedTuple):
    """Rank correlation of gradient and exact effects, and which of the exact top the gradient misses."""

    model: str
    relation: str
    metric: str
    spearman: float
    n_top: int
    missed: str


def agreement_table(rows: Sequence[AgreementRow]) -> str:
    """The rows as aligned text."""
    lines = [f"{'relation':22} {'metric':10} {'Spearman':>8}  misses of the exact top"]
    for row in rows:
        count = len(row.missed.split())
        missed = f"{count} of {row.n_top}{': ' * bool(count)}{row.missed}"
        lines.append(f"{row.relation:22} {row.metric:10} {row.spearman:8.2f}  {missed}")
    return "\n".join(lines)
