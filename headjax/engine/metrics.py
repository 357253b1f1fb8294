"""How well a model knows the next token: log-probability, logit difference, accuracy, in one pass.

The vocabulary is walked in tiles and the rows in chunks, so that no more than TILE_LOGITS logits exist at a
time, however many variants and prompts there are. Every number of a row comes from the same products: a
token's logit compared with itself is equal. Where the model's config names a fused kernel, it does all this
on the chip.
"""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.sharding import PartitionSpec
from jaxtyping import Float, Int

from headjax.config import ModelConfig
from headjax.engine.hits import is_fused
from headjax.engine.mesh import MODEL_AXIS, WHOLE, vocabulary_parts
from headjax.kernels import dispatch, platform
from headjax.kernels.vocab_rank import vocab_rank
from headjax.model import Transformer, capped

METRICS = ("logprob", "logit_diff", "accuracy")

# Logits held at once. On CPU the tile stays in the cache between the product and its reductions (measured:
# at 288 rows the whole pass then costs what the product alone does); the others are not measured.
TILE_LOGITS = {"cpu": 2**19, "gpu": 2**26, "tpu": 2**24}
MIN_TILE = 1024  # tokens; narrower products are slow, so the rows are cut first
SPLIT = PartitionSpec(MODEL_AXIS)


class Metrics(NamedTuple):
    """Of one position's prediction, for any number of rows.

    Attributes:
      logprob: log-probability of the answer, in nats.
      logit_diff: the answer's logit minus the distractor's; None where there are no distractors.
      accuracy: 1 where no token's logit is greater than the answer's, else 0.
    """

    logprob: Float[Array | np.ndarray, "*rows"]
    logit_diff: Float[Array | np.ndarray, "*rows"] | None
    accuracy: Float[Array | np.ndarray, "*rows"]


