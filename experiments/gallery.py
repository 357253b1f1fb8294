"""A figure of every analysis, from a run on the small trained model: what the documentation shows.

python -m experiments.gallery [docs/figures]

No download and no accelerator; half a minute on two cores.
"""

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import headjax
from headjax.analyses import (
    AblationCurves,
    AttentionPatterns,
    CircuitDiscovery,
    CopyScore,
    DynamicScores,
    GradientAttribution,
    HeadAblation,
    LogitAttribution,
    PathPatching,
    RelationScores,
    SalientOperations,
    Universality,
)
from headjax.errors import InputError, run_main
from headjax.report.options import Report
from headjax.result import Result

FOLDER = Path("docs/figures")
SHOWN = "country_to_capital"
# Indirect objects the trained model does not do, so that its circuits are those of two relations.
ASKED = (
    RelationScores(),
    DynamicScores(),
    CopyScore(),
    SalientOperations(),
    LogitAttribution(),
    HeadAblation(),
    GradientAttribution(),
    AblationCurves(max_heads=8, n_random_draws=3),
    AttentionPatterns(),
    PathPatching(prompts=SHOWN),
    CircuitDiscovery(prompts=(SHOWN, "word_to_antonym")),
    Universality(),
)


class Shown(NamedTuple):
    """A figure of the documentation: whose it is, and how the file that the analysis draws begins."""

    analysis: str
    drawn: str


# Name of the file in the documentation -> what is drawn into it. Salient tokens are text.
FIGURES = {
    "category_map": Shown("relation_scores", "category_map"),
    "relation_scores": Shown("relation_scores", "relations"),
    "dynamic_scores": Shown("dynamic_scores", "dynamic"),
    "copy_score": Shown("copy_score", "copy_score"),
    "logit_attribution": Shown("logit_attribution", "logit_attribution"),
    "head_ablation": Shown("head_ablation", "ablation_logprob"),
    "gradient_attribution": Shown("gradient_attribution", "gradient_logprob"),
    "ablation_curves": Shown("ablation_curves", "ablation_curves"),
    "attention_patterns": Shown("attention_patterns", "attention_trained-gpt2_repeated"),
    "path_patching": Shown("path_patching", "path_logits"),
    "circuit_discovery": Shown("circuit_discovery", "circuit_1_direct"),
    "circuit_overlap": Shown("circuit_discovery", "circuit_overlap"),
    "category_shares": Shown("universality", "category_shares"),
    "relations_per_head": Shown("universality", "relations_per_head"),
}


def write_figures(folder: Path) -> list[Path]:
    """Runs the analyses and writes the figures as PNG. Raises InputError where one was not drawn."""
    found = headjax.open("trained", top_k=3, n_prompts=48).run(*ASKED)
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
    if len(argv) > 2:
        raise InputError(f"a gallery is written into one folder; got {argv[1:]}")
    print("wrote", *write_figures(Path(argv[1]) if len(argv) == 2 else FOLDER), sep="\n  ")


if __name__ == "__main__":
    run_main(main)
