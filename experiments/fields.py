"""On which analyses each field of a run has an effect: `FIELDS`, and what is said of fields without one.

A field that was given on the command line and changes nothing of what is asked is refused; one that a config
file sets as a default is named in one line.
"""

import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from experiments.config import ANALYSES, RunConfig
from headjax.analyses.relation_scores import COPYING
from headjax.circuits.published import CIRCUITS
from headjax.errors import InputError
from headjax.zoo import find_entry

GENERATED = ("ioi", "colored_objects")  # prompts that are made without any relation


class Effect(NamedTuple):
    """Analyses that a field has an effect on, and what else must be so: a test, and the same in words."""

    analyses: frozenset[str]
    holds: Callable[[RunConfig], bool] = lambda config: True
    where: str = ""


def _on(*analyses: str) -> frozenset[str]:
    return frozenset(analyses)


def _asks_relations(config: RunConfig) -> bool:
    """Whether task prompts are made of relations: they are not generated, nor read from files."""
    return not config.prompt_sets or any(
        name not in GENERATED and not Path(name).is_file() for name in config.prompt_sets
    )


def _draws_prompts(config: RunConfig) -> bool:
    return config.n_prompts is not None or any(not Path(name).is_file() for name in config.prompt_sets)


def _has_marks(config: RunConfig) -> bool:
    """Whether there are heads that scores are held against: given ones, or a published circuit's."""
    entries = {find_entry(name) for name in config.models}
    published = {find_entry(circuit.model) for circuit in CIRCUITS.values()}
    return bool(config.circuits) or bool(entries & published) or "circuit_discovery" in config.analyses


EVERY = _on(*ANALYSES)
STATIC, DYNAMIC = _on("relation_scores"), _on("dynamic_scores")
ABLATED = _on("head_ablation", "gradient_attribution", "ablation_curves")
PATHS = _on("path_patching", "circuit_discovery")
ASKED = ABLATED | PATHS | _on("logit_attribution", "attention_patterns")  # whatever is asked for an answer
FORWARD = ASKED | DYNAMIC
MAPPED = STATIC | ABLATED | PATHS | _on("logit_attribution")  # what is drawn, a panel a relation
GRIDS = EVERY - _on("ablation_curves", "salient_operations", "universality")

_always = (Effect(EVERY),)
_relations = (
    Effect(STATIC | DYNAMIC),
    Effect(ASKED, _asks_relations, "prompts are those of relations"),
)
_planned = (Effect(_on(), where="it is planned with --dry_run"),)

# Every field of RunConfig; its effects, of which one is enough.
FIELDS: dict[str, tuple[Effect, ...]] = {
    **dict.fromkeys(("model", "ignore_fields", "analyses", "out", "checkpoint_dir"), _always),
    **dict.fromkeys(("distributed", "compare"), _always),
    **dict.fromkeys(("relations", "relations_dir", "min_pairs"), _relations),
    "top_k": (Effect(STATIC | DYNAMIC),),
    "top_k_copying": (
        Effect(
            STATIC | DYNAMIC,
            lambda config: not config.relations or not set(COPYING).isdisjoint(config.relations),
            f"relations are {' or '.join(COPYING)}",
        ),
    ),
    "first_mlp": (Effect(STATIC | _on("salient_operations")),),
    "threshold": (Effect(STATIC | DYNAMIC),),
    "count_suppression": (Effect(STATIC),),
    "dtype": (Effect(FORWARD),),
    "precision": (Effect(EVERY - _on("universality")),),
    "implementation": (Effect(FORWARD | STATIC | _on("copy_score")),),
    "batch_size": (Effect(FORWARD),),
    "seed": (
        Effect(PATHS | _on("ablation_curves", "attention_patterns")),
        Effect(FORWARD, _draws_prompts, "prompts are drawn (n_prompts)"),
        Effect(ABLATED, lambda config: config.ablation == "resample", "ablation is 'resample'"),
        Effect(GRIDS, _has_marks, "scores are held against circuits"),
        Effect(EVERY, lambda config: "planted" in config.models, "the model is 'planted'"),
    ),
    "templates": (Effect(DYNAMIC), Effect(ASKED, _asks_relations, "prompts are those of relations")),
    "prompts": (Effect(ASKED),),
    "n_prompts": (Effect(FORWARD),),
    "multi_token": (Effect(DYNAMIC),),
    "bos": (Effect(FORWARD),),
    "ablation": (Effect(ABLATED),),
    "mean_over": (Effect(ABLATED, lambda config: config.ablation == "mean", "ablation is 'mean'"),),
    "positions": (
        Effect(_on("head_ablation", "gradient_attribution")),
        # Paths to the logits end at the last position, and no head moves anything there.
        Effect(_on("path_patching"), lambda config: bool(config.receivers), "there are receivers"),
        Effect(_on("circuit_discovery"), lambda config: config.n_stages > 1, "n_stages is above 1"),
    ),
    "kv_groups": (Effect(_on("head_ablation")),),
    "metrics": (Effect(_on("head_ablation", "gradient_attribution")),),
    **dict.fromkeys(("rank_by", "max_heads", "n_random_draws"), (Effect(_on("ablation_curves")),)),
    "variant_batch": (Effect(PATHS | _on("head_ablation", "ablation_curves")),),
    "stream": (Effect(_on("dynamic_scores", "logit_attribution", "head_ablation")),),
    **dict.fromkeys(("salient_heads", "n_salient", "n_mapped"), (Effect(_on("salient_operations")),)),
    "receivers": (Effect(_on("path_patching")),),
    **dict.fromkeys(("n_stages", "top_share", "min_effect"), (Effect(_on("circuit_discovery")),)),
    "latex": (
        Effect(DYNAMIC, lambda config: "relation_scores" in config.analyses, "relation_scores run too"),
    ),
    "circuits": (Effect(GRIDS),),
    "heat_maps": (Effect(MAPPED),),
    **dict.fromkeys(
        ("orientation", "origin"),
        (Effect((MAPPED | _on("attention_patterns", "copy_score")) - _on("ablation_curves")),),
    ),
    **dict.fromkeys(("mesh", "parallel"), (Effect(FORWARD | STATIC),)),
    **dict.fromkeys(("rate", "device_memory"), _planned),
}


def changed_fields(config: RunConfig) -> tuple[str, ...]:
    """The fields whose values are not their defaults."""
    return tuple(
        field.name
        for field in dataclasses.fields(config)
        if field.default is dataclasses.MISSING or getattr(config, field.name) != field.default
    )


def without_effect(config: RunConfig, names: Iterable[str], planned: bool = False) -> tuple[str, ...]:
    """Those of the fields that change nothing of what the config asks for; `planned`: it is not run."""
    asked = frozenset(config.analyses)
    return tuple(
        name
        for name in names
        if not any(effect.analyses & asked and effect.holds(config) for effect in FIELDS[name])
        and not (planned and FIELDS[name] is _planned)
    )


def refuse_without_effect(config: RunConfig, given: Iterable[str], planned: bool = False) -> None:
    """Raises InputError for a field that the user gave and that has no effect."""
    for name in without_effect(config, given, planned):
        raise InputError(
            f"field {name!r} must have an effect on what is asked; it has one {_describe(FIELDS[name])}; "
            f"analyses are {', '.join(config.analyses)}"
        )


def _describe(effects: tuple[Effect, ...]) -> str:
    return "; or ".join(
        f"on {', '.join(name for name in ANALYSES if name in effect.analyses)}" * bool(effect.analyses)
        + " " * bool(effect.analyses and effect.where)
        + f"where {effect.where}" * bool(effect.where)
        for effect in effects
    )
