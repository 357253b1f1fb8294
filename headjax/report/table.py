"""Tables and pages: what is written to a run's directory besides scores and figures."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from headjax.io import atomic_write, read_table


class Table(NamedTuple):
    """Typed rows, written as NAME.csv; `text` is what is printed of them."""

    name: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    text: str = ""

    def write(self, directory: Path) -> list[Path]:
        """Writes it; None is an empty cell, several words of a cell stand with spaces between."""
        path = directory / f"{self.name}.csv"
        with atomic_write(path) as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(self.columns)
            writer.writerows(map(_cells, self.rows))
        return [path]


class Page(NamedTuple):
    """Text under the name of its file."""

    name: str
    content: str
    text: str = ""

    def write(self, directory: Path) -> list[Path]:
        """Writes it."""
        with atomic_write(directory / self.name) as file:
            file.write(self.content)
        return [directory / self.name]


def read_rows(path: Path, row_type: Any) -> tuple:
    """The rows of a table, each a `row_type`. Raises InputError for another table."""
    return tuple(row_type(*row) for row in read_table(path, row_type.__annotations__))


def aligned(lines: Sequence[Sequence[str]], numbers: Sequence[int] = ()) -> str:
    """Lines of cells as text, two spaces between columns; the columns `numbers` stand at the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if i in numbers else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def _cells(row: Sequence[Any]) -> list[Any]:
    return [" ".join(map(str, cell)) if isinstance(cell, tuple) else cell for cell in row]
