"""The clean run: what a model says on its prompts with no head touched.

The effects that a sweep measures are held against the sweep's own clean value, of its own program to the
last bit. Here all metrics of all prompts come from one forward pass.
"""

import numpy as np
from jax import Array
from jaxtyping import Bool, Int

from headjax.data.prompts import PromptBatch
from headjax.engine.batches import Remember, Track, compute_anew, map_prompts, untracked
from headjax.engine.metrics import Metrics, next_token_metrics
from headjax.engine.prefill import prefill
from headjax.errors import InputError
from headjax.model import Transformer
from kernels import dispatch


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
