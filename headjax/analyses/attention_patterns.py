"""Where heads look: previous-token, duplicate-token and induction scores of every head.

A score is the attention that a token pays to a certain earlier token, averaged over the tokens that have
one (Olsson et al. 2022, "In-context Learning and Induction Heads"; as TransformerLens' head detector
marks the patterns):

    previous    to the token just before it
    duplicate   to the earlier occurrences of the same token
    induction   to the tokens that came right after the earlier occurrences

On random tokens written twice an induction score is what Olsson et al. call prefix matching. All attended
tokens lie strictly before the attending one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int

from headjax import costs
from headjax.analyses.base import Asked, Coordinates
from headjax.axes import TokenMask, Tokens
from headjax.config import ModelConfig
from headjax.costs import Cost, Machine
from headjax.data.prompt_sets import MAX_PROMPTS
from headjax.data.prompts import PromptBatch
from headjax.engine.batches import Remember, Track, Work, compute_anew, untracked
from headjax.engine.layer_sweep import Ends, LayerRun, Sweep, run_sweep
from headjax.errors import InputError
from headjax.grid import Coordinate, GridSet
from headjax.inputs import check_count, check_ids, check_options, check_tokens
from headjax.model import Block, Transformer
from headjax.parameters.layered import LayeredModel
from headjax.report.drawing import draw_maps, figure_path
from headjax.report.options import Report
from headjax.result import Result
from headjax.study import Data, Study

PATTERNS = ("previous", "duplicate", "induction")


class PatternScores(NamedTuple):
    """Scores between 0 and 1; NaN where no token has what the score asks for.

    Attributes:
      previous, duplicate, induction: [L H].
      n_tokens: score name -> number of tokens it is a mean of.
    """

    previous: Float[np.ndarray, "L H"]
    duplicate: Float[np.ndarray, "L H"]
    induction: Float[np.ndarray, "L H"]
    n_tokens: dict[str, int]


def repeated_tokens(
    config: ModelConfig,
    *,
    n_prompts: int = 32,
    length: int | None = None,
    seed: int = 0,
    bos: int | None = None,
    vocab_size: int | None = None,
) -> Int[np.ndarray, "B S"]:
    """Random tokens, then the same again: [B 2 * length], and `bos` in front if it is given.

    Args:
      n_prompts: B, at most MAX_PROMPTS.
      length: tokens that are written twice; None takes 50, or what the model's positions have room for.
      bos: the token that the tokenizer puts before a text, see `prompts.beginning_token`.
      vocab_size: tokens are drawn below it; None takes the model's. Give the tokenizer's size where the
        model has rows that no token uses.

    Raises InputError when this is longer than the model's positions, or for tokens the model has no row for.
    """
    check_count("n_prompts", n_prompts, MAX_PROMPTS)
    vocab_size = config.vocab_size if vocab_size is None else vocab_size
    if not 1 <= vocab_size <= config.vocab_size:
        raise InputError(f"vocab_size must be 1 to {config.vocab_size}, the model's; got {vocab_size}")
    if bos is not None:
        check_ids(np.array([bos]), "bos", config.vocab_size)
    room = (config.max_positions - (bos is not None)) // 2
    length = min(50, room) if length is None else length
    if not 1 <= length <= room:
        raise InputError(f"repeated tokens must be 1 to {room}, to fit the model's positions; got {length}")
    drawn = np.random.default_rng(seed).integers(0, vocab_size, (n_prompts, length))
    first = np.full((n_prompts, 0 if bos is None else 1), bos or 0)
    return np.concatenate([first, drawn, drawn], axis=1).astype(np.int32)


def attention_patterns(
    model: Transformer | LayeredModel,
    tokens: Any,
    mask: Any = None,
    *,
    batch_size: int = 16,
    track: Track = untracked,
    remember: Remember = compute_anew,
) -> PatternScores:
    """Scores on any tokens [B S]; False in `mask` [B S] is padding, which neither attends nor is attended to.

    Raises InputError as `check_tokens` does, and for scores that are not finite.
    """
    check_options(batch_size=batch_size)
    tokens, mask = check_tokens(tokens, mask, model.config)
    tokens = np.asarray(tokens)
    mask = np.ones(tokens.shape, bool) if mask is None else np.asarray(mask)
    how = {"batch_size": batch_size, "track": track, "remember": remember}
    attention, n_tokens = run_sweep(SWEEP, model, (tokens, mask), label="attention patterns", **how)
    if not np.isfinite(attention).all():
        prompt = int(np.argmin(np.isfinite(attention).all(axis=(1, 2, 3))))
        raise InputError(f"attention must be finite numbers; prompt {prompt} gives NaN or infinity")
    n_tokens = n_tokens.sum(axis=0)
    total = attention.sum(axis=0, dtype=np.float64)
    scores = np.full(total.shape, np.nan, np.float32)
    scores[n_tokens > 0] = total[n_tokens > 0] / n_tokens[n_tokens > 0, None, None]
    return PatternScores(*scores, n_tokens=dict(zip(PATTERNS, n_tokens.tolist(), strict=True)))


def _targets(_model: Transformer, tokens: Tokens, mask: TokenMask) -> Bool[Array, "B 3 S S"]:
    """Which earlier tokens [.. t] each token [.. s] should attend to, for every score of PATTERNS."""
    tokens, valid, S = jnp.asarray(tokens), jnp.asarray(mask), tokens.shape[1]
    earlier = jnp.tril(jnp.ones((S, S), bool), k=-1)[None] & valid[:, :, None] & valid[:, None, :]
    previous = jnp.eye(S, k=-1, dtype=bool)[None] & earlier
    duplicate = (tokens[:, :, None] == tokens[:, None, :]) & earlier
    after_duplicate = jnp.pad(duplicate[:, :, :-1], ((0, 0), (0, 0), (1, 0))) & earlier
    return jnp.stack([previous, duplicate, after_duplicate], axis=1)


def _paid(
    block: Block, ran: LayerRun, targets: Bool[Array, "B 3 S S"], _shared: None
) -> Float[Array, "B 3 H"]:
    """Attention paid to the targets of each score, summed over tokens."""
    pattern = block.attn.pattern(ran.q, ran.k, ran.valid)
    return jnp.einsum("bhst,bpst->bph", pattern, targets.astype(pattern.dtype), precision="highest")


def _finish(
    _model: Transformer, targets: Bool[Array, "B 3 S S"], paid: Float[Array, "L B 3 H"], _ends: Ends
) -> tuple[Float[Array, "B 3 L H"], Int[Array, "B 3"]]:
    """With how many tokens have targets."""
    return jnp.moveaxis(paid, 0, 2), targets.any(axis=-1).sum(axis=-1)


SWEEP = Sweep("attention_patterns", _targets, _paid, _finish)


REPEATED = "repeated_tokens"  # where a grid names a relation: random tokens written twice


@dataclass(frozen=True, kw_only=True)
class AttentionPatterns(Asked):
    """Previous-token, duplicate-token and induction scores, on random tokens written twice and on prompts."""

    kind = "attention_patterns"
    streams = True

    def reads(self, data: Data) -> frozenset[str]:
        return super().reads(data) - {"report.heat_maps"} | {"compute.stream"}

    def clean_sets(self, study: Study) -> Sequence[tuple[str, PromptBatch]]:
        return ()  # attention, not an effect on answers

    def check(self, study: Study, before: Coordinates) -> set[Coordinate]:
        self._repeated(study)
        return {Coordinate("attention", on, pattern) for pattern in PATTERNS for on in (REPEATED, "prompts")}

    def cost(self, study: Study, machine: Machine) -> Cost:
        repeated, own = (
            costs.attention_patterns(
                study.config, costs.chunked(study, tokens, machine.copies), costs.itemsize(study)
            )
            for tokens in (self._repeated(study), study.task_batch(self.prompts).tokens)
        )
        return repeated + own

    def _repeated(self, study: Study) -> Int[np.ndarray, "B S"]:
        how = {"bos": study.bos, "vocab_size": study.vocab_size}
        return repeated_tokens(study.config, seed=study.seed, **how)

    def run(self, study: Study, work: Work) -> Result:
        batch = study.task_batch(self.prompts)
        how = {"batch_size": study.compute.batch_size, "track": work.track, "remember": work.remember}
        measured = {
            REPEATED: attention_patterns(study.sweep_model(), self._repeated(study), **how),
            "prompts": attention_patterns(study.sweep_model(), batch.tokens, batch.mask, **how),
        }
        grids = (
            study.grid(on, "attention", getattr(scores, pattern), scores.n_tokens[pattern], part=pattern)
            for on, scores in measured.items()
            for pattern in PATTERNS
        )
        return Result(GridSet(tuple(grids)))

    def draw(self, name: str, found: Result, report: Report, directory: Path) -> list[Path]:
        """The three scores side by side, for each kind of text."""
        files, grids = [], found.grids.select(analysis=name)
        for model in grids.values("model"):
            for on in grids.select(model=model).values("relation"):
                own = grids.select(model=model, relation=on)
                chosen = [grid for grid in own if not np.isnan(grid.scores).all()]
                path = figure_path(directory, self.stem(name, "attention"), chosen[:1])
                files += draw_maps(chosen, path, report)
        return files
