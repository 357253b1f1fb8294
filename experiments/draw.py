"""The figures of a run, drawn of what it computed, or again from the files that its run.json names.

python -m experiments.draw out/demo
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.compare import Comparison, draw_comparison
from experiments.config import RunConfig, config_from_json
from experiments.record import RECORD, digests, own_file, read_record, write_record
from headjax.errors import InputError, run_main
from headjax.grid import load_npz
from headjax.report.run_report import draw_report
from headjax.report.table import read_rows
from headjax.result import Result


def draw_all(found: Result, compared: Sequence[Comparison], config: RunConfig) -> list[Path]:
    """Draws what there are results for, into `config.out`/figures; returns the files written."""
    directory = Path(config.out) / "figures"
    files = draw_report(found, config.analyses, config.report, directory)
    return [*files, *draw_comparison(compared, directory)]


def read_result(out: Path, record: Mapping[str, Any], config: RunConfig) -> Result:
    """What a run's files hold, as far as figures need it. Raises InputError for others in their place."""
    if own_file(out, record, "scores.npz") is None:
        raise InputError(f"{out} must hold the scores.npz of its run; the record lists none")
    stems = {
        analysis.stem(name, what): rows
        for name, analysis in config.analyses.items()
        for what, rows in analysis.reads_tables.items()
    }
    files = {stem: own_file(out, record, f"{stem}.csv") for stem in stems}
    tables = {stem: read_rows(file, stems[stem]) for stem, file in files.items() if file}
    return Result(load_npz(out / "scores.npz"), tables)


def main(argv: Sequence[str]) -> None:
    if len(argv) != 2:
        raise InputError(f"one argument is needed, the directory of a finished run; got {len(argv) - 1}")
    out = Path(argv[1])
    record = read_record(out)
    config = config_from_json(record["config"] | {"out": str(out)})
    comparison = own_file(out, record, "comparison.csv")
    compared = read_rows(comparison, Comparison) if comparison else ()
    drawn = draw_all(read_result(out, record, config), compared, config)
    # Drawn by another version, they may be other files than before.
    write_record(out, record, record["files"] | digests(out, drawn))
    print("wrote", *drawn, out / RECORD, sep="\n  ")


if __name__ == "__main__":
    run_main(main)
