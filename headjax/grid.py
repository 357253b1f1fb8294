"""Score grids: one number per (layer, head), with names; saved, loaded, selected and classified.

A `HeadGrid` is what every sweep returns and every figure and table takes. A `GridSet` is many of them,
of any mix of models, relations and measures. `scores.csv` is for other programs; `scores.npz` loses nothing:
figures and tables are drawn again from it without the model.
"""

import csv
import html
import os
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from jax import Array
from jaxtyping import Bool, Float

from headjax.axes import Head, by_score
from headjax.errors import InputError, shown
from headjax.inputs import check_count
from headjax.io import atomic_write, import_extra
from headjax.measures import SUPPRESSION, Measure, about

CSV_COLUMNS = (
    *("model", "relation", "category", "kind", "layer", "head", "score", "n_pairs"),
    *("template", "metric", "stderr", "clean", "clean_stderr"),  # empty where not used
    *("analysis", "replacement", "positions"),
    *("measure", "part", "sign"),  # of which `kind` is made, with the metric of effects
)
# What tells grids apart.
COORDINATES = (
    *("model", "analysis", "measure", "part", "sign"),
    *("relation", "template", "metric", "replacement", "positions"),
)


class Coordinate(NamedTuple):
    """What an analysis says of a grid before there is one; the fields are those of `HeadGrid`."""

    measure: str
    relation: str
    part: str = ""
    sign: str = ""
    metric: str = ""

    @property
    def kind(self) -> str:
        """What was measured in one word, as files and users spell it: `dynamic_no_context_suppression`."""
        metric = self.metric if about(self.measure).kind_has_metric else ""
        return "_".join(filter(None, (self.measure, self.part, metric, self.sign)))


def sentence(word: str) -> str:
    """`my_score` as `My score`."""
    text = word.replace("_", " ")
    return text[:1].upper() + text[1:]


@dataclass(frozen=True, eq=False)
class HeadGrid:
    """One number for each head of one model, and what it was measured on.

    Arrays become float32 numpy arrays. `model` is the display name ("GPT-2 xl"), `relation` the id, `name`
    the relation's display name (made from the id if not given). `measure` is what was measured ("static",
    "ablation"), `part` which part of it where it has several (dynamic scores "context" and "no_context",
    attention "induction", paths "query"), `sign` "suppression" where the sign was turned, `metric` what an
    effect is measured by. `n_pairs` counts the pairs, or prompts, behind each score; `samples` holds the
    values of each of them, `stderr` the standard error of their mean.
    `clean` is what an effect is held against: the mean over the same prompts of the metric itself where no
    head is touched (of path patching, which gives a percentage: of the logit difference), and its error.
    `analysis` is the name under which the run asked for it; `replacement` and `positions` say what an
    ablation put in a head's place, and where.
    """

    scores: Float[Array | np.ndarray, "L H"]
    model: str
    relation: str
    category: str
    measure: str
    n_pairs: int
    part: str = ""
    sign: str = ""
    name: str = ""
    template: str = ""
    metric: str = ""
    stderr: Float[Array | np.ndarray, "L H"] | None = None
    samples: Float[Array | np.ndarray, "N L H"] | None = None
    clean: float | None = None
    clean_stderr: float | None = None
    analysis: str = ""
    replacement: str = ""
    positions: str = ""

    def __post_init__(self):
        for field in ("scores", "stderr", "samples"):
            if getattr(self, field) is not None:
                object.__setattr__(self, field, np.asarray(getattr(self, field), np.float32))
        if not self.name:
            object.__setattr__(self, "name", sentence(self.relation))

    @property
    def kind(self) -> str:
        """Measure, part and sign in one word (`Coordinate.kind`)."""
        return Coordinate(self.measure, self.relation, self.part, self.sign, self.metric).kind

    @property
    def about(self) -> Measure:
        """What is known about its numbers."""
        return about(self.measure)

    def __repr__(self) -> str:
        named = (self.model, self.analysis, self.kind, self.relation, self.metric, self.template)
        L, H = self.scores.shape
        return f"HeadGrid({', '.join(filter(None, named))}: {L} layers x {H} heads, {self.n_pairs} pairs)"

    def plot(self, **how: Any) -> Any:
        """A heat map (`headjax.figures.plot_grids`); a figure that notebooks show."""
        return GridSet((self,)).plot(**how)

    def _repr_html_(self) -> str:
        """A small heat map, a cell a head; hovering says which and how much."""
        largest = float(np.nanmax(np.abs(self.scores))) if np.isfinite(self.scores).any() else 1.0
        signed = self.about.helps != 0 or bool((self.scores < 0).any())
        rows = []
        for head in range(self.scores.shape[1]):
            cells = []
            for layer in range(self.scores.shape[0]):
                score = float(self.scores[layer, head])
                strength = 0.0 if np.isnan(score) else min(abs(score) / (largest if signed else 1.0), 1.0)
                color = "178,24,43" if score > 0 or not signed else "33,102,172"
                style = f"width:9px;height:9px;padding:0;background:rgba({color},{strength:.2f})"
                cells.append(f'<td title="L{layer}H{head} {score:.3g}" style="{style}"></td>')
            rows.append(f"<tr>{''.join(cells)}</tr>")
        table = "border-collapse:collapse;border:1px solid #999;display:inline-table"
        return (
            f'<div><div>{html.escape(repr(self))}</div><table style="{table}">{"".join(rows)}</table></div>'
        )

    def top(self, k: Any = 5) -> list[tuple[Head, float]]:
        """The k heads with the highest scores, best first; ties by layer, then head; NaN last."""
        return [(head, float(self.scores[head])) for head in by_score(self.scores, check_count("k", k))]


