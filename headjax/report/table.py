"""Tables and pages: what is written to a run's directory besides scores and figures."""

import csv
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from headjax.io import atomic_write, import_extra, read_table
from headjax.report.markdown import markdown_text


class Table(NamedTuple):
    """Typed rows, written as NAME.csv and in further forms.

    Attributes:
      text: what is printed of them.
      shown: how LaTeX and Markdown show them, as lines of cells, the titles first; else as they are in CSV.
    """

    name: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    text: str = ""
    shown: Sequence[Sequence[str]] = ()

    def write(self, directory: Path, forms: Sequence[str] = ()) -> list[Path]:
        """Writes it as CSV and in `forms` (FORMS); None is an empty cell, several words of a cell stand with
        spaces between. Raises InputError where parquet's packages are not installed."""
        path = directory / f"{self.name}.csv"
        with atomic_write(path) as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(self.columns)
            writer.writerows(map(_cells, self.rows))
        return [path, *(FORMS[form](self, path.with_suffix(f".{form}")) for form in forms)]

    def latex(self) -> str:
        """A tabular (package booktabs); numbers stand at the right, in mathematics."""
        title, *lines = self._lines()
        columns = ["r" if _is_numeric(line[i] for line in lines) else "l" for i in range(len(title))]
        body = [" & ".join(map(_latex, line)) + r" \\" for line in (title, *lines)]
        begin, end = rf"\begin{{tabular}}{{{''.join(columns)}}}", r"\end{tabular}"
        return "\n".join([begin, r"\toprule", body[0], r"\midrule", *body[1:], r"\bottomrule", end]) + "\n"

    def markdown(self) -> str:
        """A table whose cells are text, whatever is in them."""
        title, *lines = self._lines()
        sides = ["---:" if _is_numeric(line[i] for line in lines) else "---" for i in range(len(title))]
        rows = (title, *lines)
        title, *body = (f"| {' | '.join(map(markdown_text, line))} |" for line in rows)
        return "\n".join([title, f"| {' | '.join(sides)} |", *body]) + "\n"

    def to_dataframe(self) -> Any:
        """The rows as a pandas DataFrame; an empty cell of numbers is missing."""
        pandas = _import("pandas")
        frame = pandas.DataFrame([_cells(row) for row in self.rows], columns=list(self.columns))
        for column in frame.columns:
            numbers = [isinstance(cell, int | float) for cell in frame[column]]
            if any(numbers):
                frame[column] = pandas.to_numeric(frame[column], errors="coerce")
        return frame

    def _lines(self) -> list[list[str]]:
        """For people: the titles, then the rows; columns in which nothing stands are left out."""
        rows = [list(map(cell_text, _cells(row))) for row in self.rows]
        title, *lines = self.shown or [[column.replace("_", " ") for column in self.columns], *rows]
        kept = [i for i in range(len(title)) if not lines or {line[i] for line in lines} - {"", "-"}]
        return [[line[i] for i in kept] for line in (title, *lines)]


class Page(NamedTuple):
    """Text under the name of its file."""

    name: str
    content: str
    text: str = ""

    def write(self, directory: Path, forms: Sequence[str] = ()) -> list[Path]:
        """Writes it; it has one form."""
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


def cell_text(cell: Any) -> str:
    """A cell for people: numbers with three digits, small ones as a power of ten; a dash for none."""
    if cell is None or cell != cell:
        return "-"
    return f"{cell:.3g}" if isinstance(cell, float) else str(cell)


def _cells(row: Sequence[Any]) -> list[Any]:
    return [" ".join(map(str, cell)) if isinstance(cell, tuple) else cell for cell in row]


# --- forms ----------------------------------------------------------------------------------------------


def _write_text(make: Callable[[Table], str]) -> Callable[[Table, Path], Path]:
    def write(table: Table, path: Path) -> Path:
        with atomic_write(path) as file:
            file.write(make(table))
        return path

    return write


def _write_parquet(table: Table, path: Path) -> Path:
    _import("pyarrow")
    with atomic_write(path, "wb") as file:
        table.to_dataframe().to_parquet(file, index=False)
    return path


FORMS = {"tex": _write_text(Table.latex), "md": _write_text(Table.markdown), "parquet": _write_parquet}


def check_forms(forms: Sequence[str]) -> None:
    """Raises InputError where a form needs packages that are not installed."""
    for name in ("pandas", "pyarrow") if "parquet" in forms else ():
        _import(name)


def _import(name: str) -> Any:
    rule = "tables in parquet need pandas and pyarrow (pip install 'headjax[tables]')"
    return import_extra(name, f"{rule}; there is no {name}")


_VALUE = r"[-+]?\d+(?:\.\d+)?(?:e[-+]\d+)?"
_LATEX_CODES = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    **{character: "\\" + character for character in "&%$#_{}"},
}


def _is_numeric(cells: Any) -> bool:
    """Whether a column holds nothing but numbers and dashes."""
    known = [cell for cell in cells if cell not in ("", "-")]
    return bool(known) and all(re.fullmatch(f"<?{_VALUE}", cell) for cell in known)


def _latex(cell: str) -> str:
    """A cell in LaTeX: numbers in mathematics, 3e-12 as a power of ten, special characters written out."""
    if re.fullmatch(_VALUE, cell):
        return f"${_of_ten(cell)}$"
    if re.fullmatch(f"<{_VALUE}", cell):  # of a p-value, of which no more than the power is known
        return f"$<10^{{{int(cell.partition('e')[2])}}}$"
    text = re.sub(r"[\\~^<>|&%$#_{}]", lambda special: _LATEX_CODES[special[0]], cell)
    return re.sub(
        rf"({_VALUE}) \+- ({_VALUE})", lambda pair: f"${_of_ten(pair[1])} \\pm {_of_ten(pair[2])}$", text
    )


def _of_ten(number: str) -> str:
    """A number in mathematics, 3e-12 as a power of ten."""
    digits, e, exponent = number.partition("e")
    return rf"{digits} \cdot 10^{{{int(exponent)}}}" if e else digits
