"""Writes the page about a trained model, docs/trained_model.md, and its figures from a finished run.

python -m experiments.trained.page out/trained [docs/trained_model.md]
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from experiments.agreement import Row, agreement_rows
from experiments.agreement_text import read_table
from experiments.page_figures import draw_measures
from experiments.trained import MODELS
from experiments.trained.page_text import write_text
from headjax.errors import InputError, run_main
from headjax.grid import load_npz
from headjax.io import atomic_write, read_json

PAGE = Path("docs/trained_model.md")
N_FIGURES = 2  # of the relations that agree most, and as many of those that agree least


def write_page(run: Path, page: Path) -> list[Path]:
    """The page and its figures, which lie in a folder named like the page; returns the files.

    Raises InputError where the run is not finished, is of another model, or lacks analyses.
    """
    try:
        about = read_json(run / "run.json")
        curves = {row["relation"]: row for row in read_table(run / "ablation_summary.csv")}
    except (OSError, ValueError) as error:
        raise InputError(f"{run} must be the directory of a finished run; {error}") from error
    model = about["models"][0]["name"]
    rows = agreement_rows(load_npz(run / "scores.npz"))
    if model not in MODELS or not rows:
        raise InputError(f"a page needs every analysis of one of {', '.join(MODELS)}; {run} has {model}")
    training = read_json(MODELS[model] / "training.json")
    log = read_table(MODELS[model] / "training_log.csv")

    chosen = choose(rows)
    folder = page.with_suffix("")
    files = [draw_measures(row, folder / f"{row.relation.relation}.png") for row in chosen]
    copied = {"category_map": "category_map"} | {
        f"ablation_curves_{model}_{row.relation.relation}": f"{row.relation.relation}_curves"
        for row in chosen
    }
    for source, target in copied.items():
        files.append(folder / f"{target}.png")
        shutil.copyfile(run / "figures" / f"{source}.png", files[-1])
    with atomic_write(page) as file:
        file.write(write_text(about, training, log, rows, curves, chosen, folder.name))
    return [page, *files]


def choose(rows: list[Row]) -> list[Row]:
    """Those whose static scores agree with ablation most, and those that agree least."""
    known = [row for row in rows if not np.isnan(row.rho["static", "ablation"])]
    ordered = sorted(known, key=lambda row: -row.rho["static", "ablation"])
    return ordered[:N_FIGURES] + ordered[N_FIGURES:][-N_FIGURES:]


def main(argv: Sequence[str]) -> None:
    if len(argv) not in (2, 3):
        raise InputError(f"the directory of a finished run is needed, and maybe a page; got {argv[1:]}")
    print("wrote", *write_page(Path(argv[1]), Path(argv[2]) if len(argv) == 3 else PAGE), sep="\n  ")


if __name__ == "__main__":
    run_main(main)
