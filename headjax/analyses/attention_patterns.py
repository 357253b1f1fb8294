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

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int, UInt8

from headjax import costs
from headjax.analyses.base import Asked, Coordinates, rows_by_relation, sweep_options
from headjax.axes import Head, TokenMask, Tokens
from headjax.config import ModelConfig
from headjax.costs import Cost, Machine
from headjax.data.prompt_sets import MAX_PROMPTS
from headjax.data.prompts import PromptBatch, token_text
from headjax.engine.batches import Remember, Track, Work, compute_anew, untracked
from headjax.engine.layer_sweep import Ends, LayerRun, Sweep, run_sweep
from headjax.errors import InputError
from headjax.grid import Coordinate, GridSet
from headjax.inputs import check_count, check_ids, check_options, check_tokens
from headjax.model import Block, Transformer
from headjax.options import option
from headjax.parameters.layered import LayeredModel
from headjax.report.drawing import draw_maps, figure_path
from headjax.report.options import Report
from headjax.report.parts import Attention, Part, Pattern
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


# --- patterns to look at --------------------------------------------------------------------------------

MOST_TOKENS = 64  # of a prompt whose patterns are kept: more tokens nobody reads along an axis
MOST_BYTES = 2**20  # of all that are kept of a model


class KeptPattern(NamedTuple):
    """The attention of some heads over one prompt.

    Attributes:
      text: of the prompt; tokens: as text; source: the place of the source's last one, -1 without a source.
      heads: labels; attention: [heads, S (S + 1) / 2], each row's weights up to itself, in steps of 1/255.
    """

    model: str
    relation: str
    text: str
    tokens: tuple[str, ...]
    source: int
    answer: str
    distractor: str
    heads: tuple[str, ...]
    attention: UInt8[np.ndarray, "heads triangle"]


def _in_bytes(block: Block, ran: LayerRun, _asked: None, _shared: None) -> UInt8[Array, "B H S S"]:
    pattern = block.attn.pattern(ran.q, ran.k, ran.valid)
    return jnp.round(255 * pattern.astype(jnp.float32)).astype(jnp.uint8)


KEEP = Sweep(
    "kept_patterns",
    begin=lambda _model, tokens, mask: None,
    layer=_in_bytes,
    finish=lambda _model, asked, kept, ends: jnp.moveaxis(kept, 0, 1),
)


def kept_prompts(batch: PromptBatch, n: int) -> Int[np.ndarray, " rows"]:
    """Rows of n short prompts: the first of every task, then the second, in the order of the batch."""
    short = batch.mask.sum(axis=1) <= MOST_TOKENS
    turns = [rows[short[rows]] for rows in rows_by_relation(batch).values()]
    ordered = [int(rows[i]) for i in range(n) for rows in turns if i < len(rows)]
    return np.array(sorted(ordered[:n]), int)


def _trimmed(batch: PromptBatch, rows: Int[np.ndarray, " rows"]) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and mask of these prompts, without the padding that all of them have."""
    S = int(batch.mask[rows].sum(axis=1).max())
    return batch.tokens[rows, -S:], batch.mask[rows, -S:]


def keep_patterns(
    study: Study, batch: PromptBatch, n: int, scores: PatternScores, how: Mapping[str, Any]
) -> tuple[KeptPattern, ...]:
    """Patterns of n prompts; of all heads or, where these are too many, of those with the highest scores."""
    rows = kept_prompts(batch, n)
    if not len(rows):
        return ()
    tokens, mask = _trimmed(batch, rows)
    S = tokens.shape[1]
    patterns = run_sweep(KEEP, study.sweep_model(), (tokens, mask), label="patterns", **how)
    best = np.max([np.nan_to_num(one, nan=-1) for one in scores[: len(PATTERNS)]], axis=0)
    kept = []
    for row, pattern, own, valid in zip(rows, patterns, tokens, mask, strict=True):
        length = int(valid.sum())
        lower = np.tril_indices(length)
        fitting = MOST_BYTES // (len(rows) * len(lower[0]))
        heads = sorted(np.argsort(-best, axis=None, kind="stable")[:fitting].tolist())
        triangles = pattern.reshape(-1, S, S)[heads][:, -length:, -length:][:, *lower]
        prompt, source = batch.prompts[row], int(batch.sources[row])
        kept.append(
            KeptPattern(
                study.display_name,
                prompt.relation,
                prompt.text,
                tuple(token_text(study.tokenizer, int(token)) for token in own[valid]),
                source - (batch.tokens.shape[1] - length) if source >= 0 else -1,
                prompt.answer,
                prompt.distractor or "",
                tuple(str(Head(*divmod(head, best.shape[1]))) for head in heads),
                triangles,
            )
        )
    return tuple(kept)


REPEATED = "repeated_tokens"  # where a grid names a relation: random tokens written twice


@dataclass(frozen=True, kw_only=True)
class AttentionPatterns(Asked):
    """Previous-token, duplicate-token and induction scores, on random tokens written twice and on prompts.

    Attributes:
      n_shown: of how many prompts the patterns themselves are kept, to be looked at.
    """

    kind = "attention_patterns"
    streams = True
    n_shown: int = option(4, least=0, most=64)

    def reads(self, data: Data) -> frozenset[str]:
        return super().reads(data) - {"report.heat_maps"}

    def clean_sets(self, study: Study) -> Sequence[tuple[str, PromptBatch]]:
        return ()  # attention, not an effect on answers

    def check(self, study: Study, before: Coordinates) -> set[Coordinate]:
        self._repeated(study)
        return {Coordinate("attention", on, pattern) for pattern in PATTERNS for on in (REPEATED, "prompts")}

    def cost(self, study: Study, machine: Machine) -> Cost:
        batch, repeated = study.task_batch(self.prompts), self._repeated(study)
        cost = costs.mapped(study, machine, SWEEP, repeated, np.ones(repeated.shape, bool))
        cost += costs.mapped(study, machine, SWEEP, batch.tokens, batch.mask)
        rows = kept_prompts(batch, self.n_shown)
        return cost + costs.mapped(study, machine, KEEP, *_trimmed(batch, rows)) if len(rows) else cost

    def _repeated(self, study: Study) -> Int[np.ndarray, "B S"]:
        how = {"bos": study.bos, "vocab_size": study.vocab_size}
        return repeated_tokens(study.config, seed=study.seed, **how)

    def run(self, study: Study, work: Work) -> Result:
        batch = study.task_batch(self.prompts)
        how = sweep_options(study, work)
        measured = {
            REPEATED: attention_patterns(study.sweep_model(), self._repeated(study), **how),
            "prompts": attention_patterns(study.sweep_model(), batch.tokens, batch.mask, **how),
        }
        grids = (
            study.grid(on, "attention", getattr(scores, pattern), scores.n_tokens[pattern], part=pattern)
            for on, scores in measured.items()
            for pattern in PATTERNS
        )
        kept = keep_patterns(study, batch, self.n_shown, measured["prompts"], how)
        return Result(GridSet(tuple(grids)), {"kept_patterns": kept} if kept else {})

    def show(self, name: str, found: Result, report: Report) -> list[Part]:
        """Patterns of the prompts that were kept."""
        kept = found.tables.get(self.stem(name, "kept_patterns"), ())
        patterns = tuple(
            Pattern(*row[:-1], base64.b64encode(row.attention.tobytes()).decode()) for row in kept
        )
        note = (
            "Each row is a token that attends, each column one that is attended to. Marked are the source "
            "and the last row, after which the answer comes."
        )
        return [Attention("Attention patterns", patterns, note)] if patterns else []

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
