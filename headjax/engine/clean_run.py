"""The clean run: what a model says on its prompts with no head touched.

The effects that a sweep measures are held against the sweep's own clean value, of its own program to the
last bit. Here all metrics of all prompts come from one forward pass.
"""

import numpy as np
from jax import Array
from jaxtyping import Bool, Int

from headjax.data.prompts import PromptBatch
from headjax.engine.batches import Remember, Track, compute_anew, untracked
from headjax.engine.layer_sweep import Ends, Sweep, run_sweep
from headjax.engine.metrics import Metrics, mean_with_error, next_token_metrics
from headjax.errors import InputError
from headjax.model import Transformer
from headjax.parameters.layered import LayeredModel
from headjax.result import CleanRow
from headjax.stats import wilson


def clean_metrics(
    model: Transformer | LayeredModel,
    prompts: PromptBatch,
    *,
    batch_size: int = 64,
    track: Track = untracked,
    remember: Remember = compute_anew,
) -> Metrics:
    """Log-probability, logit difference (where there are distractors) and accuracy [B] of the answers.

    Raises InputError for logits that are NaN.
    """
    arrays = (prompts.tokens, prompts.mask, prompts.answers)
    if prompts.distractors is not None:
        arrays += (prompts.distractors,)
    how = {"batch_size": batch_size, "track": track, "remember": remember}
    metrics = run_sweep(SWEEP, model, arrays, label="clean run", **how)
    bad = np.isnan(metrics.logprob)
    if bad.any():
        raise InputError(f"logits must be numbers; {prompts.prompts[int(bad.argmax())].name} gives NaN")
    return metrics


def _asked(
    _model: Transformer, _tokens: Int[Array, "B S"], _mask: Bool[Array, "B S"], *asked: Int[Array, " B"]
) -> tuple[Int[Array, " B"], ...]:
    """The answers and, where there are any, the distractors."""
    return asked


def _finish(model: Transformer, asked: tuple[Int[Array, " B"], ...], _kept: None, ends: Ends) -> Metrics:
    return next_token_metrics(model, ends.last, *asked)


SWEEP = Sweep("clean_run", _asked, lambda *_: None, _finish)


def clean_row(model: str, relation: str, prompts: str, metrics: Metrics) -> CleanRow:
    """The row of these prompts' metrics, each [B]."""
    n = len(metrics.accuracy)
    accuracy = float(np.mean(metrics.accuracy))
    limits = wilson(accuracy, n).tolist()
    difference = (None, None) if metrics.logit_diff is None else mean_with_error(metrics.logit_diff)
    return CleanRow(
        *(model, relation, prompts, n, accuracy, *limits), *mean_with_error(metrics.logprob), *difference
    )
