"""A page of the documentation about one model, written from a finished run: what all such pages share."""

import csv
import datetime
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.pages.agreement import Row, agreement_rows
from experiments.record import read_record
from headjax.errors import InputError, run_main
from headjax.grid import GridSet, HeadGrid, load_npz
from headjax.io import atomic_write


class Finished(NamedTuple):
    """A finished run of one model, as a page tells of it.

    Attributes:
      directory: where it lies; about: its run.json; day: when it ended.
      rows: what the measures of each relation say.
      tables: name -> rows, of those that the page needs.
    """

    directory: Path
    about: dict[str, Any]
    day: datetime.date
    grids: GridSet
    rows: list[Row]
    tables: dict[str, list[dict[str, str]]]

    def static(self, relation: str, sign: str = "") -> HeadGrid:
        """Its relation scores of a relation."""
        return self.grids.select(measure="static", relation=relation, sign=sign).one

    def copying(self, sign: str = "") -> HeadGrid:
        """Its copy scores."""
        return self.grids.select(measure="copy_score", sign=sign).one


# The page's figures, drawn into a folder, and its text, which is told the folder's name.
Draw = Callable[[Finished, Path], list[Path]]
Tell = Callable[[Finished, str], str]


def read_run(directory: Path, tables: Sequence[str]) -> Finished:
    """Reads it. Raises InputError where it is not finished, is of several models, or lacks analyses."""
    rule = "a page is of one model and of every analysis of its config"
    about = read_record(directory)
    try:
        day = datetime.date.fromtimestamp((directory / "run.json").stat().st_mtime)
        read = {name: read_table(directory / f"{name}.csv") for name in tables}
    except OSError as error:
        raise InputError(f"{rule}; {error}") from error
    grids = load_npz(directory / "scores.npz")
    rows = agreement_rows(grids)
    if len(about["models"]) != 1 or not rows:
        raise InputError(f"{rule}; {directory} is not")
    return Finished(directory, about, day, grids, rows, read)


def page_of_a_run(found: Finished, page: Path, tell: Tell, draw: Draw) -> list[Path]:
    """Writes the page and its figures, which lie in a folder named like the page; gives the files."""
    folder = page.with_suffix("")
    text = tell(found, folder.name)
    files = draw(found, folder)
    with atomic_write(page) as file:
        file.write(text)
    return [page, *files]


def page_command(write: Callable[[Path, Path], list[Path]], usual: Path) -> None:
    """A page's command: it is given the directory of a run, and maybe another page than the usual one."""

    def main(argv: Sequence[str]) -> None:
        if len(argv) not in (2, 3):
            raise InputError(f"the directory of a finished run is needed, and maybe a page; got {argv[1:]}")
        print("wrote", *write(Path(argv[1]), Path(argv[2]) if len(argv) == 3 else usual), sep="\n  ")

    run_main(main)


def read_table(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file."""
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
