"""The figures of a run, drawn of what it computed, or again from the files that its run.json names; then also
its page.

python -m experiments.draw out/demo --formats svg --threshold 0.2
"""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import fields as options
from pathlib import Path
from typing import Any

from experiments.compare import Comparison, draw_comparison
from experiments.config import (
    RunConfig,
    config_from_json,
    find_place,
    parse_at,
    put,
    put_all,
    refuse_idle,
    split_fields,
)
from experiments.page import SAID, page_again
from experiments.record import RECORD, digests, own_file, read_record, write_record
from headjax.errors import InputError, run_main, shown
from headjax.grid import load_npz
from headjax.report.options import Report
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


def draw_again(out: Path, fields: Mapping[str, str]) -> list[Path]:
    """Draws a finished run once more, with other values of the report's fields (field -> text).

    What the run's record says of its numbers stays; it tells the figures and the fields they were drawn with.
    Raises InputError for a directory without a run, and for a field that changes more than figures or none.
    """
    record = read_record(out)
    config = config_from_json(record["config"] | {"out": str(out)})
    changes = {}
    for name, text in fields.items():
        place = find_place(config, name)
        if not place.startswith("report.") or place == "report.tables":
            names = ", ".join(field.name for field in options(Report) if field.name != "tables")
            rule = f"figures are drawn again with other values of {names}"
            raise InputError(f"{rule}; {name} needs another run")
        changes[place] = parse_at(config, place, text)
    config = put_all(config, changes)
    refuse_idle(config, fields)
    comparison = own_file(out, record, "comparison.csv")
    compared = read_rows(comparison, Comparison) if comparison else ()
    found = read_result(out, record, config)
    # All of them or none: what cannot be drawn as asked leaves the run as it was.
    (out / "figures").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out) as beside:
        drawn = [
            file.replace(out / file.relative_to(beside))
            for file in draw_all(found, compared, put(config, "out", beside))
        ]
    if own_file(out, record, SAID):  # runs of before there were pages have none
        drawn = [*drawn, *page_again(out, config.report, found)]
    # Drawn by another version, or with other fields, they may be other files than before.
    record["drawn_with"] = dict(fields)
    write_record(out, record, record["files"] | digests(out, drawn))
    return drawn


def main(argv: Sequence[str]) -> None:
    if len(argv) < 2 or argv[1].startswith("-"):
        found = f"got {shown(argv[1])}" if len(argv) > 1 else "got none"
        raise InputError(f"the first argument must be the directory of a finished run; {found}")
    out = Path(argv[1])
    print("wrote", *draw_again(out, split_fields(argv[2:])), out / RECORD, sep="\n  ")


if __name__ == "__main__":
    run_main(main)
