"""Head ablation: what the answer loses when one head, or one group of heads, is replaced.

A head is the slice of z *before* the output projection. Zeroing a slice of what comes after it is no head
ablation, because W_O mixes all heads into every coordinate.
"""

from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from headjax.config import ModelConfig
from headjax.data.prompts import PromptBatch
from headjax.engine.batches import Remember, Track, check_prompts, compute_anew, untracked
from headjax.engine.metrics import METRICS, Metrics
from headjax.engine.replacement import find_replacement
from headjax.engine.variant_step import Positions
from headjax.engine.variants import run_variants
from headjax.errors import InputError
from headjax.model import Transformer


class HeadAblation(NamedTuple):
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
    model: Transformer,
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
) -> HeadAblation:
    """Ablates every head of the model alone, on every prompt.

    Args:
      ablation, mean_over, seed: what replaces a head's output; see `find_replacement`.
      positions: where it is replaced.
      kv_groups: ablate all query heads of a key/value head together.
      batch_size: prompts that are run at once; variant_batch: heads, None chooses by the free memory.

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
    return HeadAblation(runs.clean, grid)


def single_gains(config: ModelConfig, n_units: int) -> Float[np.ndarray, "M L H"]:
    """One variant for each layer and unit, in that order: H / n_units neighbouring heads at gain 0."""
    units = np.repeat(np.eye(n_units, dtype=np.float32), config.n_heads // n_units, axis=1)
    layers = np.eye(config.n_layers, dtype=np.float32)
    ablated = layers[:, None, :, None] * units[None, :, None, :]
    return 1 - ablated.reshape(-1, config.n_layers, config.n_heads)
