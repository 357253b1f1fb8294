"""What a run can compute of one model: `ANALYSES`, a table of functions from a Subject to grids.

Each takes the Subject, a wrapper that shows progress and the memory of the run (see
headjax/engine/batches.py); what it is asked is in `subject.run`. Three stand apart: ablation curves start
from grids that are there and are no grids themselves, salient operations are words, and circuit discovery
gives circuits besides its grids. What patches paths is in path_analyses.py, what else is read off the weights
in weight_analyses.py.
"""

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from experiments.clean import prompts_of_relations
from experiments.path_analyses import path_patching
from experiments.subject import Subject, make_grid, mean_grid
from experiments.weight_analyses import copy_scores
from headjax.analyses.ablation_curves import RelationCurves
from headjax.analyses.ablation_curves import ablation_curves as run_curves
from headjax.analyses.attention_patterns import PATTERNS, attention_patterns, repeated_tokens
from headjax.analyses.dynamic_scores import dynamic_scores as score_prompts
from headjax.analyses.gradient_attribution import DIFFERENTIABLE
from headjax.analyses.gradient_attribution import gradient_attribution as differentiate
from headjax.analyses.head_ablation import head_ablation as ablate
from headjax.analyses.logit_attribution import logit_attribution as attribute
from headjax.analyses.relation_scores import relation_scores as score_weights
from headjax.analyses.streamed import dynamic_scores as score_streamed
from headjax.analyses.streamed import head_ablation as ablate_streamed
from headjax.analyses.streamed import logit_attribution as attribute_streamed
from headjax.engine.batches import Remember, Track
from headjax.engine.metrics import METRICS
from headjax.engine.replacement import find_replacement
from headjax.errors import InputError
from headjax.grid import SUPPRESSION, GridSet, HeadGrid

REPEATED = "repeated_tokens"  # where a grid names a relation: random tokens written twice


def relation_scores(subject: Subject, track: Track, remember: Remember) -> GridSet:
    """Static relation scores and suppression, read off the weights."""
    scores = score_weights(
        subject.weights(),
        subject.pairs,
        subject.rule,
        precision=subject.run.precision,
        implementation=subject.run.implementation,
        seed=subject.run.seed,
        vocab_size=subject.vocab_size,
        mesh=subject.mesh,
        track=lambda layers: track(layers, subject.config.n_layers, "relation scores"),
        remember=remember,
    )
    return GridSet(
        tuple(
            make_grid(subject, pairs.relation.id, kind, grid[r], len(pairs.words))
            for kind, grid in (("static", scores.plain), ("static" + SUPPRESSION, scores.suppression))
            for r, pairs in enumerate(subject.pairs)
        )
    )


def dynamic_scores(subject: Subject, track: Track, remember: Remember) -> GridSet:
    """Dynamic relation scores with and without context, plain and suppression, of every template."""
    batch = subject.dynamic_batch
    sweep = (
        partial(score_streamed, subject.layered())
        if subject.run.stream
        else partial(score_prompts, subject.model, remember=remember)
    )
    scores = sweep(
        batch,
        np.array([subject.rule.k(prompt.relation) for prompt in batch.prompts], np.int32),
        batch_size=subject.run.batch_size,
        seed=subject.run.seed,
        vocab_size=subject.vocab_size,
        track=track,
    )
    return GridSet(
        tuple(
            make_grid(subject, relation, kind, grid[r], int(scores.n_prompts[r]), template=template)
            for kind, grid in scores.scores.items()
            for r, (relation, template) in enumerate(scores.groups)
        )
    )


def logit_attribution(subject: Subject, track: Track, remember: Remember) -> GridSet:
    """Direct logit attribution of the answer and, where there are distractors, of the difference."""
    sweep = (
        partial(attribute_streamed, subject.layered())
        if subject.run.stream
        else partial(attribute, subject.model, remember=remember)
    )
    metrics = ("logit", "logit_diff") if subject.task_batch.distractors is not None else ("logit",)
    grids = []
    for metric in metrics:
        found = sweep(subject.task_batch, metric=metric, batch_size=subject.run.batch_size, track=track)
        grids += _by_relation(subject, "logit_attribution", found.heads, metric, found.logit)
    return GridSet(tuple(grids))


def head_ablation(subject: Subject, track: Track, remember: Remember) -> GridSet:
    """What the answer loses without each head: clean minus ablated, of every metric."""
    run = subject.run
    sweep = (
        partial(ablate_streamed, subject.layered())
        if run.stream
        else partial(ablate, subject.model, remember=remember)
    )
    result = sweep(
        subject.task_batch,
        ablation=run.ablation,
        positions=run.positions,
        mean_over=run.mean_over,
        kv_groups=run.kv_groups,
        batch_size=run.batch_size,
        variant_batch=run.variant_batch,
        seed=run.seed,
        track=track,
    )
    return GridSet(
        tuple(
            grid
            for metric in _metrics(subject, METRICS)
            for grid in _by_relation(
                subject,
                f"ablation_{metric}",
                np.moveaxis(result.effect(metric), 2, 0),
                metric,
                getattr(result.clean, metric),
            )
        )
    )


