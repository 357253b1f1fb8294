"""Published numbers that a run can be held against, with their citations.

A table is one CSV file: comment lines (the citation first), then a row a model, relation and kind with a
column a measure; `>0.95` is a bound. What the measures mean is in the files and in `experiments.compare`.
"""

import csv
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from headjax.errors import InputError
from headjax.io import read_json

TABLES = ("maps_scores", "maps_correlations", "maps_multi_token", "maps_causal", "ioi_copy_scores")
DIRECT_EFFECTS = "ioi_direct_effects"  # a number a head, in JSON
COMPARISONS = (*TABLES, DIRECT_EFFECTS)  # what a config's field `compare` may name
KEYS = ("model", "relation", "kind")  # the columns before the measures
_FOLDER = Path(__file__).parent


class Published(NamedTuple):
    """One published number. `model` is an alias; `bound` is ">" or "<" where the source gives no more."""

    model: str
    relation: str
    kind: str
    measure: str
    value: float
    bound: str = ""


def load_published(table: str) -> list[Published]:
    """Every number of a table of `TABLES`, row by row. Raises InputError for another name."""
    _, rows = _read(table)
    return [
        Published(
            *(row[field] for field in KEYS),
            measure,
            float(text.lstrip("<>")),
            text[0] if text[0] in "<>" else "",
        )
        for row in rows
        for measure, text in row.items()
        if text and measure not in KEYS
    ]


def citation(table: str) -> str:
    """Who published a table, and where."""
    return _read_direct_effects()["citation"] if table == DIRECT_EFFECTS else _read(table)[0]


def load_direct_effects() -> dict[str, Float[np.ndarray, "L H"]]:
    """Alias -> direct effect of every head on the indirect object's logit."""
    return {model: np.array(grid) for model, grid in _read_direct_effects()["grids"].items()}


def _read(table: str) -> tuple[str, list[dict[str, str]]]:
    """The citation and the rows as text."""
    if table not in TABLES:
        raise InputError(f"a published table is one of {', '.join(TABLES)}; got {table!r}")
    lines = (_FOLDER / f"{table}.csv").read_text("utf-8").splitlines()
    comments = [line for line in lines if line.startswith("#")]
    return comments[0].removeprefix("# "), list(csv.DictReader(lines[len(comments) :]))


def _read_direct_effects() -> dict:
    return read_json(_FOLDER / f"{DIRECT_EFFECTS}.json")
