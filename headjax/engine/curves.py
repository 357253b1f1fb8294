"""Ablation curves: a relation's heads removed one after another, best first, at the last position.

Beside the curve of the relation itself stand two controls (Elhelo & Geva 2024, "MAPS", section 4.2): as many
random other heads removed from the same prompts, and the same heads removed from other relations' prompts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import jax
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from headjax.axes import Head, by_score
from headjax.config import ModelConfig
from headjax.data.prompts import PromptBatch
from headjax.engine.batches import Remember, Track, check_prompts, compute_anew, untracked
from headjax.engine.replacement import find_replacement
from headjax.engine.variants import run_variants
from headjax.errors import InputError
from headjax.model import Transformer
from headjax.parameters.layered import LayeredModel

# Models with fewer heads than the first number: at most the second are removed; larger ones: MOST_HEADS.
HEAD_CAPS = ((300, 30), (500, 50), (1000, 100), (1500, 150))
MOST_HEADS = 250


class Curve(NamedTuple):
    """What is left of the prompts' metrics after 0, 1, ... n heads are removed; 0: the clean run."""

    accuracy: Float[np.ndarray, "m B"]
    logprob: Float[np.ndarray, "m B"]


class RelationCurves(NamedTuple):
    """The curves of one relation.

    Attributes:
      heads: the relation's heads, in the order in which they are removed.
      own: without them; draws: without random other heads, as many unless the model has too few.
      controls: relation -> its prompts without `heads`.
      not_controls: relation -> why it cannot be one (`control_faults`).
    """

    relation: str
    heads: tuple[Head, ...]
    own: Curve
    draws: tuple[Curve, ...]
    controls: dict[str, Curve]
    not_controls: dict[str, str]