@dataclass(frozen=True, eq=False)
class GridSet:
    """Grids in the order they were computed."""

    grids: tuple[HeadGrid, ...] = ()

    def __iter__(self) -> Iterator[HeadGrid]:
        return iter(self.grids)

    def __len__(self) -> int:
        return len(self.grids)

    def __add__(self, other: "GridSet") -> "GridSet":
        return GridSet(self.grids + other.grids)

    def __getitem__(self, word: str) -> "GridSet":
        """The grids that a word picks out: of a metric, a kind ("static"), a measure, a part ("induction"), a
        sign, a relation, a template, an analysis or a model, the first of these that it fits.

        Raises InputError, with the words there are, where it fits none.
        """
        words = ("metric", "kind", "measure", "part", "sign", "relation", "template", "analysis", "model")
        for field in words:
            if own := self.select(**{field: word}):
                return own
        known = {value for f in ("metric", "kind", "relation") for value in self.values(f) if value}
        raise InputError(
            f"grids are picked by {', '.join(sorted(known)) or 'nothing, there are none'}; got {shown(word)}"
        )

    @property
    def one(self) -> HeadGrid:
        """The only grid. Raises InputError, with what tells them apart, where there are several or none."""
        if len(self) != 1:
            apart = {f: self.values(f) for f in COORDINATES if len(self.values(f)) > 1}
            told = "; ".join(f"{field}: {', '.join(map(str, values))}" for field, values in apart.items())
            rule = "one grid is meant: pick it by [...] or select(...)"
            raise InputError(f"{rule}; here are {len(self)}{'; ' * bool(told)}{told}")
        return self.grids[0]

    def top(self, k: Any = 5) -> list[tuple[Head, float]]:
        """The k heads with the highest scores of the only grid (`HeadGrid.top`)."""
        return self.one.top(k)

    def plot(self, **how: Any) -> Any:
        """The grids side by side as heat maps (`figures.plot_grids`); a figure that notebooks show."""
        from headjax.figures import plot_grids

        return plot_grids(self, **how)

    def to_dataframe(self) -> Any:
        """A row for each grid, layer and head, in the columns of scores.csv, as a pandas DataFrame."""
        pandas = import_extra("pandas")
        return pandas.DataFrame(list(_rows(self)), columns=list(CSV_COLUMNS))

    def to_xarray(self) -> Any:
        """The scores [grid, layer, head] as an xarray DataArray, coordinates along the first axis; the grids
        must be of one size."""
        xarray = import_extra("xarray")
        if len({grid.scores.shape for grid in self}) > 1:
            raise InputError(
                f"grids of one array are of one size; here are {', '.join(self.values('model'))}"
            )
        coordinates = {f: ("grid", [getattr(grid, f) for grid in self]) for f in COORDINATES}
        scores = np.stack([grid.scores for grid in self]) if self.grids else np.zeros((0, 0, 0), np.float32)
        return xarray.DataArray(scores, dims=("grid", "layer", "head"), coords=coordinates, name="score")

    def __repr__(self) -> str:
        what = ", ".join(f"{len(self.select(kind=kind))} {kind}" for kind in self.values("kind"))
        return f"GridSet({what or 'empty'})"

    def _repr_html_(self) -> str:
        shown = "".join(grid._repr_html_() for grid in self.grids[:4])
        more = f"<p>and {len(self) - 4} more: {html.escape(repr(self))}</p>" if len(self) > 4 else ""
        return f"<div>{shown}{more}</div>"

    def select(self, **coordinates) -> "GridSet":
        """The grids whose fields have these values: `select(model="Phi-2", measure=("static", "dynamic"))`.

        A list, tuple or set means any of its members. Nothing that fits gives an empty set.
        """
        known = [*HeadGrid.__dataclass_fields__, "kind"]
        if unknown := coordinates.keys() - set(known):
            raise InputError(f"grids have the fields {', '.join(known)}; got {shown(min(unknown))}")
        wanted = {
            field: value if isinstance(value, list | tuple | set | frozenset) else (value,)
            for field, value in coordinates.items()
        }
        return GridSet(
            tuple(grid for grid in self if all(getattr(grid, f) in values for f, values in wanted.items()))
        )

    def values(self, field: str) -> tuple:
        """The different values of a field ("model", "measure", "kind", ...) in order of first appearance."""
        return tuple(dict.fromkeys(getattr(grid, field) for grid in self))


