"""The page as one file: data packed, the library and the style put in, all text escaped.

Nothing of a model's or a user's text comes near a script: what scripts show lies in a block of base64, and
becomes text, never markup, in the page. A policy in the head lets no request out and no other script run.
"""

import base64
import hashlib
import json
import zlib
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from headjax.errors import InputError
from headjax.grid import GridSet
from headjax.io import atomic_write
from headjax.report.page.data import VERSION, describe_grid, in_order
from headjax.report.parts import HeadNotes
from headjax.report.summary import with_error

# What is said of a run (`describe_run`), and its grids.
Run = tuple[Mapping[str, Any], GridSet]
LONGEST = 160  # text in a cell of a table


def write_page(path: Path, runs: Sequence[Run], title: str = "") -> Path:
    """Writes the page of these runs, side by side where they are several."""
    with atomic_write(path) as file:
        file.write(render(runs, title))
    return path


def render(runs: Sequence[Run], title: str = "") -> str:
    """The page as HTML. Raises InputError for what another version said of a run."""
    for said, _ in runs:
        if said.get("version") != VERSION:
            rule = f"a page is made of what version {VERSION} says of a run"
            raise InputError(f"{rule}; got {said.get('version')}: run it again")
    scripts = [_asset("vendor/d3.min.js"), _asset("vendor/plot.min.js"), _asset("page.js")]
    return _template().render(
        title=title or " and ".join(dict.fromkeys(said["name"] for said, _ in runs)) or "headjax",
        runs=[said for said, _ in runs],
        parts=_in_sections([said for said, _ in runs]),
        style=_asset("page.css"),
        scripts=scripts,
        # Only these scripts run, by their digests.
        allowed=" ".join(f"'sha256-{_digest(script)}'" for script in scripts),
        data=pack(runs),
    )


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters |= {
        "number": _number,
        "clean": with_clean,
        "words": lambda text: text.replace("_", " "),
    }
    return environment.from_string(_asset("page.html"))


def _in_sections(runs: Sequence[Mapping[str, Any]]) -> list[tuple[int, int, Mapping[str, Any]]]:
    """(run, place in it, part) in the order of the page: what runs have alike stands together. What is said
    of single heads is on their cards."""
    parts = [(r, p, part) for r, run in enumerate(runs) for p, part in enumerate(run["parts"])]
    titles = list(dict.fromkeys(part["title"] for _, _, part in parts))
    shown = [one for one in parts if one[2]["part"] != HeadNotes.__name__]
    return sorted(shown, key=lambda one: titles.index(one[2]["title"]))


def pack(runs: Sequence[Run]) -> str:
    """What the scripts show: base64 of deflated bytes, 4 for the length of the JSON, the JSON, the arrays.

    Scores are float32 as they are; errors are rounded to 12 bits, of which the page shows two digits. An
    array's bytes lie in four planes, first those of all signs and exponents: so they deflate best.
    """
    arrays: list[bytes] = []
    place = 0

    def put(array: np.ndarray) -> dict[str, int]:
        nonlocal place
        planes = np.ascontiguousarray(array, "<f4").reshape(-1).view(np.uint8).reshape(-1, 4).T
        arrays.append(planes.tobytes())
        at, place = place, place + planes.size
        return {"at": at, "n": array.size}

    described = [
        {
            **said,
            "grids": [
                describe_grid(grid)
                | {
                    "scores": put(grid.scores),
                    "stderr": None if grid.stderr is None else put(_round(grid.stderr)),
                }
                for grid in in_order(grids)
            ],
        }
        for said, grids in runs
    ]
    text = json.dumps({"runs": described}, ensure_ascii=False, allow_nan=False).encode()
    content = len(text).to_bytes(4, "little") + text + b"".join(arrays)
    return base64.b64encode(zlib.compress(content, 9)).decode()


def _round(array: np.ndarray) -> np.ndarray:
    """float32 with the last 12 of 23 bits rounded away: to a relative 0.00025."""
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
    rounded = ((bits + np.uint32(1 << 11)) & ~np.uint32((1 << 12) - 1)).view(np.float32)
    return np.where(np.isfinite(array), rounded, array)


@cache
def _asset(name: str) -> str:
    """A file that lies beside this one, also in a wheel that is not unpacked."""
    return files("headjax.report.page").joinpath(name).read_text("utf-8")


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _number(value: Any) -> str:
    """A cell of a table: three digits of a number, a dash for none, words of a list with commas, of a long
    text its beginning (the table's file has it whole)."""
    if value is None:
        return "-"
    if isinstance(value, list):
        return ", ".join(map(_number, value))
    text = f"{value:.3g}" if isinstance(value, float) else str(value)
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def with_clean(row: Mapping[str, Any], name: str) -> str:
    """A clean value with its limits, or its error."""
    if name == "accuracy":
        return f"{row[name]:.2f} [{row['accuracy_low']:.2f}, {row['accuracy_high']:.2f}]"
    return with_error(row[name], row[f"{name}_stderr"], sign=False).replace("+-", "±")
