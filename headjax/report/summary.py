"""Score grids in a few rows: the best heads of each relation, what was skipped, heads by category count.

And before them what the model does without any edit: every effect is to be read beside it.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from headjax.axes import by_score
from headjax.grid import GridSet, HeadGrid, category_count_name, category_counts, head_categories
from headjax.report.table import aligned
from headjax.result import CleanRow
from headjax.stats import wilson
from headjax.wording import measured, unit


def clean_cells(rows: Sequence[CleanRow]) -> list[tuple[str, ...]]:
    """The rows as they are shown, their titles first."""
    lines = [("model", "relation", "prompts", "n", "accuracy", "log-probability", "logit difference")]
    lines += [
        (
            *(row.model, row.relation, row.prompts.replace("_", " "), str(row.n_prompts)),
            _share_text(row.accuracy, row.accuracy_low, row.accuracy_high),
            with_error(row.logprob, row.logprob_stderr, sign=False),
            with_error(row.logit_diff, row.logit_diff_stderr, sign=False),
        )
        for row in rows
    ]
    return lines


def clean_table(rows: Sequence[CleanRow]) -> str:
    """The rows as aligned text."""
    return aligned(clean_cells(rows), numbers=(3,))


class SummaryRow(NamedTuple):
    """One row of summary.csv; a cell is empty where it does not apply.

    Attributes:
      measured, unit: what the numbers are, in words, and their unit.
      clean, clean_stderr: of effects, what they are held against (`HeadGrid`).
      maximum: the highest score, or the effect that helps the answer most; empty where no head has any.
      low, high: of shares, the 95 % limits of the highest (Wilson), as of one head looked at alone: the best
        of many heads is also the luckiest.
      heads: of relation scores, how many heads are above the threshold; or are in that many categories.
      certain_heads: of these, those whose limits are wholly above it.
      best_heads: the heads with the highest scores, or those that help the answer most, with errors.
      opposing_heads: of effects, the heads that work against the answer most.
    """

    model: str
    relation: str = ""
    category: str = ""
    analysis: str = ""
    kind: str = ""
    measured: str = ""
    unit: str = ""
    template: str = ""
    metric: str = ""
    replacement: str = ""
    positions: str = ""
    n_pairs: int | str = ""
    clean: float | str = ""
    clean_stderr: float | str = ""
    maximum: float | str = ""
    low: float | str = ""
    high: float | str = ""
    heads: int | str = ""
    certain_heads: int | str = ""
    best_heads: str = ""
    opposing_heads: str = ""
    skipped: str = ""


def skipped_row(model: str, relation: str, category: str, reason: str) -> SummaryRow:
    """The row of a relation that was left out for this model, and why."""
    return SummaryRow(model, relation, category, skipped=reason)


def score_rows(grids: GridSet, threshold: float = 0.15, k: int = 3) -> list[SummaryRow]:
    """One row per grid: its k best heads (`L16H2 0.93`) and, of effects, the k that work against the answer.

    The threshold is for relation scores alone. Heads whose number is 0 or NaN are never named.
    """
    rows = []
    for grid in grids:
        about = grid.about
        helpful = grid.scores * (about.helps or 1)
        cells: dict[str, Any] = {
            "best_heads": _name(grid, np.where(helpful > 0, helpful, np.nan), k),
        }
        if np.nanmax(helpful, initial=0.0) > 0:
            best = np.unravel_index(np.nanargmax(helpful), grid.scores.shape)
            cells["maximum"] = _shortest(grid.scores[best])
            if about.is_share:
                cells["low"], cells["high"] = wilson(grid.scores[best], grid.n_pairs).tolist()
        if about.helps:
            cells["opposing_heads"] = _name(grid, np.where(helpful < 0, -helpful, np.nan), k)
            cells |= {"clean": _cell(grid.clean), "clean_stderr": _cell(grid.clean_stderr)}
        if about.is_relation_score:
            low, _ = wilson(grid.scores, grid.n_pairs)
            above = grid.scores > np.float32(threshold)
            cells |= {"heads": int(above.sum()), "certain_heads": int((above & (low > threshold)).sum())}
        rows.append(
            SummaryRow(
                *(grid.model, grid.relation, grid.category, grid.analysis, grid.kind),
                *(measured(grid), unit(grid), grid.template, grid.metric),
                *(grid.replacement, grid.positions, grid.n_pairs),
                **cells,
            )
        )
    return rows


def _name(grid: HeadGrid, strength: np.ndarray, k: int) -> str:
    """The k strongest heads with their scores, strongest first; those of strength NaN are left out."""
    heads = by_score(strength, min(k, int(np.isfinite(strength).sum())))
    errors = [None if grid.stderr is None else float(grid.stderr[head]) for head in heads]
    signed = grid.about.helps != 0
    return ", ".join(
        f"{head} {with_error(float(grid.scores[head]), error, signed)}"
        for head, error in zip(heads, errors, strict=True)
    )


def with_error(value: float | None, error: float | None = None, sign: bool = True) -> str:
    """`+0.93 +- 0.05`; a dash where there is no value. Small numbers keep a digit, none is shown as 0.00."""
    if value is None or math.isnan(value):
        return "-"
    digits = ".2f" if value == 0 or abs(value) >= 0.01 else ".0e"
    known = error is not None and not math.isnan(error)
    return f"{value:{'+' * sign}{digits}}" + (f" +- {error:.2g}" if known else "")


def _shortest(score: np.float32) -> float:
    """The number whose shortest text is that of the float32."""
    return float(str(score))


def _cell(value: float | None) -> float | str:
    return "" if value is None else value


def category_rows(
    grids: GridSet, threshold: float = 0.15, count_suppression: bool = True
) -> list[SummaryRow]:
    """One row per model and number of categories, 0 to 4: how many heads have that many."""
    return [
        SummaryRow(model, category=category_count_name(n), kind="static", heads=heads)
        for model in grids.select(measure="static").values("model")
        for n, heads in enumerate(
            category_counts(head_categories(grids.select(model=model), threshold, count_suppression))
        )
    ]


_NUMBERS = ("n_pairs", "maximum", "low", "high", "heads", "certain_heads")
# What a block of rows has in common, and its heading says.
_COMMON = ("analysis", "kind", "measured", "unit", "metric", "replacement", "positions")


def summary_text(rows: Sequence[SummaryRow], threshold: float) -> str:
    """The rows as aligned text: a block for each measure of each analysis, heads by number of categories, and
    what was skipped, once."""
    blocks: dict[tuple, list[SummaryRow]] = {}
    skipped: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row.skipped:
            skipped.setdefault((row.relation, row.skipped), []).append(row.model)
        else:
            blocks.setdefault(tuple(getattr(row, field) for field in _COMMON), []).append(row)
    several = len({row.model for row in rows}) > 1
    texts = []
    for own in blocks.values():
        bare = [row._replace(**dict.fromkeys(_COMMON, "")) for row in own]
        named = [row for row in bare if row.best_heads or row.opposing_heads or not own[0].measured]
        lines = [_heading(own[0], threshold), *([summary_table(named)] if named else [])]
        if without := [
            " ".join(filter(None, (several * row.model, row.relation))) for row in bare if row not in named
        ]:
            lines.append(f"Of no head: {', '.join(without)}")
        texts.append("\n".join(lines))
    if skipped:
        lines = [
            relation + f" ({', '.join(models)})" * several + f": {reason}"
            for (relation, reason), models in skipped.items()
        ]
        texts.append("\n".join(["Skipped", *lines]))
    return "\n\n".join(texts)


def _heading(row: SummaryRow, threshold: float) -> str:
    if not row.measured:
        return f"Heads by number of categories, at a score above {threshold:g}"
    how = ", ".join(filter(None, (row.analysis, row.replacement, row.positions)))
    heads = f"; heads: above {threshold:g}" if row.heads != "" else ""
    return f"{row.measured}{f' in {row.unit}' * bool(row.unit)}{f' ({how})' * bool(how)}{heads}"


def summary_table(rows: Sequence[SummaryRow]) -> str:
    """The rows as aligned text for a terminal; a column that is empty, or the same all along, is left out."""
    lines, numbers = _columns(rows)
    return aligned(lines, numbers)


def summary_cells(rows: Sequence[SummaryRow]) -> list[tuple[str, ...]]:
    """The rows as tables show them, their titles first."""
    return _columns([row._replace(kind="") for row in rows])[0]


def _columns(rows: Sequence[SummaryRow]) -> tuple[list[tuple[str, ...]], list[int]]:
    """Lines of cells, the titles first, and which columns are numbers."""
    columns = []
    for field in SummaryRow._fields:
        cells = [getattr(row, field) for row in rows]
        if set(cells) <= {""} or (len(set(cells)) == 1 and len(rows) > 1) or field == "clean_stderr":
            continue
        if field == "clean":
            cells = list(map(_clean_text, rows))
        if field in ("low", "high"):
            cells = ["" if cell == "" else f"{cell:.2f}" for cell in cells]
        texts = [with_error(cell, sign=False) if isinstance(cell, float) else str(cell) for cell in cells]
        columns.append((field, [field.replace("_", " "), *texts]))
    lines = list(zip(*(texts for _, texts in columns), strict=True))
    return lines, [i for i, (field, _) in enumerate(columns) if field in _NUMBERS]


def _clean_text(row: SummaryRow) -> str:
    """The clean value with its error or, of an accuracy, with its limits."""
    if row.clean == "":
        return ""
    if row.metric == "accuracy":
        return _share_text(row.clean, *wilson(row.clean, row.n_pairs))
    return with_error(row.clean, None if row.clean_stderr == "" else row.clean_stderr, sign=False)


def _share_text(share: float, low: float, high: float) -> str:
    return f"{share:.2f} [{low:.2f}, {high:.2f}]"
