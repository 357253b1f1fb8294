"""Dynamic relation scores: the relation score of what each head really writes at the end of a prompt.

Where the static score projects a head's weights, the dynamic one projects its output at the last position
(Elhelo & Geva 2024, "MAPS", section 4.1): ``z W_O U`` ranks the vocabulary, and the prompt is a hit of the
head if fewer than k logits are strictly greater than the target's (suppression: smaller). b_V is part of z;
b_O and the final norm are left out.

Two z are scored. *With context* it is the z of the prompt. *Without context* the head is made to attend
from the last position to the source alone, while all that comes before it in the model stays as it is.
Its z is then the source position's value vector, which the same forward pass has computed already.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int

from headjax.config import ModelConfig
from headjax.data.prompts import PromptBatch
from headjax.engine.batches import Remember, Track, check_prompts, compute_anew, map_prompts, untracked
from headjax.engine.hits import Stage, relation_hits, screening_stages
from headjax.engine.prefill import prefill
from headjax.errors import InputError, shown
from headjax.inputs import as_array
from headjax.model import Transformer
from kernels import dispatch

KINDS = (
    "dynamic_context",
    "dynamic_context_suppression",
    "dynamic_no_context",
    "dynamic_no_context_suppression",
)


class DynamicScores(NamedTuple):
    """Shares of prompts that are hits; one row for each relation and template.

    Attributes:
      groups: (relation, template) of every row, in the order of the prompts.
      n_prompts: [R], the prompts behind each row.
      scores: kind -> [R L H], for every kind of KINDS.
    """

    groups: tuple[tuple[str, str], ...]
    n_prompts: Int[np.ndarray, " R"]
    scores: dict[str, Float[np.ndarray, "R L H"]]


def dynamic_scores(
    model: Transformer,
    prompts: PromptBatch,
    top_k: Any,
    *,
    batch_size: int = 64,
    seed: int = 0,
    vocab_size: int | None = None,
    track: Track = untracked,
    remember: Remember = compute_anew,
) -> DynamicScores:
    """Dynamic scores of every head, all four kinds from one forward pass per batch of prompts.

    Args:
      prompts: the targets are their answers.
      top_k: [B], k of every prompt's relation.
      batch_size: prompts that are run at once.
      seed: of the tokens that hits are screened with; changes no result.
      vocab_size: the tokenizer's, as in `headjax.analyses.relation_scores`; None: all rows are tokens.

    Raises InputError for a prompt without a source and for head outputs that are not finite.
    """
    prompts = check_prompts(prompts, model.config, batch_size=batch_size)
    top_k = check_sources(prompts, top_k)
    stages = screening_stages(model.unembed_rows, prompts.answers, seed=seed, vocab_size=vocab_size)
    vocabularies = tuple((stage.rows, stage.largest) for stage in stages)
    slots = np.stack([np.asarray(stage.target) for stage in stages], axis=1)
    arrays = (prompts.tokens, prompts.mask, prompts.sources, slots, top_k)
    whole = (model, vocabularies)
    hits, finite = map_prompts(_prompt_hits, whole, arrays, batch_size, track, "dynamic scores", remember)
    return share_of_hits(hits, finite, prompts)


def check_sources(prompts: PromptBatch, top_k: Any) -> Int[np.ndarray, " B"]:
    """The k of every prompt. Raises InputError for a prompt without a source, and for k below 1."""
    top_k = np.asarray(as_array(top_k, "top_k"))
    if top_k.shape != prompts.answers.shape or top_k.dtype.kind not in "iu" or (top_k < 1).any():
        raise InputError(f"top_k must be one whole number of at least 1 a prompt; got {shown(top_k)}")
    if (prompts.sources < 0).any():
        name = prompts.prompts[int(np.argmax(prompts.sources < 0))].name
        raise InputError(f"a dynamic score needs prompts with a source; {name} has none")
    return top_k.astype(np.int32)


def share_of_hits(
    hits: Bool[np.ndarray, "B L H 4"], finite: Bool[np.ndarray, " B"], prompts: PromptBatch
) -> DynamicScores:
    """Scores from the prompts' hits. Raises InputError for a prompt whose numbers were not finite."""
    if not finite.all():
        name = prompts.prompts[int(np.argmin(finite))].name
        raise InputError(f"head outputs must be finite numbers; {name} gives NaN or infinity")

    groups = [(prompt.relation, prompt.template) for prompt in prompts.prompts]
    rows = tuple(dict.fromkeys(groups))
    row = np.array([rows.index(group) for group in groups])
    shares = np.stack([hits[row == r].mean(axis=0, dtype=np.float32) for r in range(len(rows))])
    return DynamicScores(rows, np.bincount(row), {kind: shares[:, :, :, i] for i, kind in enumerate(KINDS)})


@dispatch.jit
def _prompt_hits(
    model_and_vocabularies: tuple[Transformer, tuple[tuple[Array, Array], ...]],
    tokens: Int[Array, "B S"],
    mask: Bool[Array, "B S"],
    sources: Int[Array, " B"],
    slots: Int[Array, "B stages"],
    top_k: Int[Array, " B"],
) -> tuple[Bool[Array, "B L H 4"], Bool[Array, " B"]]:
    """Hits of the kinds in KINDS, and whether the numbers behind them were finite."""
    model, vocabularies = model_and_vocabularies
    config = model.config
    run = prefill(model, tokens, mask, keep="last")
    source_values = run.v[:, jnp.arange(len(tokens)), sources]
    stages = tuple(
        Stage(rows, jnp.tile(slots[:, i], 2), largest) for i, (rows, largest) in enumerate(vocabularies)
    )

    def layer(inputs: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        return layer_hits(config, *inputs, stages, top_k)

    hits, finite = jax.lax.map(layer, (run.z[:, :, 0], source_values, model.W_O))
    finite = finite.all(axis=0) & jnp.isfinite(run.residual[-1]).all(axis=(1, 2))
    return jnp.moveaxis(hits, 0, 1), finite


def layer_hits(
    config: ModelConfig,
    z: Float[Array, "B H K"],
    source_values: Float[Array, "B G K"],
    W_O: Float[Array, "H K D"],
    stages: tuple[Stage, ...],
    top_k: Int[Array, " B"],
) -> tuple[Bool[Array, "B H 4"], Bool[Array, " B"]]:
    """Hits of one layer's heads of the kinds in KINDS, and whether the numbers behind them were finite.

    z is that of the last position; the targets in `stages` are those of the prompts, twice.
    """
    H, B = config.n_heads, len(z)
    # Query head h reads key/value head h // (H / G).
    without_context = jnp.repeat(source_values, H // config.n_kv_heads, axis=1)
    # Both as pairs of the same heads, so that whatever depends on the weights alone is made once.
    both = jnp.concatenate([z, without_context])
    how = config.precision, config.implementation
    hits = relation_hits(jnp.swapaxes(both, 0, 1), W_O, stages, jnp.tile(top_k, 2), *how)
    hits = jnp.stack(hits, axis=-1).reshape(H, 2, B, 2).transpose(2, 0, 1, 3).reshape(B, H, 4)
    return hits, jnp.isfinite(both).reshape(2, B, -1).all(axis=(0, 2))
