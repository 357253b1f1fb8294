"""Writes the page about a trained model, docs/trained_model.md, and its figures from a finished run.

python -m experiments.trained.page out/trained [docs/trained_model.md]
"""

import shutil
from pathlib import Path

import numpy as np

from experiments.pages.agreement import Row
from experiments.pages.figures import draw_measures
from experiments.pages.finished import Finished, page_command, page_of_a_run, read_run
from experiments.trained import MODELS
from experiments.trained.page_text import write_text
from headjax.errors import InputError

PAGE = Path("docs/trained_model.md")
N_FIGURES = 2  # of the relations that agree most, and as many of those that agree least


def draw(found: Finished, folder: Path) -> list[Path]:
    """The page's figures, of which the run has drawn some."""
    chosen, model = choose(found.rows), found.about["models"][0]["name"]
    # Where no head is above the threshold, none shall look as if it were.
    threshold = found.about["config"]["report"]["threshold"]
    files = [draw_measures(row, folder / f"{row.relation.relation}.png", threshold) for row in chosen]
    copied = {"category_map": "category_map"} | {
        f"ablation_curves_{model}_{row.relation.relation}": f"{row.relation.relation}_curves"
        for row in chosen
    }
    for source, target in copied.items():
        files.append(folder / f"{target}.png")
        shutil.copyfile(found.directory / "figures" / f"{source}.png", files[-1])
    return files


def choose(rows: list[Row]) -> list[Row]:
    """Those whose static scores agree with ablation most, and those that agree least."""
    known = [row for row in rows if not np.isnan(row.rho["static", "ablation"])]
    ordered = sorted(known, key=lambda row: -row.rho["static", "ablation"])
    return ordered[:N_FIGURES] + ordered[N_FIGURES:][-N_FIGURES:]


def tell(found: Finished, folder: str) -> str:
    """The page's text."""
    return write_text(found, choose(found.rows), folder)


def write_page(run: Path, page: Path) -> list[Path]:
    """The page and its figures from a run's files; gives the files (`page_of_a_run`).

    Raises InputError where the run is of another model.
    """
    found = read_run(run, ("ablation_summary",))
    if (model := found.about["models"][0]["name"]) not in MODELS:
        raise InputError(f"a page is of one of {', '.join(MODELS)}; {run} has {model}")
    return page_of_a_run(found, page, tell, draw)


if __name__ == "__main__":
    page_command(write_page, PAGE)
