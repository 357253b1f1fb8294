"""The page of a run, written with its results; and, of finished runs, one page of several side by side.

python -m experiments.page out/gpt2 out/gpt2-finetuned --to both.html
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.compare import TABLE_TITLES, Comparison
from experiments.config import RunConfig
from experiments.record import digests, own_file, read_record, write_record
from headjax.errors import InputError, run_main, shown
from headjax.grid import load_npz
from headjax.io import atomic_write, read_json
from headjax.report.options import Report
from headjax.report.page.data import describe_run, marks
from headjax.report.page.write import Run, write_page
from headjax.report.parts import Part, Point, Rows, Scatter, plain
from headjax.result import Result
from headjax.study import Study

SAID, PAGE = "page.json", "report.html"


def write_run_page(
    found: Result,
    compared: Sequence[Comparison],
    config: RunConfig,
    studies: Sequence[Study],
    facts: Mapping[str, str],
) -> list[Path]:
    """Writes page.json, what the page says, and report.html, the page, into the run's directory."""
    out = Path(config.out)
    name = out.resolve().name
    more = comparison_parts(compared)
    said = describe_run(name, found, config.analyses, studies, config.report, more, facts)
    with atomic_write(out / SAID) as file:
        json.dump(said, file, ensure_ascii=False)
    return [out / SAID, write_page(out / PAGE, [(said, found.grids)])]


def comparison_parts(rows: Sequence[Comparison]) -> list[Part]:
    """Ours against the published numbers: a picture, and every row with its verdict."""
    if not rows:
        return []
    counts = {verdict: sum(row.verdict == verdict for row in rows) for verdict in ("agrees", "differs")}
    note = f"Of {len(rows)} published numbers {counts['agrees']} agree and {counts['differs']} differ"
    note += f"; {len(rows) - sum(counts.values())} were not measured."
    points = tuple(
        Point(
            row.published,
            row.ours,
            row.verdict,
            f"{row.model}, {TABLE_TITLES[row.table]}: {row.relation}, {row.kind}, {row.measure}",
        )
        for row in rows
        if not math.isnan(row.ours)
    )
    title = "Comparison with published numbers"
    table = Rows(title, Comparison._fields, tuple(map(tuple, rows)), note, verdict="verdict")
    return [*([Scatter("Ours against published", "published", "ours", points)] if points else []), table]


def read_run(out: Path) -> tuple[dict[str, Any], Run]:
    """A finished run's record, and what its page says with its grids, from the files of the record."""
    record = read_record(out)
    for name in (SAID, "scores.npz"):
        if own_file(out, record, name) is None:
            raise InputError(f"{out} must hold the {name} of its run; the record lists none: run it again")
    return record, (read_json(out / SAID), load_npz(out / "scores.npz"))


def page_again(out: Path, report: Report, found: Result) -> list[Path]:
    """The page of a finished run, with what another `report` lets it begin with and mark."""
    _, (said, grids) = read_run(out)
    said |= plain({"report": vars(report), "marks": marks(found, report)})
    with atomic_write(out / SAID) as file:
        json.dump(said, file, ensure_ascii=False)
    return [out / SAID, write_page(out / PAGE, [(said, grids)])]


def report(outs: Sequence[Path], to: Path | None) -> Path:
    """The page of finished runs: of one its own again, unless it is to go elsewhere; of several `to`."""
    read = [read_run(out) for out in outs]
    runs = [run for _, run in read]
    if len(outs) == 1 and to is None:
        ((record, _),) = read
        page = write_page(outs[0] / PAGE, runs)
        write_record(outs[0], record, record["files"] | digests(outs[0], [page]))
        return page
    # Directories of one name are told apart by where they are.
    names = [out.resolve().name for out in outs]
    if len(set(names)) < len(names):
        names = [str(out) for out in outs]
    for (said, _), name in zip(runs, names, strict=True):
        said["name"] = name
    return write_page(Path(PAGE) if to is None else to, runs)


def main(argv: Sequence[str]) -> None:
    words, to = list(argv[1:]), None
    if "--to" in words:
        at = words.index("--to")
        if at + 1 == len(words):
            raise InputError("--to must name the file to write; got none")
        to = Path(words[at + 1])
        del words[at : at + 2]
    if not words or any(word.startswith("-") for word in words):
        found = f"got {shown(next(word for word in words if word.startswith('-')))}" if words else "got none"
        raise InputError(f"a report is of the directories of finished runs (and --to FILE); {found}")
    if len(set(words)) < len(words):
        raise InputError("a report names each run once; got one twice")
    print(f"wrote {report([Path(word) for word in words], to)}")


if __name__ == "__main__":
    run_main(main, unknown_flags=True)