def ablation_curves(
    model: Transformer | LayeredModel,
    prompts: PromptBatch,
    rankings: Mapping[str, Float[Array | np.ndarray, "L H"]],
    *,
    ablation: str = "zero",
    mean_over: str = "prompts",
    max_heads: int | None = None,
    n_random_draws: int = 5,
    n_controls: int = 5,
    batch_size: int = 64,
    variant_batch: int | None = None,
    seed: int = 0,
    track: Track = untracked,
    remember: Remember = compute_anew,
) -> tuple[RelationCurves, ...]:
    """Curves of every relation that the prompts belong to, in the order of the prompts.

    Args:
      rankings: relation -> any grid of scores. Heads are removed from the highest score down, those whose
        score is zero never.
      ablation, mean_over: what replaces a head's output; see `find_replacement`.
      max_heads: how many heads are removed at most; None: by the model's number of heads (HEAD_CAPS).
      n_random_draws, n_controls: how many of either control; see `choose_controls`.
      seed: of the random draws and of the prompts resampled from.

    Raises InputError for a relation without a ranking or with one of other heads than the model's, and as
    `check_prompts`, `find_replacement` and `run_variants` do.
    """
    prompts = check_prompts(
        prompts, model.config, mean_over=mean_over, batch_size=batch_size, variant_batch=variant_batch
    )
    relations = np.array([prompt.relation for prompt in prompts.prompts])
    L, H = model.config.n_layers, model.config.n_heads
    rows = {name: np.flatnonzero(relations == name) for name in dict.fromkeys(relations.tolist())}
    for relation in rows:
        if relation not in rankings:
            raise InputError(f"ablation curves need a grid that ranks heads; {relation!r} has none")
        if np.shape(rankings[relation]) != (L, H):
            found = f"{relation!r} has {list(np.shape(rankings[relation]))}"
            raise InputError(f"a grid that ranks heads must be [L H], here {[L, H]}; {found}")
    heads = {relation: rank_heads(rankings[relation], max_heads) for relation in rows}
    rng = np.random.default_rng(seed)
    draws = {relation: draw_others(rng, heads[relation], model.config, n_random_draws) for relation in rows}
    instead = find_replacement(
        *(model, prompts, ablation),
        positions="last",
        mean_over=mean_over,
        batch_size=batch_size,
        seed=seed,
        track=track,
    )
    # All relations run in chunks of one size, and as many variants at once, so that they share one compiled
    # program.
    chunk = min(batch_size, max(map(len, rows.values())))
    longest = max(len(heads[relation]) * (1 + len(draws[relation])) for relation in rows)

    def run(relation: str, removals: Sequence[tuple[Head, ...]]) -> list[Curve]:
        """A curve over the relation's prompts for every sequence of heads."""
        own = rows[relation]
        filled = own[np.minimum(np.arange(-(-len(own) // chunk) * chunk), len(own) - 1)]
        runs = run_variants(
            model,
            take_prompts(prompts, filled),
            np.concatenate([cumulative_gains(model.config, removed) for removed in removals]),
            lambda at: instead(filled[at]),
            positions="last",
            batch_size=chunk,
            variant_batch=variant_batch,
            filled_to=1 + longest,
            track=track,
            remember=remember,
            label=f"ablation curves ({relation})",
        )
        clean, edited = jax.tree.map(lambda values: values[..., : len(own)], runs)
        ends = np.cumsum([len(removed) for removed in removals])
        return [
            Curve(
                *(
                    np.concatenate(
                        [getattr(clean, field)[None], getattr(edited, field)[end - len(removed) : end]]
                    )
                    for field in Curve._fields
                )
            )
            for removed, end in zip(removals, ends, strict=True)
        ]

    curves = {relation: run(relation, (heads[relation], *draws[relation])) for relation in rows}
    accuracy = {relation: float(curves[relation][0].accuracy[0].mean()) for relation in rows}
    chosen = {relation: choose_controls(relation, heads, accuracy, n_controls) for relation in rows}
    controls: dict[str, dict[str, Curve]] = {relation: {} for relation in rows}
    for control in rows:
        bases = [relation for relation in rows if control in chosen[relation]]
        if bases:
            for relation, curve in zip(bases, run(control, [heads[base] for base in bases]), strict=True):
                controls[relation][control] = curve
    return tuple(
        RelationCurves(
            relation,
            heads[relation],
            own,
            tuple(random),
            {control: controls[relation][control] for control in chosen[relation]},
            control_faults(relation, heads, accuracy),
        )
        for relation, (own, *random) in curves.items()
    )


def rank_heads(scores: Float[Array | np.ndarray, "L H"], max_heads: int | None = None) -> tuple[Head, ...]:
    """Heads by falling score, none whose score is zero or NaN; ties by layer, then head."""
    scores = np.asarray(scores)
    if max_heads is None:
        max_heads = next((cap for n_heads, cap in HEAD_CAPS if scores.size < n_heads), MOST_HEADS)
    return tuple(head for head in by_score(scores) if np.nan_to_num(scores[head]) != 0)[:max_heads]


def draw_others(
    rng: np.random.Generator, heads: Sequence[Head], config: ModelConfig, n_draws: int
) -> list[tuple[Head, ...]]:
    """Draws of as many heads that are not among these, in random order; fewer where there are not as many."""
    all_heads = (Head(*divmod(head, config.n_heads)) for head in range(config.n_layers * config.n_heads))
    others = [head for head in all_heads if head not in heads]
    n = min(len(heads), len(others))
    return [tuple(others[i] for i in rng.permutation(len(others))[:n]) for _ in range(n_draws)]


def choose_controls(
    relation: str,
    heads: Mapping[str, tuple[Head, ...]],
    accuracy: Mapping[str, float],
    n_controls: int,
) -> tuple[str, ...]:
    """Other relations to compare with, those of the nearest clean accuracy first (`control_faults`)."""
    faults = control_faults(relation, heads, accuracy)
    fitting = [other for other in heads if other != relation and other not in faults]
    return tuple(sorted(fitting, key=lambda other: abs(accuracy[other] - accuracy[relation]))[:n_controls])


def control_faults(
    relation: str,
    heads: Mapping[str, tuple[Head, ...]],
    accuracy: Mapping[str, float],
    max_overlap: float = 0.15,
    max_difference: float = 0.2,
) -> dict[str, str]:
    """Which other relations cannot be controls of this one, and why.

    Less than `max_overlap` of the relation's heads may be among the control's own, and the clean accuracies
    may differ by `max_difference` at most.
    """
    own, faults = set(heads[relation]), {}
    for other in heads:
        n_shared, difference = len(own & set(heads[other])), abs(accuracy[other] - accuracy[relation])
        if other == relation:
            continue
        if n_shared >= max_overlap * max(1, len(own)):
            faults[other] = f"shares {n_shared} of {len(own)} heads"
        elif difference > max_difference:
            faults[other] = f"clean accuracy differs by {difference:.2f}"
    return faults


def cumulative_gains(config: ModelConfig, heads: Sequence[Head]) -> Float[np.ndarray, "M L H"]:
    """A variant for each head: it and all heads before it at gain 0."""
    gain = np.ones((len(heads), config.n_layers, config.n_heads), np.float32)
    for n, (layer, head) in enumerate(heads):
        gain[n:, layer, head] = 0
    return gain


def take_prompts(prompts: PromptBatch, rows: Int[np.ndarray, " rows"]) -> PromptBatch:
    """The prompts at these rows."""
    arrays = ("tokens", "mask", "sources", "answers", "distractors", "corrupted")
    taken = {name: getattr(prompts, name) for name in arrays}
    taken = {name: None if array is None else array[rows] for name, array in taken.items()}
    return replace(prompts, **taken, prompts=tuple(prompts.prompts[row] for row in rows))
