"""The figures that headjax began with, in their published layout, of models with planted heads.

    python -m experiments.pages.seed_figures [docs/seed_figures]

The map of head categories over four models, in the published colours, and name copying and country to capital
in a model of GPT-2 medium's 24 layers and 16 heads, with crosses on the heads that circuits name. There, name
copying is planted in the movers of "Circuit Component Reuse" (Merullo et al. 2024), and country to capital in
heads beside them. Builds the checkpoints and runs relation scores on them; three minutes on two cores.
"""

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from experiments import planted
from experiments.config import RunConfig
from experiments.run import run
from headjax.analyses import RelationScores
from headjax.axes import Head
from headjax.circuits.published import CIRCUITS, parse_heads
from headjax.errors import InputError, run_main
from headjax.report.options import Report
from headjax.study import Data

FOLDER = Path("docs/seed_figures")
SHAPES = ((12, 12), (24, 16), (36, 12), (48, 12))  # of the map's models
CAPITAL_HEADS = parse_heads("15.1 16.9 17.11 18.12 20.3 22.6")


def build_models(folder: Path) -> list[Path]:
    """A planted checkpoint of every shape; the circuits' heads are in that of GPT-2 medium's."""
    movers: dict[Head, str] = dict.fromkeys(CIRCUITS["circuit_reuse"].roles["Movers"], "name_copying")
    placed = movers | dict.fromkeys(CAPITAL_HEADS, "country_to_capital")
    return [
        planted.build(
            folder / f"planted {n_layers} x {n_heads}",
            seed=seed,
            shape=(n_layers, n_heads),
            placed=placed if (n_layers, n_heads) == (24, 16) else {},
        )
        for seed, (n_layers, n_heads) in enumerate(SHAPES)
    ]


def draw(folder: Path) -> list[Path]:
    """Builds, runs and draws; the files, in this folder."""
    with tempfile.TemporaryDirectory() as temporary:
        models = build_models(Path(temporary) / "models")
        (medium,) = (model for model in models if "24 x 16" in model.name)
        asked = {
            "category_map": (models, Report(palette="published", formats=("png",))),
            "relations": (
                [medium],
                Report(
                    heat_maps=("name_copying", "country_to_capital"),
                    circuits=(
                        "name_copying=circuit_reuse",
                        f"country_to_capital={' '.join(map(str, CAPITAL_HEADS))}",
                    ),
                    formats=("png",),
                ),
            ),
        }
        files = []
        for name, (chosen, report) in asked.items():
            out = Path(temporary) / name
            run(
                RunConfig(
                    model=tuple(map(str, chosen)),
                    data=Data(relations_dir=str(medium / "relations")),
                    analyses=(RelationScores(),),
                    report=report,
                    out=str(out),
                    checkpoint_dir=str(Path(temporary) / "converted"),
                ),
                progress=False,
            )
            (drawn,) = (out / "figures").glob(f"{name}*.png")
            folder.mkdir(parents=True, exist_ok=True)
            files.append(Path(shutil.copyfile(drawn, folder / f"{name}.png")))
        return files


def main(argv: Sequence[str]) -> None:
    if len(argv) > 2:
        raise InputError(f"one folder at most can be given; got {argv[1:]}")
    print("wrote", *draw(Path(argv[1]) if len(argv) == 2 else FOLDER), sep="\n  ")


if __name__ == "__main__":
    run_main(main)
