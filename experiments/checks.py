"""What must be so before a run begins: everything that can be known without a forward pass is said first.

`check_config` looks at no model; `check_subject` at a model's sizes and tokenizer, in `CHECKS` one function
an analysis; `check_together` at all models of a run; `check_out` at where results go.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from experiments.analyses import REPEATED, _metrics
from experiments.circuits import read_marks
from experiments.compare import check_comparison, check_comparison_size
from experiments.config import RunConfig
from experiments.fields import FORWARD, STATIC
from experiments.subject import GENERATORS, PLANTED, Subject
from headjax.analyses.attention_patterns import PATTERNS, repeated_tokens
from headjax.analyses.gradient_attribution import DIFFERENTIABLE
from headjax.analyses.path_patching import INPUTS, Receiver
from headjax.axes import Head
from headjax.circuits.discovery import DIRECT
from headjax.circuits.published import check_fits
from headjax.data.prompt_sets import ioi_names, read_prompts
from headjax.data.prompts import PromptBatch
from headjax.data.relations import load_relations
from headjax.data.templates import SLOT
from headjax.engine.metrics import METRICS
from headjax.engine.replacement import find_donors
from headjax.errors import InputError, shown
from headjax.grid import SUPPRESSION, GridSet
from headjax.io import atomic_write, check_file_names
from headjax.model.edits import check_head

# What a grid will be called: its kind and its relation (or task).
Coordinates = set[tuple[str, str]]


# --- before a model is looked at ----------------------------------------------------------------------


def check_config(config: RunConfig) -> None:
    """Raises InputError for what no model could make right."""
    if "universality" in config.analyses and "relation_scores" not in config.analyses:
        raise InputError(f"universality needs relation_scores; got {', '.join(config.analyses)}")
    for template in config.templates:
        if SLOT not in template:
            rule = f"a template must hold {SLOT}, where the source goes"
            raise InputError(f"{rule}; got {shown(template)}")
    if PLANTED not in config.models:  # which brings relations of its own
        directory = config.relations_dir and Path(config.relations_dir)
        relations = load_relations(config.relations or None, directory)
        known = {*GENERATORS, *(relation.id for relation in relations)}
        for name in config.prompt_sets:
            if name not in known:
                read_prompts(name)
    for entry in config.circuits:
        read_marks(entry)
    for label in config.salient_heads:
        Head.parse(label)
    for receiver in map(Receiver.parse, config.receivers):
        if receiver.input in "kv" and config.positions == "last":
            rule = "keys and values of earlier positions change only with positions='all'"
            raise InputError(f"{rule}; got the receiver {receiver} and positions='last'")


def check_out(out: Path) -> None:
    """Raises InputError where the results could not be written."""
    for directory in (out, out / "figures", out / "circuits"):
        if directory == out or directory.exists():
            with atomic_write(directory / "run.check") as file:
                file.write("")
            (directory / "run.check").unlink()
            for path in directory.iterdir():
                if path.suffix in (".csv", ".json", ".md", ".npz", ".pdf", ".png", ".tex") and path.is_dir():
                    raise InputError(f"results are written to files; {path} is a directory")


# --- of one model -------------------------------------------------------------------------------------


def check_subject(subject: Subject) -> set[str]:
    """Raises InputError for what this model cannot be asked; gives the relations and tasks of its grids.

    Reads no weights and uses no device.
    """
    run, config = subject.run, subject.config
    if {"relation_scores", "dynamic_scores"} & set(run.analyses):
        for pairs in subject.pairs:
            if (k := subject.rule.k(pairs.relation.id)) >= config.vocab_size:
                rule = f"{pairs.relation.id}: a hit is within the first k tokens of more"
                raise InputError(f"{rule}; k is {k}, the model has {config.vocab_size} tokens")
    grids: Coordinates = set()
    for analysis in run.analyses:
        grids |= CHECKS[analysis](subject, grids)

    relations = list(dict.fromkeys([*(p.relation.id for p in subject.pairs), *(r for _, r in sorted(grids))]))
    for relation in run.heat_maps:
        if relation not in relations:
            raise InputError(
                f"heat_maps must name relations that are scored: {', '.join(relations)}; got {relation!r}"
            )
    for entry in run.circuits:
        relation, circuit = read_marks(entry)
        if relation is not None and relation not in relations:
            raise InputError(
                f"circuits must name relations that are scored: {', '.join(relations)}; got {relation!r}"
            )
        check_fits(circuit, config.n_layers, config.n_heads)
    check_comparison_size(run.compare, subject.display_name, (config.n_layers, config.n_heads))
    return {relation for _, relation in grids}


def check_devices(subject: Subject) -> None:
    """Raises InputError for a mesh that is not of these devices, NotImplementedError for a kernel that cannot
    be spread over it."""
    asked = set(subject.run.analyses)
    if asked & FORWARD:
        _ = subject.forward_mesh
    elif asked & STATIC:
        _ = subject.mesh


def _relation_scores(subject: Subject, before: Coordinates) -> Coordinates:
    relations = [pairs.relation.id for pairs in subject.pairs]
    return {(kind, relation) for kind in ("static", "static" + SUPPRESSION) for relation in relations}


def _dynamic_scores(subject: Subject, before: Coordinates) -> Coordinates:
    kinds = [
        kind + ending for kind in ("dynamic_context", "dynamic_no_context") for ending in ("", SUPPRESSION)
    ]
    return {(kind, relation) for kind in kinds for relation in tasks(subject.dynamic_batch)}


def _logit_attribution(subject: Subject, before: Coordinates) -> Coordinates:
    return {("logit_attribution", task) for task in tasks(subject.task_batch)}


def _head_ablation(subject: Subject, before: Coordinates) -> Coordinates:
    _check_donors(subject, subject.run.positions)
    return _of_metrics(subject, "ablation", METRICS)


def _gradient_attribution(subject: Subject, before: Coordinates) -> Coordinates:
    _check_donors(subject, subject.run.positions)
    return _of_metrics(subject, "gradient", tuple(DIFFERENTIABLE))


def _of_metrics(subject: Subject, name: str, possible: tuple[str, ...]) -> Coordinates:
    metrics = _metrics(subject, possible)
    if not metrics:
        rule = f"{name}s are measured by {' or '.join(possible)}"
        raise InputError(f"{rule}; metrics are {', '.join(subject.run.metrics)}: nothing would be measured")
    return {(f"{name}_{metric}", task) for metric in metrics for task in tasks(subject.task_batch)}


def _check_donors(subject: Subject, positions: str) -> None:
    """Whether every prompt has somebody to be resampled from."""
    if subject.run.ablation == "resample":
        find_donors(subject.task_batch, positions, subject.run.seed)


def _attention_patterns(subject: Subject, before: Coordinates) -> Coordinates:
    bos = subject.tokenizer.bos_token_id if subject.task_batch.bos else None
    repeated_tokens(subject.config, bos=bos)
    return {(f"attention_{pattern}", on) for pattern in PATTERNS for on in (REPEATED, "prompts")}


def _copy_score(subject: Subject, before: Coordinates) -> Coordinates:
    ioi_names(subject.tokenizer)
    return {(kind, "ioi_names") for kind in ("copy_score", "copy_score" + SUPPRESSION)}


def _salient_operations(subject: Subject, before: Coordinates) -> Coordinates:
    for label in subject.run.salient_heads:
        check_head(Head.parse(label), subject.config)
    return set()


def _universality(subject: Subject, before: Coordinates) -> Coordinates:
    return set()


def _ablation_curves(subject: Subject, before: Coordinates) -> Coordinates:
    _check_donors(subject, "last")
    rank_by = subject.run.rank_by
    ranked = [relation for kind, relation in before if kind == rank_by]
    if not ranked:
        kinds = ", ".join(sorted({kind for kind, _ in before})) or "none"
        raise InputError(
            f"ablation_curves rank heads by grids of an analysis that runs before them; rank_by is "
            f"{shown(rank_by)}, grids there are: {kinds}"
        )
    for task in tasks(subject.task_batch):
        if task not in ranked:
            found = f"{rank_by!r} has {', '.join(sorted(ranked))}"
            raise InputError(
                f"ablation_curves need a grid of every task that ranks heads; {found}, not {task}"
            )
    if rank_by.startswith("ablation_") and subject.run.kv_groups and _has_groups(subject):
        raise InputError(f"ablation_curves rank single heads; with kv_groups {rank_by!r} has groups of them")
    return set()


def _has_groups(subject: Subject) -> bool:
    return subject.config.n_kv_heads < subject.config.n_heads


def _path_patching(subject: Subject, before: Coordinates) -> Coordinates:
    receivers = tuple(map(Receiver.parse, subject.run.receivers))
    for receiver in receivers:
        check_head(receiver.head, subject.config)
    kinds = ["path_direct", "path_logits"]
    for letter, name in INPUTS.items():
        into = [receiver for receiver in receivers if receiver.input == letter]
        if into and all(receiver.head.layer == 0 for receiver in into):
            rule = "a receiver must be above layer 0, so that a head can send to it"
            raise InputError(f"{rule}; got {into[0]}")
        kinds += [f"path_{name}"] * bool(into)
    return {(kind, task) for kind in kinds for task in _twins(subject)}


def _circuit_discovery(subject: Subject, before: Coordinates) -> Coordinates:
    # Which grids later stages have depends on what the first one finds.
    return {(f"circuit_1_{DIRECT}", task) for task in _twins(subject)}


def _twins(subject: Subject) -> Iterable[str]:
    """The tasks of path patching, whose prompts must have distractors and corrupted partners."""
    for batch in subject.twin_batches.values():
        for field in ("distractors", "corrupted"):
            if getattr(batch, field) is None:
                rule = "path patching needs prompts with distractors and corrupted partners"
                raise InputError(f"{rule}; {batch.prompts[0].name} has no {field.removesuffix('s')}")
    return subject.twin_batches


def tasks(batch: PromptBatch) -> tuple[str, ...]:
    """The relations, or tasks, that prompts belong to."""
    return tuple(dict.fromkeys(prompt.relation for prompt in batch.prompts))


# What each analysis needs. Given the model and the coordinates of the grids that there will be before it;
# gives those of its own. Raises InputError for what it cannot do.
CHECKS: Mapping[str, Callable[[Subject, Coordinates], Coordinates]] = {
    "relation_scores": _relation_scores,
    "dynamic_scores": _dynamic_scores,
    "logit_attribution": _logit_attribution,
    "head_ablation": _head_ablation,
    "gradient_attribution": _gradient_attribution,
    "ablation_curves": _ablation_curves,
    "attention_patterns": _attention_patterns,
    "copy_score": _copy_score,
    "salient_operations": _salient_operations,
    "universality": _universality,
    "path_patching": _path_patching,
    "circuit_discovery": _circuit_discovery,
}


# --- of all models ------------------------------------------------------------------------------------


def check_together(config: RunConfig, named: Sequence[tuple[str, set[str]]]) -> None:
    """Raises InputError where two models, or relations of theirs, would write over each other's results.

    named: of every model, its display name and the relations and tasks of its grids.
    """
    models = [model for model, _ in named]
    check_file_names(models, "models")
    of_models = [(model, relation) for model, relations in named for relation in sorted(relations)]
    check_file_names(of_models, "models with their relations")
    check_comparison(config, models)


def check_unique(grids: GridSet) -> None:
    """Raises InputError for two grids that nothing tells apart."""
    named = Counter((grid.model, grid.kind, grid.relation, grid.template, grid.metric) for grid in grids)
    for coordinates, count in named.items():
        if count > 1:
            raise InputError(
                f"every grid must have coordinates of its own; {count} have {shown(coordinates)}"
            )
