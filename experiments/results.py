"""What a run computed, as figures take it: in memory, or read again from the files that its record names."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.circuits import Found, read_circuits
from experiments.compare import Comparison
from experiments.record import own_file
from experiments.tables import read_curves
from experiments.tables_papers import UNIVERSALITY, read_comparison, read_universality
from headjax.errors import InputError
from headjax.grid import GridSet, load_npz
from headjax.report.curve_tables import CurveRow


class Results(NamedTuple):
    """Everything that figures are drawn from.

    Attributes:
      curves: (model, point) of all ablation curves.
      circuits: (model, task) -> the heads found.
      universality: name of a table -> its rows.
      comparison: ours beside published numbers.
    """

    grids: GridSet
    curves: Sequence[tuple[str, CurveRow]] = ()
    circuits: Found = {}  # noqa: RUF012
    universality: Mapping[str, Sequence[NamedTuple]] = {}
    comparison: Sequence[Comparison] = ()


def read_results(out: Path, record: Mapping[str, Any]) -> Results:
    """What the files hold that the record of a run lists. Raises InputError for others in their place."""
    if own_file(out, record, "scores.npz") is None:
        raise InputError(f"{out} must hold the scores.npz of its run; the record lists none")
    curves = own_file(out, record, "ablation_curves.csv")
    circuits = own_file(out, record, "circuits.csv")
    comparison = own_file(out, record, "comparison.csv")
    universality = {name: own_file(out, record, name) for name in UNIVERSALITY}
    return Results(
        load_npz(out / "scores.npz"),
        read_curves(curves) if curves else (),
        read_circuits(circuits) if circuits else {},
        {name: read_universality(file) for name, file in universality.items() if file},
        read_comparison(comparison) if comparison else (),
    )
