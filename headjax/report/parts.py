"""What the page can show of an analysis beside its grids: `Analysis.show` says it in these words.

Each part is drawn in one way, whichever analysis it comes from. Values are plain: text, numbers, None, tuples
and mappings of them. A number that is none (NaN) is shown as a dash.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from headjax.report.table import Table


class Rows(NamedTuple):
    """A table. `verdict`: the column whose word tells whether a row agrees ("agrees", "differs", else)."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple, ...]
    note: str = ""
    verdict: str = ""


class Line(NamedTuple):
    """A line of a chart with the limits of its band; `role` "main", "reference" or "control" is its style."""

    label: str
    role: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


class Chart(NamedTuple):
    """One panel of curves."""

    title: str
    lines: tuple[Line, ...]


class Curves(NamedTuple):
    """Panels with the same axes."""

    title: str
    x: str
    y: str
    charts: tuple[Chart, ...]
    note: str = ""


class Point(NamedTuple):
    """A mark in a chart: numbers along both axes, or in `Dots` the name of a row at `y`."""

    x: float
    y: float | str
    group: str
    label: str = ""


class Dots(NamedTuple):
    """Numbers along x, a row for each name; a colour and symbol for each group."""

    title: str
    x: str
    points: tuple[Point, ...]
    note: str = ""


class Scatter(NamedTuple):
    """Numbers against numbers of the same unit, with the line where they are the same."""

    title: str
    x: str
    y: str
    points: tuple[Point, ...]
    note: str = ""


class CategoryMap(NamedTuple):
    """Which heads have which category by the grids of an analysis, at whatever threshold the reader sets.

    Attributes:
      analysis: the name whose grids these are, plain ones and of suppression.
    """

    title: str
    analysis: str
    note: str = ""


class HeadNotes(NamedTuple):
    """Rows about single heads of a model, shown on a head's card: label (`L9H6`) -> rows."""

    title: str
    model: str
    columns: tuple[str, ...]
    heads: Mapping[str, tuple[tuple, ...]]


class Pattern(NamedTuple):
    """The attention of some heads of a model over one prompt.

    Attributes:
      text: of the prompt; tokens: as text; source: the place of the word that the answer comes from, -1 for
        none.
      answer: the right next word; distractor: a wrong one, "" for none.
      heads: labels; attention: for each of them the rows of the lower triangle, one after the other, in steps
        of 1/255: base64 of bytes.
    """

    model: str
    relation: str
    text: str
    tokens: tuple[str, ...]
    source: int
    answer: str
    distractor: str
    heads: tuple[str, ...]
    attention: str


class Attention(NamedTuple):
    """Attention patterns; the reader chooses prompt and heads."""

    title: str
    patterns: tuple[Pattern, ...]
    note: str = ""


class Node(NamedTuple):
    """A head of a circuit, its role, and its effect in percent with its error."""

    head: str
    role: str
    effect: float
    stderr: float


class Edge(NamedTuple):
    """From a head to another, or to the logits (""): the effect in percent.

    `together`: it was measured into all heads that this head has such edges to, at once.
    """

    start: str
    end: str
    input: str
    effect: float
    together: bool


class Graph(NamedTuple):
    """A circuit as a picture: heads by layer, and the paths that were measured."""

    title: str
    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]
    note: str = ""


Part = Rows | Curves | Dots | Scatter | CategoryMap | HeadNotes | Attention | Graph
MOST_ROWS = 300  # of a table on the page; its file has them all


def rows_of(table: Table) -> Rows:
    """A table of a run as the page shows it."""
    title, rows = table.name.replace("_", " ").capitalize(), tuple(map(tuple, table.rows[:MOST_ROWS]))
    more = f"{MOST_ROWS} of {len(table.rows)} rows; {table.name}.csv has all." * (len(table.rows) > MOST_ROWS)
    return Rows(title, tuple(table.columns), rows, more)


def plain(value: Any) -> Any:
    """The value as JSON holds it: named tuples as objects, parts with what they are, numbers that are none
    as null."""
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        part = {"part": type(value).__name__} if isinstance(value, Part) else {}
        return part | {name: plain(one) for name, one in zip(value._fields, value, strict=True)}
    if isinstance(value, Mapping):
        return {str(name): plain(one) for name, one in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(one) for one in value]
    if hasattr(value, "item"):
        value = value.item()
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if abs(value) < float("inf") else None
    return str(value)
