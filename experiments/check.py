"""What must be so before a run begins: everything that can be known without a forward pass is said first.

What each analysis asks of a model, it checks itself (`Analysis.check`); here is what is of the run: what is
shown, what several models have in common, where results go.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import experiments.models  # noqa: F401  `planted` and `trained` are known by name from here on
from experiments.compare import check_comparison, check_comparison_size
from experiments.config import RunConfig
from headjax import zoo
from headjax.analyses.base import FORWARD, check_analyses, check_report
from headjax.errors import InputError
from headjax.grid import COORDINATES, GridSet
from headjax.io import atomic_write, check_file_names
from headjax.report.drawing import check_marks
from headjax.report.table import check_forms
from headjax.study import Study, study_of

WRITTEN = (".csv", ".json", ".md", ".npz", ".pdf", ".png", ".svg", ".tex", ".parquet")


def display_names(config: RunConfig) -> dict[str, str]:
    """Each of the run's models -> what figures call it. Raises InputError where one is named twice."""
    places = [zoo.resolve(name, config.checkpoint_dir, config.seed) for name in config.models]
    return dict(zip(config.models, zoo.display_names(places), strict=True))


def study_at(source: zoo.Source, name: str, config: RunConfig) -> Study:
    """One of the run's models, whose files are here, as the run asks it."""
    return study_of(
        source,
        config.data,
        config.compute,
        seed=config.seed,
        checkpoint_dir=config.checkpoint_dir,
        ignore_fields=config.ignore_fields,
        display_name=display_names(config)[name],
    )


def reads_models(study: Study, config: RunConfig) -> bool:
    """Whether any analysis loads whole models, which are converted for that."""
    return any(analysis.needs_model(study) for analysis in config.analyses.values())


def check_study(study: Study, config: RunConfig) -> set[str]:
    """Raises InputError for what this model cannot be asked; gives the relations and tasks of its grids.

    Reads no weights and uses no device.
    """
    coordinates = check_analyses(study, config.analyses, {})
    scored = {grid.relation for own in coordinates.values() for grid in own}
    named = (*(pairs.relation.id for pairs in study.pairs), *sorted(scored))
    order = list(dict.fromkeys(named))
    grids = sorted(
        (grid for own in coordinates.values() for grid in own), key=lambda grid: order.index(grid.relation)
    )
    check_report(config.report, config.analyses.values(), study.data, grids)
    size = (study.config.n_layers, study.config.n_heads)
    check_marks(config.report, [size])
    check_comparison_size(config.compare, study.display_name, size)
    return scored


def check_devices(study: Study, config: RunConfig) -> None:
    """Raises InputError for a mesh that is not of these devices, NotImplementedError for a kernel that cannot
    be spread over it."""
    read = [analysis.reads(study.data) for analysis in config.analyses.values()]
    if any(fields >= FORWARD for fields in read):
        _ = study.forward_mesh
    elif any("compute.mesh" in fields for fields in read):
        _ = study.mesh


def check_together(config: RunConfig, named: Sequence[tuple[str, set[str]]]) -> None:
    """Raises InputError where two models, or relations of theirs, would write over each other's results.

    named: of every model, its display name and the relations and tasks of its grids.
    """
    models = [model for model, _ in named]
    check_file_names(models, "models")
    check_file_names(
        ((m, relation) for m, own in named for relation in sorted(own)), "models with their relations"
    )
    check_comparison(config, models)
    check_forms(config.report.tables)


def check_out(out: Path) -> None:
    """Raises InputError where the results could not be written."""
    for directory in (out, out / "figures", out / "circuits"):
        if directory == out or directory.exists():
            with atomic_write(directory / "run.check") as file:
                file.write("")
            (directory / "run.check").unlink()
            for path in directory.iterdir():
                if path.suffix in WRITTEN and path.is_dir():
                    raise InputError(f"results are written to files; {path} is a directory")


def check_unique(grids: GridSet) -> None:
    """Raises InputError for two grids that nothing tells apart."""
    named: Mapping[tuple, int] = Counter(tuple(getattr(grid, name) for name in COORDINATES) for grid in grids)
    for coordinates, count in named.items():
        if count > 1:
            rule = "every grid must have coordinates of its own"
            raise InputError(f"{rule}; {count} have {', '.join(filter(None, coordinates))}")
