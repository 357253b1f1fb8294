"""A figure of every analysis, from one run on one model: what the documentation shows.

    python -m experiments.pages.gallery [MODEL [FOLDER]]        # smollm2-135m-instruct into docs/figures

Three minutes on two cores.
"""

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import headjax
from headjax.analyses import (
    AblationCurves,
    Analysis,
    AttentionPatterns,
    CircuitDiscovery,
    CopyScore,
    DynamicScores,
    GradientAttribution,
    HeadAblation,
    LogitAttribution,
    PathPatching,
    RelationScores,
    Universality,
)
from headjax.errors import InputError, run_main
from headjax.report.options import Report
from headjax.result import Result

MODEL, FOLDER = "smollm2-135m-instruct", Path("docs/figures")
SHOWN = "country_to_capital"
CONTROLS = ("country_to_language", "word_to_antonym", "adj_to_superlative")
TASKS = ("ioi", "colored_objects")  # of the circuits


class Shown(NamedTuple):
    """A figure of the documentation: whose it is, and how the file that it draws begins (a glob)."""

    analysis: str
    drawn: str


# Name of the file in the documentation -> what is drawn into it. Salient tokens are text.
FIGURES = {
    "category_map": Shown("relation_scores", "category_map"),
    "relation_scores": Shown("relation_scores", "relations"),
    "dynamic_scores": Shown("dynamic_scores", "dynamic"),
    "copy_score": Shown("copy_score", "copy_score"),
    "logit_attribution": Shown("logit_attribution", "logit_attribution_logit_diff"),
    "head_ablation": Shown("head_ablation", "ablation_logprob"),
    "gradient_attribution": Shown("gradient_attribution", "gradient_logprob"),
    "ablation_curves": Shown("ablation_curves", "ablation_curves"),
    "attention_patterns": Shown("attention_patterns", "attention_*repeated"),
    "path_patching": Shown("path_patching", "path_logits"),
    "circuit_discovery": Shown("circuit_discovery", "circuit_1_direct"),
    "circuit_overlap": Shown("circuit_discovery", "circuit_overlap"),
    "category_shares": Shown("universality", "category_shares"),
    "relations_per_head": Shown("universality", "relations_per_head"),
}


def analyses(tasks: tuple[str, ...]) -> tuple[Analysis, ...]:
    """What is drawn; effects of one relation alone."""
    return (
        RelationScores(),
        DynamicScores(),
        CopyScore(),
        LogitAttribution(prompts=SHOWN),
        HeadAblation(prompts=SHOWN),
        GradientAttribution(prompts=SHOWN),
        AblationCurves(prompts=(SHOWN, *CONTROLS), max_heads=8, n_random_draws=3),
        AttentionPatterns(prompts=SHOWN),
        PathPatching(prompts=tasks[:1]),
        CircuitDiscovery(prompts=tasks),
        Universality(),
    )


def write_figures(study: headjax.Study, folder: Path, tasks: tuple[str, ...] = TASKS) -> list[Path]:
    """Runs the analyses and writes the figures as PNG. Raises InputError where one was not drawn."""
    found = study.run(*analyses(tasks))
    with tempfile.TemporaryDirectory() as drawn:
        return choose(found, Path(drawn), folder)


def choose(found: Result, drawn: Path, folder: Path) -> list[Path]:
    """Draws a result into `drawn` and copies what FIGURES names."""
    report = Report(heat_maps=(SHOWN,), formats=("png",))
    for name, analysis in found.analyses.items():
        analysis.draw(name, found, report, drawn / name)
    files = []
    for name, shown in FIGURES.items():
        fitting = sorted((drawn / shown.analysis).glob(f"{shown.drawn}*.png"))
        if len(fitting) != 1:
            rule = f"{shown.analysis} draws one figure whose name begins with {shown.drawn}"
            raise InputError(f"{rule}; got {', '.join(file.name for file in fitting) or 'none'}")
        folder.mkdir(parents=True, exist_ok=True)
        files.append(folder / f"{name}.png")
        shutil.copyfile(fitting[0], files[-1])
    return files


def main(argv: Sequence[str]) -> None:
    if len(argv) > 3:
        raise InputError(f"a gallery is of one model, in one folder; got {argv[1:]}")
    model, folder = (*argv[1:], *(MODEL, FOLDER)[len(argv) - 1 :])
    print("wrote", *write_figures(headjax.open(model, n_prompts=24), Path(folder)), sep="\n  ")


if __name__ == "__main__":
    run_main(main)
