"""The clean run: what a model says on its prompts with no head touched.

The effects that a sweep measures are held against the sweep's own clean value, of its own program to the
last bit. Here all metrics of all prompts come from one forward pass.
"""

import jax
import numpy as np
from jax import Array
from jaxtyping import Bool, Int

from headjax.data.prompts import PromptBatch
from headjax.engine.batches import Remember, Track, compute_anew, map_prompts, prompt_chunks, untracked
from headjax.engine.metrics import Metrics, mean_with_error, next_token_metrics
from headjax.engine.prefill import prefill
from headjax.engine.visits import visit_layers
from headjax.errors import InputError
from headjax.kernels import dispatch
from headjax.model import Transformer
from headjax.parameters.layered import LayeredModel
from headjax.result import CleanRow
from headjax.stats import wilson


def clean_metrics(
    model: Transformer,
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
    metrics = map_prompts(_metrics, model, arrays, batch_size, track, "clean run", remember)
    bad = np.isnan(metrics.logprob)
    if bad.any():
        raise InputError(f"logits must be numbers; {prompts.prompts[int(bad.argmax())].name} gives NaN")
    return metrics


@dispatch.jit
def _metrics(
    model: Transformer,
    tokens: Int[Array, "B S"],
    mask: Bool[Array, "B S"],
    answers: Int[Array, " B"],
    distractors: Int[Array, " B"] | None = None,
) -> Metrics:
    residual = prefill(model, tokens, mask, keep="last").residual
    return next_token_metrics(model, residual[-1, :, -1], answers, distractors)


def streamed_clean_metrics(
    model: LayeredModel, prompts: PromptBatch, *, batch_size: int = 64, track: Track = untracked
) -> Metrics:
    """Metrics [B] of the clean run: a pass over the layers of its own."""
    chunks, last = prompt_chunks(len(prompts.tokens), batch_size), []
    runs = [(prompts.tokens[rows], prompts.mask[rows]) for rows in chunks]
    for _, block, clean in visit_layers(model, runs, track, "streamed clean run"):
        last = [run.after for run in clean]
        del block, clean
    parts = []
    for rows, x in zip(chunks, last, strict=True):
        distractors = None if prompts.distractors is None else prompts.distractors[rows]
        parts.append(jax.device_get(_last_metrics(model.outer, x, prompts.answers[rows], distractors)))
    return jax.tree.map(lambda *parts: np.concatenate(parts)[: len(prompts.tokens)], *parts)


_last_metrics = dispatch.jit(next_token_metrics)


def clean_row(model: str, relation: str, prompts: str, metrics: Metrics) -> CleanRow:
    """The row of these prompts' metrics, each [B]."""
    n = len(metrics.accuracy)
    accuracy = float(np.mean(metrics.accuracy))
    limits = wilson(accuracy, n).tolist()
    difference = (None, None) if metrics.logit_diff is None else mean_with_error(metrics.logit_diff)
    return CleanRow(
        *(model, relation, prompts, n, accuracy, *limits), *mean_with_error(metrics.logprob), *difference
    )
