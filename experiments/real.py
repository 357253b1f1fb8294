"""Writes the page about a real model, docs/real_model.md, and its figures from a finished run.

python -m experiments.real out/real [docs/real_model.md]

The run is that of experiments/configs/real.py. torch is needed: the page begins with a comparison with it.
"""

import datetime
import shutil
from collections.abc import Sequence
from pathlib import Path

from experiments.agreement import agreement_rows
from experiments.agreement_text import read_table
from experiments.config import config_from_json
from experiments.page_figures import draw_measures, only_png
from experiments.real_text import CAPITALS, NAMES, Finished, write_text
from experiments.record import read_record
from experiments.run import open_model
from headjax import figures
from headjax.errors import InputError, run_main
from headjax.grid import SUPPRESSION, load_npz
from headjax.io import atomic_write, read_json

PAGE = Path("docs/real_model.md")
TABLES = ("clean", "ablation_summary", "circuits", "circuit_prediction")


def read_run(run: Path) -> Finished:
    """Reads it. Raises InputError where it is not finished, is of several models, or lacks analyses."""
    about = read_record(run)
    day = datetime.date.fromtimestamp((run / "run.json").stat().st_mtime)
    try:
        tables = {name: read_table(run / f"{name}.csv") for name in TABLES}
        found = Finished(
            about, day, load_npz(run / "scores.npz"), tables, read_json(run / "salient_operations.json")
        )
    except OSError as error:
        raise InputError(f"a page needs every analysis of experiments/configs/real.py; {error}") from error
    if len(about["models"]) != 1 or not agreement_rows(found.grids):
        raise InputError(f"a page is of one model and of every analysis; {run} is not")
    return found


def draw(found: Finished, run: Path, folder: Path) -> list[Path]:
    """The page's figures."""
    grids, model = found.grids, found.about["models"][0]["name"]
    (summary,) = {path for path in (run / "figures").glob(f"ablation_curves*{CAPITALS}.png")}
    relations = [grids.select(measure="static", relation=r, sign="").one for r in (CAPITALS, NAMES)]
    relations += grids.select(measure="static", relation=NAMES, sign=SUPPRESSION)
    looks = [
        figures.Panel(grid.scores, f"{model}: {grid.part}-token attention", "Attention")
        for part in ("previous", "induction")
        for grid in grids.select(measure="attention", part=part, relation="repeated_tokens")
    ]
    task = found.tables["circuits"][0]["task"]
    own = grids.select(relation=task)
    paths = [
        figures.Panel(grid.scores, title, label)
        for title, label, grid in (
            (
                "Direct logit attribution",
                "Logit difference",
                own.select(measure="logit_attribution", metric="logit_diff").one,
            ),
            ("Path patching, direct", "Percent of the gap", own.select(measure="path", part="direct").one),
            ("Path patching, through MLPs", "Percent of the gap", own.select(kind="path_logits").one),
        )
    ]
    rows = {row.relation.relation: row for row in agreement_rows(grids)}
    files = [
        only_png(figures.category_map(grids.select(measure="static"), folder / "category_map")),
        only_png(figures.relation_heat_map(relations, folder / "relations")),
        only_png(figures.score_map(looks, folder / "attention")),
        only_png(figures.signed_map(paths, folder / "circuit")),
        draw_measures(rows[CAPITALS], folder / f"{CAPITALS}.png"),
        folder / f"{CAPITALS}_curves.png",
    ]
    shutil.copyfile(summary, files[-1])
    return files


def write_page(run: Path, page: Path) -> list[Path]:
    """The page and its figures, which lie in a folder named like the page; returns the files."""
    # torch takes seconds to import, and what is wrong with the run is said before.
    found = read_run(run)
    from experiments.verify import verify

    config = config_from_json(found.about["config"])
    study = open_model(config.model, config)
    folder = page.with_suffix("")
    files = draw(found, run, folder)
    targets = {pairs.relation.id: [target for _, target in pairs.words] for pairs in study.pairs}
    with atomic_write(page) as file:
        file.write(write_text(found, verify(study), targets, folder.name))
    return [page, *files]


def main(argv: Sequence[str]) -> None:
    if len(argv) not in (2, 3):
        raise InputError(f"the directory of a finished run is needed, and maybe a page; got {argv[1:]}")
    print("wrote", *write_page(Path(argv[1]), Path(argv[2]) if len(argv) == 3 else PAGE), sep="\n  ")


if __name__ == "__main__":
    run_main(main)
