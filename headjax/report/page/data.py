"""What the page says of a run, as plain JSON: everything but the grids, which have their own file.

`describe_run` is asked while the run still has its models; `page.json` keeps its answer, so that the page can
be made again, alone or beside those of other runs.
"""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

import headjax
from headjax.analyses.base import Analysis
from headjax.circuits.tables import found_circuits, known_circuits, prediction_tables
from headjax.grid import COORDINATES, GridSet, HeadGrid
from headjax.report.options import Report
from headjax.report.parts import Part, plain, rows_of
from headjax.report.prompt_tables import asked_relations, describe_words
from headjax.result import CleanRow, Result
from headjax.study import Study

VERSION = 1  # of page.json
N_EXAMPLES = 8  # pairs of a relation that a head's card shows


class RelationAbout(NamedTuple):
    """A relation that a model was asked about, how many of its pairs counted, and some of these."""

    id: str
    name: str
    category: str
    n_pairs: int
    n_given: int
    examples: tuple[tuple[str, str], ...]


class ModelAbout(NamedTuple):
    """A model of the run. `digest` is of all its files; `words`: what to know of its tokens."""

    name: str
    source: str
    digest: str
    n_layers: int
    n_heads: int
    n_kv_heads: int
    relations: tuple[RelationAbout, ...]
    skipped: tuple[tuple[str, str], ...]
    words: str


class AnalysisAbout(NamedTuple):
    """An analysis: its name in this run, what it is, and what it was asked otherwise than usual."""

    name: str
    kind: str
    about: str
    options: str


class Marks(NamedTuple):
    """A circuit to mark on a model's maps: role -> heads."""

    model: str
    name: str
    legend: str
    citation: str
    roles: Mapping[str, tuple[str, ...]]


class RunAbout(NamedTuple):
    """A run as the page tells it.

    Attributes:
      sentence: what was run, to be cited.
      facts: label -> text, for whoever wants to do it again.
      report: what the page begins with: the fields of `Report`.
      parts: what there is beside grids, of `headjax.report.parts`, in the order of the page.
    """

    version: int
    name: str
    sentence: str
    facts: Mapping[str, str]
    models: tuple[ModelAbout, ...]
    analyses: tuple[AnalysisAbout, ...]
    clean: tuple[CleanRow, ...]
    marks: tuple[Marks, ...]
    report: Mapping[str, Any]
    parts: tuple[Part, ...]


