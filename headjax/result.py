"""Result: what analyses found, in memory: grids, tables of rows, and what the unedited model does."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from headjax.grid import GridSet


class CleanRow(NamedTuple):
    """How well a model does on a set of prompts with no head touched; a row of clean.csv.

    Attributes:
      prompts: "task", those that are asked for the answer; "with_partners", those of them that have a
        corrupted partner, where these are fewer; "corrupted", the partners, asked for the same answer.
      accuracy: the share of prompts at which no token is more likely than the answer; low and high are its
        95 % limits (Wilson).
      logprob, logit_diff: means over the prompts and their standard errors. None where it cannot be told: a
        single prompt has no error, and without distractors there is no difference.
    """

    model: str
    relation: str
    prompts: str
    n_prompts: int
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    logprob: float
    logprob_stderr: float | None
    logit_diff: float | None
    logit_diff_stderr: float | None


@dataclass(frozen=True, eq=False)
class Result:
    """What one or several analyses found in one or several models.

    Attributes:
      grids: one number for each head, with coordinates.
      tables: name -> rows (NamedTuples), for what is no grid: curves, circuits, salient tokens.
      clean: what the model does on the prompts with no head touched: every effect is to be read beside it.
      analyses: name -> what found it (`Study.run` says it): how to show it on a page.
    """

    grids: GridSet = field(default_factory=GridSet)
    tables: Mapping[str, tuple] = field(default_factory=dict)
    clean: tuple[CleanRow, ...] = ()
    analyses: Mapping[str, Any] = field(default_factory=dict)

    def __add__(self, other: "Result") -> "Result":
        tables = {
            name: (*self.tables.get(name, ()), *other.tables.get(name, ()))
            for name in {**self.tables, **other.tables}
        }
        clean = tuple(dict.fromkeys((*self.clean, *other.clean)))
        return Result(self.grids + other.grids, tables, clean, {**self.analyses, **other.analyses})

    def to_dataframe(self) -> Any:
        """A row for each grid, layer and head (pandas)."""
        return self.grids.to_dataframe()

    def __repr__(self) -> str:
        tables = "".join(f", {name} ({len(rows)} rows)" for name, rows in self.tables.items())
        return f"Result: {self.grids!r}{tables}"

    def _repr_html_(self) -> str:
        return self.grids._repr_html_()
