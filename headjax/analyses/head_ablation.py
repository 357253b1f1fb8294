"""Head ablation: what the answer loses when one head, or one group of heads, is replaced.

A head is the slice of z *before* the output projection. Zeroing a slice of what comes after it is no head
ablation, because W_O mixes all heads into every coordinate.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from headjax import costs
from headjax.analyses.base import Ablating, Coordinates, Measured, effect_grids, sweep_options
from headjax.config import ModelConfig
from headjax.costs import Cost, Machine
from headjax.data.prompts import PromptBatch
from headjax.engine.batches import (
    Remember,
    Track,
    Work,
    check_prompts,
    compute_anew,
    untracked,
)
from headjax.engine.metrics import METRICS, Metrics
from headjax.engine.replacement import find_replacement
from headjax.engine.variant_step import Positions
from headjax.engine.variants import run_variants
from headjax.errors import InputError
from headjax.grid import Coordinate, GridSet, HeadGrid
from headjax.measures import KV_GROUPS
from headjax.model import Transformer
from headjax.options import option
from headjax.parameters.layered import LayeredModel
from headjax.result import Result
from headjax.study import Data, Study


class AblationMetrics(NamedTuple):
    """Metrics of the clean run, each [B], and with each unit ablated alone, each [L U B].

    The units U are the query heads H, or the key/value heads G with all query heads that read them. All
    are variants of one program, the clean run too: a unit without an effect has the same bits.
    """

    clean: Metrics
    ablated: Metrics

    def effect(self, metric: str) -> Float[np.ndarray, "L U B"]:
        """Clean minus ablated of each prompt: positive where the unit helps.

        Raises InputError for an unknown metric and for "logit_diff" of prompts without distractors.
        """
        if metric not in METRICS:
            raise InputError(f"field 'metrics' must be of {', '.join(METRICS)}; got {metric!r}")
        clean, ablated = getattr(self.clean, metric), getattr(self.ablated, metric)
        if clean is None:
            raise InputError("metric 'logit_diff' needs prompts with distractors; these have none")
        return clean - ablated


def head_ablation(
    model: Transformer | LayeredModel,
    prompts: PromptBatch,
    *,
    ablation: str = "zero",
    positions: Positions = "last",
    mean_over: str = "prompts",
    kv_groups: bool = False,
    batch_size: int = 64,
    variant_batch: int | None = None,
    seed: int = 0,
    track: Track = untracked,
    remember: Remember = compute_anew,
) -> AblationMetrics:
    """Ablates every head of the model alone, on every prompt.

    Args:
      ablation, mean_over, seed: what replaces a head's output; see `find_replacement`.
      positions: where it is replaced.
      kv_groups: ablate all query heads of a key/value head together.
      batch_size: prompts that are run at once; variant_batch: heads, None chooses by the free memory.

    A model that is read layer by layer is ablated at the last position.

    Raises InputError as `check_prompts`, `find_replacement` and `run_variants` do.
    """
    how = {"positions": positions, "mean_over": mean_over}
    prompts = check_prompts(prompts, model.config, **how, batch_size=batch_size, variant_batch=variant_batch)
    L, n_units = model.config.n_layers, model.config.n_kv_heads if kv_groups else model.config.n_heads
    replacement = find_replacement(
        model,
        prompts,
        ablation,
        **how,
        batch_size=batch_size,
        seed=seed,
        track=track,
    )
    runs = run_variants(
        model,
        prompts,
        single_gains(model.config, n_units),
        replacement,
        positions=positions,
        batch_size=batch_size,
        variant_batch=variant_batch,
        track=track,
        remember=remember,
        label=f"head ablation ({ablation}, {positions})",
    )
    grid = jax.tree.map(lambda values: values.reshape(L, n_units, -1), runs.edited)
    return AblationMetrics(runs.clean, grid)


def single_gains(config: ModelConfig, n_units: int) -> Float[np.ndarray, "M L H"]:
    """One variant for each layer and unit, in that order: H / n_units neighbouring heads at gain 0."""
    units = np.repeat(np.eye(n_units, dtype=np.float32), config.n_heads // n_units, axis=1)
    layers = np.eye(config.n_layers, dtype=np.float32)
    ablated = layers[:, None, :, None] * units[None, :, None, :]
    return 1 - ablated.reshape(-1, config.n_layers, config.n_heads)


@dataclass(frozen=True, kw_only=True)
class HeadAblation(Measured, Ablating):
    """What the answer loses without each head: clean minus ablated, of every metric.

    Attributes:
      positions: where heads are ablated, "last" or "all".
      kv_groups: ablate the query heads of a key/value head together.
    """

    kind = "head_ablation"
    streams = True
    drawn_by = "metric"
    positions: str = option("last", choices=("last", "all"))
    kv_groups: bool = False

    def reads(self, data: Data) -> frozenset[str]:
        return super().reads(data) | {"compute.variant_batch"}

    def stream_fault(self) -> str:
        return "" if self.positions == "last" else f"needs positions 'last'; got {self.positions!r}"

    def check(self, study: Study, before: Coordinates) -> set[Coordinate]:
        self.check_donors(study, self.positions)
        metrics = self.metrics_of(study.task_batch(self.prompts), METRICS, "ablation")
        return self.effects_on(study, "ablation", metrics, self._part(study))

    def _part(self, study: Study) -> str:
        return KV_GROUPS if self.kv_groups and study.config.n_kv_heads < study.config.n_heads else ""

    def cost(self, study: Study, machine: Machine) -> Cost:
        c, batch = study.config, study.task_batch(self.prompts)
        start = np.repeat(np.arange(c.n_layers), c.n_kv_heads if self.kv_groups else c.n_heads)
        sweep = costs.variants(study, machine, batch, start, self.positions)
        return sweep + costs.replacement(study, machine, batch, self.positions, **self.how)

    def run(self, study: Study, work: Work) -> Result:
        batch = study.task_batch(self.prompts)
        result = head_ablation(
            study.sweep_model(),
            batch,
            **self.how,
            positions=self.positions,
            kv_groups=self.kv_groups,
            variant_batch=study.compute.variant_batch,
            seed=study.seed,
            **sweep_options(study, work),
        )
        where = {"replacement": self.replacement, "positions": self.positions, "part": self._part(study)}
        grids: list[HeadGrid] = []
        for metric in self.metrics_of(batch, METRICS, "ablation"):
            effects, clean = np.moveaxis(result.effect(metric), 2, 0), getattr(result.clean, metric)
            grids += effect_grids(study, batch, "ablation", effects, metric, clean, **where)
        return Result(GridSet(tuple(grids)))