def save_csv(grids: GridSet, path: str | Path) -> None:
    """Writes one row per grid, layer and head; every number reads back as the same float32."""
    with atomic_write(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(CSV_COLUMNS)
        for row in _rows(grids):
            # str() of a numpy float32 is the shortest text that reads back exactly.
            writer.writerow("" if cell is None else str(cell) for cell in row)


def _rows(grids: GridSet) -> Iterator[tuple]:
    """The rows of scores.csv; None where a column does not apply."""
    for grid in grids:
        before = (grid.model, grid.relation, grid.category, grid.kind)
        after = (grid.n_pairs, grid.template, grid.metric)
        more = (grid.clean, grid.clean_stderr, grid.analysis, grid.replacement, grid.positions)
        more += (grid.measure, grid.part, grid.sign)
        for at, score in np.ndenumerate(grid.scores):
            yield *before, *at, score, *after, None if grid.stderr is None else grid.stderr[at], *more


# scores.npz. A row is a grid. For each kind:
#   KIND                           float32 [row, layer, head]
#   KIND.stderr, KIND.samples      float32 [row, layer, head], [row, prompt, layer, head]; only where measured
#   KIND.relation, .name, .category, .model, .template, .metric,                text [row]
#   KIND.measure, .part, .sign, .analysis, .replacement, .positions             text [row]
#   KIND.n_pairs, .n_layers, .n_heads, .n_samples                   int [row]
#   KIND.clean, .clean_stderr      float64 [row]; NaN where there is none
# Grids of different sizes are padded with NaN to the largest; the sizes say what is theirs.
_TEXTS = (
    "relation",
    "name",
    "category",
    "model",
    "template",
    "metric",
    "measure",
    "part",
    "sign",
    "analysis",
    "replacement",
    "positions",
)
ZIP_END = 22  # bytes of the record at the end of a zip archive without a comment
_ARRAYS = ("scores", "stderr", "samples")
_CLEAN = ("clean", "clean_stderr")


def save_npz(grids: GridSet, path: str | Path) -> None:
    """Writes everything the grids hold: for each kind an array [row, layer, head] and a coordinate for
    each row, under keys like `static`, `static.relation`, `static.n_pairs` (the comment above lists them)."""
    arrays = {}
    for kind in grids.values("kind"):
        rows = grids.select(kind=kind).grids
        for field in _TEXTS:
            arrays[f"{kind}.{field}"] = np.array([getattr(grid, field) for grid in rows], dtype=np.str_)
        arrays[f"{kind}.n_pairs"] = np.array([grid.n_pairs for grid in rows])
        arrays[f"{kind}.n_layers"], arrays[f"{kind}.n_heads"] = np.array(
            [grid.scores.shape for grid in rows]
        ).T
        arrays[f"{kind}.n_samples"] = np.array(
            [0 if grid.samples is None else len(grid.samples) for grid in rows]
        )
        for field in _CLEAN:
            values = [getattr(grid, field) for grid in rows]
            arrays[f"{kind}.{field}"] = np.array([np.nan if value is None else value for value in values])
        for field in _ARRAYS:
            parts = [getattr(grid, field) for grid in rows]
            if any(part is not None for part in parts):
                arrays[kind if field == "scores" else f"{kind}.{field}"] = _pad(parts)
    with atomic_write(path, "wb") as file:
        np.savez_compressed(file, **arrays)


def _pad(parts: list[np.ndarray | None]) -> np.ndarray:
    """Stacks arrays of different sizes into one, filled up with NaN; None becomes all NaN."""
    sizes = np.max([part.shape for part in parts if part is not None], axis=0)
    padded = np.full((len(parts), *sizes), np.nan, np.float32)
    for row, part in zip(padded, parts, strict=True):
        if part is not None:
            row[tuple(slice(n) for n in part.shape)] = part
    return padded


def load_npz(path: str | Path) -> GridSet:
    """Reads what `save_npz` wrote, kind by kind. Raises InputError for a file that is not that."""
    try:
        with open(path, "rb") as opened:
            if not zipfile.is_zipfile(opened):
                raise InputError(f"{path} must be a scores.npz; it is no zip archive, or a truncated one")
            opened.seek(0)
            with np.load(opened, allow_pickle=False) as file:
                arrays = dict(file)
            if len(arrays) != _n_members(opened):
                raise InputError(f"{path} must be a whole scores.npz; its directory hides an array")
        return GridSet(tuple(grid for key in arrays if "." not in key for grid in _load_kind(arrays, key)))
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{path} must be a readable scores.npz; {error.strerror or error}") from error
    except KeyError as error:
        rule = "must be a scores.npz as headjax writes it"
        raise InputError(f"{path} {rule}; it lacks the array {shown(error)}") from error
    except Exception as error:  # numpy and zipfile raise whatever they like for a damaged archive
        raise InputError(f"{path} must be a whole scores.npz; {shown(error)}") from error


def _n_members(opened: BinaryIO) -> int:
    """How many files a zip archive says at its end that it holds; its directory may be damaged and name
    fewer. (zipfile does not compare; archives of ours hold fewer than 65,535 and no comment.)"""
    opened.seek(-ZIP_END, os.SEEK_END)
    return int.from_bytes(opened.read(ZIP_END)[10:12], "little")


def _load_kind(arrays: dict[str, np.ndarray], kind: str) -> Iterator[HeadGrid]:
    def column(field: str) -> list:
        return arrays[f"{kind}.{field}"].tolist()

    texts = zip(*(column(field) for field in _TEXTS), strict=True)
    counts = zip(column("n_pairs"), column("n_layers"), column("n_heads"), column("n_samples"), strict=True)
    for row, (text, (n_pairs, n_layers, n_heads, n_samples)) in enumerate(zip(texts, counts, strict=True)):
        stderr = arrays.get(f"{kind}.stderr")
        if stderr is not None:
            stderr = stderr[row, :n_layers, :n_heads]
        clean = {field: float(arrays[f"{kind}.{field}"][row]) for field in _CLEAN}
        yield HeadGrid(
            arrays[kind][row, :n_layers, :n_heads],
            n_pairs=n_pairs,
            stderr=None if stderr is None or np.isnan(stderr).all() else stderr,
            samples=arrays[f"{kind}.samples"][row, :n_samples, :n_layers, :n_heads] if n_samples else None,
            **dict(zip(_TEXTS, text, strict=True)),
            **{field: None if np.isnan(value) else value for field, value in clean.items()},
        )


def head_categories(
    grids: GridSet,
    threshold: float = 0.15,
    count_suppression: bool = True,
    measure: str = "static",
    part: str = "",
) -> dict[str, Bool[np.ndarray, "L H"]]:
    """Which heads of one model have which category: category -> mask.

    A head implements a relation when its score is above the threshold, strictly; it has a category when it
    implements any relation of it, plain or, with `count_suppression`, by suppression (Elhelo & Geva 2024,
    "MAPS"). Raises InputError for no grids and for grids of several models.
    """
    grids = grids.select(measure=measure, part=part, sign=("", SUPPRESSION) if count_suppression else "")
    if len(grids.values("model")) != 1 or len({grid.scores.shape for grid in grids}) != 1:
        scores = " ".join(filter(None, (measure, part, "scores")))
        raise InputError(f"heads are classified from the {scores} of one model; got {grids.values('model')}")
    masks = {category: np.zeros(grids.grids[0].scores.shape, bool) for category in grids.values("category")}
    for grid in grids:
        # In float32 on both sides, so that 6 hits of 40 are not above 0.15.
        masks[grid.category] |= grid.scores > np.float32(threshold)
    return masks


def category_counts(categories: dict[str, Bool[np.ndarray, "L H"]]) -> tuple[int, ...]:
    """How many heads are in 0, 1, 2, 3, 4 categories (more where there are more categories)."""
    return tuple(np.bincount(np.sum(list(categories.values()), axis=0).ravel(), minlength=5).tolist())


def category_count_name(n: int) -> str:
    """What heads with n categories are called in figures and tables."""
    return {0: "Unclassified", 1: "1 category"}.get(n, f"{n} categories")