def next_token_metrics(
    model: Transformer,
    x: Float[Array, "*rows B D"],
    answers: Int[Array | np.ndarray, " B"],
    distractors: Int[Array | np.ndarray, " B"] | None = None,
) -> Metrics:
    """Metrics [*rows B] of the residual before the final norm at the predicting position.

    A NaN among a row's logits makes its `logprob` NaN.
    """
    rows = model.ln_final(x).reshape(-1, x.shape[-1])
    asked = [jnp.asarray(answers)] + ([] if distractors is None else [jnp.asarray(distractors)])
    tokens = jnp.stack(
        [jnp.broadcast_to(ids[None], (len(rows) // len(ids), len(ids))).ravel() for ids in asked]
    )

    # The kernel knows no cap.
    if is_fused(model.config.implementation) and model.config.logit_cap is None:
        values = _fused(model, rows, tokens)
        return jax.tree.map(lambda value: value.reshape(x.shape[:-1]), values)

    dispatch.note("next_token_metrics", "xla", model.config.precision)
    n_parts = vocabulary_parts(model.config.vocab_size)
    walk = partial(_walk_vocabulary, config=model.config)
    if n_parts > 1:
        walk = jax.shard_map(
            walk,
            in_specs=(SPLIT, SPLIT, SPLIT, WHOLE, WHOLE),
            out_specs=SPLIT,
            axis_names={MODEL_AXIS},
            check_vma=False,
        )
    bias = model.b_U.astype(jnp.float32)
    parts = jnp.arange(n_parts, dtype=jnp.int32)
    own, top, total = walk(parts, model.unembed_rows, bias, rows, tokens.T)  # each [n_parts rows ..]
    greatest = top.max(axis=0)
    log_total = greatest + jnp.log(jnp.sum(total * jnp.exp(top - greatest[None]), axis=0))
    own = own.sum(axis=0)
    values = Metrics(
        logprob=own[:, 0] - log_total,
        logit_diff=None if distractors is None else own[:, 0] - own[:, 1],
        accuracy=(own[:, 0] >= greatest).astype(jnp.float32),
    )
    return jax.tree.map(lambda value: value.reshape(x.shape[:-1]), values)


def _fused(model: Transformer, rows: Float[Array, "N D"], tokens: Int[Array, "asked N"]) -> Metrics:
    """The same through the kernel `vocab_rank`."""
    config, U, b_U = model.config, model.unembed_rows, model.b_U.astype(jnp.float32)
    answers, *distractors = tokens
    rank = vocab_rank(
        *(rows[None], U, answers),
        bias=b_U,
        with_lse=True,
        precision=config.precision,
        implementation=config.implementation,
    )
    difference = None
    if distractors:
        direction = U[answers].astype(jnp.float32) - U[distractors[0]].astype(jnp.float32)
        difference = (
            jnp.sum(rows.astype(jnp.float32) * direction, axis=1) + b_U[answers] - b_U[distractors[0]]
        )
    return Metrics(
        logprob=(rank.logit - rank.lse)[0],
        logit_diff=difference,
        accuracy=(rank.above[0] == 0).astype(jnp.float32),
    )


def _walk_vocabulary(
    part: Int[Array, "1"],
    unembed: Float[Array, "V D"],
    bias: Float[Array, " V"],
    x: Float[Array, "N D"],
    tokens: Int[Array, "N asked"],
    *,
    config: ModelConfig,
) -> tuple[Float[Array, "1 N asked"], Float[Array, "1 N"], Float[Array, "1 N"]]:
    """Logits of the tokens asked for, the greatest logit and the sum of all exponentials over it.

    Of this device's part of the vocabulary alone, the `part`-th, where it is split: a token that lies
    elsewhere has a 0.
    """
    n_tokens = unembed.shape[0]
    limit = TILE_LOGITS[platform.target()]
    tile = min(n_tokens, max(MIN_TILE, limit // len(x)))
    tokens = tokens - part[0] * n_tokens

    def one_row(row: tuple[Array, Array]) -> tuple[Array, Array, Array]:
        return _one_row(unembed, bias, tile, config, *row)

    # Chunks of one size, filled up: so all rows go through the same product, and equal ones stay equal.
    n_rows = len(x)
    n_chunks = -(-n_rows // max(1, limit // tile))
    chunk = -(-n_rows // n_chunks)
    fill = ((0, n_chunks * chunk - n_rows), (0, 0))
    found = lax.map(one_row, (jnp.pad(x, fill), jnp.pad(tokens, fill)), batch_size=chunk)
    return jax.tree.map(lambda value: value[None, :n_rows], found)


def _one_row(
    unembed: Float[Array, "V D"],
    bias: Float[Array, " V"],
    tile: int,
    config: ModelConfig,
    x: Float[Array, " D"],
    tokens: Int[Array, " asked"],
) -> tuple[Float[Array, " asked"], Float[Array, ""], Float[Array, ""]]:
    n_tokens = unembed.shape[0]

    def add_tile(i: Int[Array, ""], state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        own, top, total = state
        first = i * tile
        start = jnp.minimum(first, n_tokens - tile)  # the last tile overlaps the one before
        logits = jnp.einsum(
            "d,td->t",
            x,
            lax.dynamic_slice_in_dim(unembed, start, tile),
            precision=config.precision,
            preferred_element_type=jnp.float32,
        ) + lax.dynamic_slice_in_dim(bias, start, tile)
        logits = capped(config, logits)
        logits = jnp.where(start + jnp.arange(tile, dtype=start.dtype) >= first, logits, -jnp.inf)
        new_top = jnp.maximum(top, logits.max())
        total = total * jnp.exp(top - new_top) + jnp.exp(logits - new_top).sum()
        here = (tokens >= first) & (tokens < jnp.minimum(first + tile, n_tokens))
        return jnp.where(here, logits[jnp.clip(tokens - start, 0, tile - 1)], own), new_top, total

    zero = jnp.zeros((), jnp.float32)
    blank = (jnp.zeros(tokens.shape, jnp.float32), jnp.full_like(zero, -jnp.inf), zero)
    return lax.fori_loop(0, -(-n_tokens // tile), add_tile, blank)


def logit_difference(
    model: Transformer,
    x: Float[Array, "*rows B D"],
    answers: Int[Array | np.ndarray, " B"],
    distractors: Int[Array | np.ndarray, " B"],
) -> Float[Array, "*rows B"]:
    """The answer's logit minus the distractor's of residuals before the final norm, of no other token's."""
    dispatch.note("logit_difference", "xla", model.config.precision)
    own, other = (
        (model.unembed_rows[ids].astype(jnp.float32), model.b_U[ids].astype(jnp.float32))
        for ids in (jnp.asarray(answers), jnp.asarray(distractors))
    )
    normed = model.ln_final(x).astype(jnp.float32)

    def product(u: Float[Array, "B D"], b: Float[Array, " B"]) -> Float[Array, "*rows B"]:
        logits = jnp.einsum("...bd,bd->...b", normed, u, precision=model.config.precision)
        return logits + jnp.expand_dims(b, tuple(range(x.ndim - 2)))

    if model.config.logit_cap is None:
        return product(own[0] - other[0], own[1] - other[1])
    return capped(model.config, product(*own)) - capped(model.config, product(*other))


def mean_and_stderr(
    values: Float[np.ndarray, "*rows B"],
) -> tuple[Float[np.ndarray, "*rows"], Float[np.ndarray, "*rows"]]:
    """Mean over the prompts and its standard error (NaN for a single prompt)."""
    n = values.shape[-1]
    spread = values.std(axis=-1, ddof=1) if n > 1 else np.full(values.shape[:-1], np.nan, values.dtype)
    return values.mean(axis=-1), spread / np.sqrt(n, dtype=values.dtype)


def mean_with_error(values: Float[np.ndarray, " B"]) -> tuple[float, float | None]:
    """Mean over the prompts and its standard error; None for a single prompt."""
    mean, error = (float(number[0]) for number in mean_and_stderr(np.asarray(values)[None]))
    return mean, None if math.isnan(error) else error