def gradient_attribution(subject: Subject, track: Track, remember: Remember) -> GridSet:
    """The first-order estimate of head ablation, of every metric that has a derivative."""
    run = subject.run
    replacement = find_replacement(
        subject.model,
        subject.task_batch,
        run.ablation,
        positions=run.positions,
        mean_over=run.mean_over,
        batch_size=run.batch_size,
        seed=run.seed,
    )
    grids = []
    for metric in _metrics(subject, tuple(DIFFERENTIABLE)):
        result = differentiate(
            subject.model,
            subject.task_batch,
            metric=metric,
            positions=run.positions,
            replacement=replacement,
            batch_size=run.batch_size,
            track=track,
            remember=remember,
        )
        grids += _by_relation(subject, f"gradient_{metric}", result.effects, metric, result.clean)
    return GridSet(tuple(grids))


def attention_scores(subject: Subject, track: Track, remember: Remember) -> GridSet:
    """Previous-token, duplicate-token and induction scores, on random tokens written twice and on prompts."""
    run = subject.run
    tokens = repeated_tokens(
        subject.config,
        seed=run.seed,
        bos=subject.bos,
        vocab_size=subject.vocab_size,
    )
    batch = subject.task_batch
    measured = {
        REPEATED: attention_patterns(
            subject.model, tokens, batch_size=run.batch_size, track=track, remember=remember
        ),
        "prompts": attention_patterns(
            subject.model, batch.tokens, batch.mask, batch_size=run.batch_size, track=track, remember=remember
        ),
    }
    return GridSet(
        tuple(
            make_grid(subject, on, f"attention_{pattern}", getattr(scores, pattern), scores.n_tokens[pattern])
            for on, scores in measured.items()
            for pattern in PATTERNS
        )
    )


def ablation_curves(
    subject: Subject, grids: GridSet, track: Track, remember: Remember
) -> tuple[RelationCurves, ...]:
    """What is left of every relation's accuracy as its heads are removed, ranked by grids made before."""
    run = subject.run
    ranking = grids.select(model=subject.display_name, kind=run.rank_by)
    if not len(ranking):
        kinds = ", ".join(grids.select(model=subject.display_name).values("kind")) or "none"
        raise InputError(
            f"ablation_curves rank heads by grids of an analysis that runs before them; rank_by is "
            f"{run.rank_by!r}, grids there are: {kinds}"
        )
    return run_curves(
        subject.model,
        subject.task_batch,
        rankings(ranking),
        ablation=run.ablation,
        mean_over=run.mean_over,
        max_heads=run.max_heads,
        n_random_draws=run.n_random_draws,
        batch_size=run.batch_size,
        variant_batch=run.variant_batch,
        seed=run.seed,
        track=track,
        remember=remember,
    )


def rankings(grids: GridSet) -> dict[str, np.ndarray]:
    """Relation -> what ranks its heads [L H], of the grids of one kind: their mean over templates; of several
    metrics the last ("logit_diff")."""
    by_relation = {relation: grids.select(relation=relation) for relation in grids.values("relation")}
    return {
        relation: np.mean([grid.scores for grid in own.select(metric=own.values("metric")[-1])], axis=0)
        for relation, own in by_relation.items()
    }


ANALYSES: dict[str, Callable[[Subject, Track, Remember], GridSet]] = {
    "relation_scores": relation_scores,
    "dynamic_scores": dynamic_scores,
    "logit_attribution": logit_attribution,
    "head_ablation": head_ablation,
    "gradient_attribution": gradient_attribution,
    "attention_patterns": attention_scores,
    "copy_score": copy_scores,
    "path_patching": path_patching,
}


def _by_relation(
    subject: Subject, kind: str, effects: np.ndarray, metric: str, clean: np.ndarray
) -> Iterator[HeadGrid]:
    """One grid a relation from values [B L H] of every task prompt, and the clean metric [B] beside them."""
    for relation, rows in prompts_of_relations(subject.task_batch).items():
        yield mean_grid(subject, relation, kind, effects[rows], metric, clean[rows])


def _metrics(subject: Subject, possible: tuple[str, ...]) -> tuple[str, ...]:
    """The metrics asked for, or all that the prompts allow."""
    has_distractors = subject.task_batch.distractors is not None
    allowed = tuple(metric for metric in possible if metric != "logit_diff" or has_distractors)
    if not subject.run.metrics:
        return allowed
    if "logit_diff" in subject.run.metrics and not has_distractors:
        raise InputError("metric 'logit_diff' needs prompts with distractors; these have none")
    return tuple(metric for metric in subject.run.metrics if metric in possible)
