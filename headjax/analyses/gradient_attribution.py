"""Gradient attribution: every head's first-order effect on a metric, from one forward and backward pass.

A head's gain g (see `edits.HeadEdit`) is 1 in a clean run and 0 in an ablated one, so the derivative of the
metric with respect to g, at 1, estimates clean minus ablated for all heads at once: the mask gradient of
Michel et al. 2019, "Are Sixteen Heads Really Better than One?", with its sign, and the attribution patching
of Nanda 2023 with the ablation's replacement as the corrupted value.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int

from headjax import costs
from headjax.analyses.base import Ablating, Coordinates, Measured, effect_grids
from headjax.axes import Head, Residual
from headjax.costs import Cost, Machine
from headjax.data.prompts import PromptBatch
from headjax.engine.batches import Remember, Track, Work, check_prompts, compute_anew, map_prompts, untracked
from headjax.engine.replacement import Replacement, find_replacement
from headjax.errors import InputError
from headjax.grid import Coordinate, GridSet, HeadGrid
from headjax.kernels import dispatch
from headjax.model import Block, Transformer, mask_positions
from headjax.model.edits import HeadEdit
from headjax.options import option
from headjax.report.drawing import draw_effects
from headjax.report.options import Report
from headjax.report.table import Page, Table
from headjax.result import Result
from headjax.study import Study


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
    model: Transformer,
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
    found = map_prompts(
        _gradient,
        model,
        (prompts.tokens, prompts.mask, prompts.answers, distractors),
        batch_size,
        track,
        "gradient attribution",
        remember,
        replacement,
        metric=metric,
        positions=positions,
    )
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
        if positions == "last":
            before = jnp.ones((config.n_layers, B, S - 1, config.n_heads), jnp.float32)
            gain = jnp.concatenate([before, gain], axis=2)
        edits = HeadEdit(gain, replacement)
        x, _ = jax.lax.scan(layer, model.embed(tokens, at), (model.blocks, edits))
        values = DIFFERENTIABLE[metric](model.logits(x[:, -1]), answers, distractors)
        return values.sum(), values

    # A prompt's gains reach its own metric alone, so the sum's derivative is every prompt's own.
    ones = jnp.ones((config.n_layers, B, 1, config.n_heads), jnp.float32)
    gradient, clean = jax.grad(total, has_aux=True)(ones)
    return GradientEffects(clean, jnp.moveaxis(gradient[:, :, 0], 1, 0))


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

    def top(effects: Float[np.ndarray, "L H"]) -> list[int]:
        return np.argsort(-np.abs(effects), axis=None, kind="stable")[:n_top].tolist()

    found = set(top(estimate))
    missed = tuple(Head(*divmod(head, exact.shape[1])) for head in top(exact) if head not in found)
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
    positions: str = option("last", choices=("last", "all"))

    def check(self, study: Study, before: Coordinates) -> set[Coordinate]:
        self.check_donors(study, self.positions)
        return {
            Coordinate("gradient", task, metric=metric)
            for metric in self._metrics(study)
            for task in self.tasks(study)
        }

    def cost(self, study: Study, machine: Machine) -> Cost:
        prompts = costs.chunked(study, study.task_batch(self.prompts).tokens, machine.copies)
        sizes = (prompts, len(self._metrics(study)), self.positions, costs.itemsize(study))
        replaced = (prompts, self.replacement, self.positions, self.mean_over)
        return costs.gradient_attribution(study.config, *sizes) + costs.replacement(study.config, *replaced)

    def run(self, study: Study, work: Work) -> Result:
        batch, batch_size = study.task_batch(self.prompts), study.compute.batch_size
        replacement = find_replacement(
            study.model, batch, **self.how, positions=self.positions, batch_size=batch_size, seed=study.seed
        )
        where = {"replacement": self.replacement, "positions": self.positions}
        grids: list[HeadGrid] = []
        for metric in self._metrics(study):
            found = gradient_attribution(
                study.model,
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

    def draw(self, name: str, found: Result, report: Report, directory: Path) -> list[Path]:
        return draw_effects(self, name, found, report, directory)


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