def describe_run(
    name: str,
    found: Result,
    analyses: Mapping[str, Analysis],
    studies: Sequence[Study],
    report: Report,
    more: Sequence[Part] = (),
    facts: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Everything the page says of a run but its grids, as JSON; `more` are parts that no analysis has."""
    models = tuple(about_model(study, analyses) for study in studies)
    asked = tuple(about_analysis(name, analysis) for name, analysis in analyses.items())
    seed = studies[0].seed if studies else 0
    parts = [part for one, analysis in analyses.items() for part in analysis.show(one, found, report)]
    predicted = [rows_of(table) for table in prediction_tables(found, report, seed)]
    return plain(
        RunAbout(
            version=VERSION,
            name=name,
            sentence=sentence(models, asked, studies),
            facts=dict(facts or {}),
            models=models,
            analyses=asked,
            clean=found.clean,
            marks=marks(found, report),
            report=dataclasses.asdict(report),
            parts=(*parts, *more, *predicted),
        )
    )


def marks(found: Result, report: Report) -> tuple[Marks, ...]:
    """All circuits that the run's models are known to have: published, given and found."""
    return tuple(
        Marks(
            model, name, circuit.legend, circuit.citation, {r: _labels(h) for r, h in circuit.roles.items()}
        )
        for model in found.grids.values("model")
        for name, circuit in known_circuits(model, report, found_circuits(found)).items()
    )


def _labels(heads: Sequence[Any]) -> tuple[str, ...]:
    return tuple(map(str, heads))


def about_model(study: Study, analyses: Mapping[str, Analysis]) -> ModelAbout:
    """What the page says of a model."""
    config, source = study.config, study.parameters.provenance
    # Of a large file that is not read whole, its size.
    files = sorted((name, file.get("sha256", file.get("size"))) for name, file in source["files"].items())
    asked = {relation.id for relation in asked_relations(study, tuple(analyses.values()))}
    relations = tuple(
        RelationAbout(
            *(pairs.relation.id, pairs.relation.name, pairs.relation.category),
            *(len(pairs.words), len(pairs.relation.pairs), pairs.words[:N_EXAMPLES]),
        )
        for pairs in study.pairs
        if pairs.relation.id in asked
    )
    return ModelAbout(
        study.display_name,
        # Of a directory its name: where it lies is nobody else's concern.
        str(source.get("source", "")).replace("\\", "/").rstrip("/").rpartition("/")[2],
        hashlib.sha256(repr(files).encode()).hexdigest()[:12],
        *(config.n_layers, config.n_heads, config.n_kv_heads),
        relations,
        tuple((relation.name, reason) for relation, reason in study.skipped if relation.id in asked),
        describe_words(study, tuple(analyses.values())),
    )


def about_analysis(name: str, analysis: Analysis) -> AnalysisAbout:
    """What the page says of an analysis."""
    changed = [
        f"{field.name.replace('_', ' ')} {_text(value)}"
        for field in dataclasses.fields(analysis)
        if (value := getattr(analysis, field.name)) != field.default
    ]
    about = (type(analysis).__doc__ or "").strip().partition("\n")[0]
    return AnalysisAbout(name, analysis.kind, about, ", ".join(changed))


def _text(value: Any) -> str:
    """An option's value in a few words."""
    if isinstance(value, list | tuple):
        texts = [_text(one) for one in value[:3]]
        return ", ".join(texts) + f" and {len(value) - 3} more" * (len(value) > 3)
    return value if isinstance(value, str) else getattr(value, "name", "") or str(value)


def sentence(
    models: Sequence[ModelAbout], analyses: Sequence[AnalysisAbout], studies: Sequence[Study]
) -> str:
    """What was run, in one sentence."""

    def words(text: str) -> str:
        return text.replace("_", " ")

    asked = [
        words(one.kind)
        + f" (as {one.name})" * (one.name != one.kind)
        + (f" ({one.options})" if one.options else "")
        for one in analyses
    ]
    of = [
        f"{one.name} ({one.n_layers * one.n_heads} attention heads: {one.n_layers} layers of {one.n_heads}; "
        f"files {one.digest})"
        for one in models
    ]
    n_relations = len({relation.id for model in models for relation in model.relations})
    on = f", over {n_relations} relation{'s' * (n_relations != 1)}" if n_relations else ""
    how = ""
    if studies:
        compute = studies[0].compute
        how = f", in {compute.dtype} at precision {compute.precision} on {jax.default_backend()}"
        how += f", seed {studies[0].seed}"
    return f"headjax {headjax.__version__} measured {_and(asked)} of {_and(of)}{on}{how}."


def _and(words: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(words[:-1]), *words[-1:])))


# --- grids ----------------------------------------------------------------------------------------------


def in_order(grids: GridSet) -> list[HeadGrid]:
    """The grids by model, analysis and kind as they first appear, then relations by name: the same order
    whether they come from memory or from their file."""
    place = {field: list(grids.values(field)) for field in ("model", "analysis")}
    return sorted(
        grids,
        key=lambda grid: (
            *(place[field].index(getattr(grid, field)) for field in place),
            *(grid.kind, grid.metric, grid.name, grid.relation, grid.template),
            *(grid.replacement, grid.positions),
        ),
    )


def describe_grid(grid: HeadGrid) -> dict[str, Any]:
    """A grid's coordinates, and what its numbers are; all that the page knows of a grid but the numbers."""
    about, kind = grid.about, grid.kind.replace("_", " ")
    metric = "" if about.kind_has_metric else grid.metric.replace("_", " ")
    named = ", ".join(filter(None, (metric, grid.replacement, grid.positions)))
    label = kind if not named else f"{kind} ({named})"
    analysis = grid.analysis.replace("_", " ")
    return {
        **{field: getattr(grid, field) for field in (*COORDINATES, "kind", "category", "name")},
        "label": f"{analysis}: {label}" if analysis and analysis != kind else label,
        "n": int(grid.n_pairs),
        "clean": plain(grid.clean),
        "clean_stderr": plain(grid.clean_stderr),
        "share": about.is_share,
        "relation_score": about.is_relation_score,
        "helps": about.helps,
        "shape": [int(size) for size in np.shape(grid.scores)],
    }
