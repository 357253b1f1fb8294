"""Writes the page about a real model, docs/real_model.md, and its figures from a finished run.

python -m experiments.pages.real out/real [docs/real_model.md]

The run is that of experiments/configs/real.py. torch is needed: the page begins with a comparison with it.
"""

import shutil
from pathlib import Path

from experiments.config import config_from_json
from experiments.pages.figures import draw_measures, only_png
from experiments.pages.finished import Finished, page_command, page_of_a_run, read_run
from experiments.pages.real_text import CAPITALS, NAMES, write_text
from experiments.run import open_model
from headjax import figures
from headjax.measures import SUPPRESSION

PAGE = Path("docs/real_model.md")
TABLES = ("clean", "ablation_summary", "circuits", "circuit_prediction")


def draw(found: Finished, folder: Path) -> list[Path]:
    """The page's figures."""
    grids, model = found.grids, found.about["models"][0]["name"]
    (summary,) = {path for path in (found.directory / "figures").glob(f"ablation_curves*{CAPITALS}.png")}
    relations = [found.static(CAPITALS), found.static(NAMES), found.static(NAMES, SUPPRESSION)]
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
    rows = {row.relation.relation: row for row in found.rows}
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


def tell(found: Finished, folder: str) -> str:
    """The page's text, for which the model is held against torch's."""
    from experiments.verify import verify  # torch takes seconds to import; the run's faults are said before

    config = config_from_json(found.about["config"])
    study = open_model(config.model, config)
    targets = {pairs.relation.id: [target for _, target in pairs.words] for pairs in study.pairs}
    return write_text(found, verify(study), targets, folder)


def write_page(run: Path, page: Path) -> list[Path]:
    """The page and its figures from a run's files; gives the files (`page_of_a_run`)."""
    return page_of_a_run(read_run(run, TABLES), page, tell, draw)


if __name__ == "__main__":
    page_command(write_page, PAGE)
