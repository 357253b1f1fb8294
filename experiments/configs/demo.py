"""The demonstration: a checkpoint with planted heads, from building it to finding the heads again.

    python -m experiments.run --config experiments/configs/demo.py

No download and no accelerator; about a minute on two cores. Prints the planted heads beside the recovered
ones: every planted (head, relation) should score above the threshold and no other head should. Dynamic
scores should point at the same heads, and removing a relation's heads should take its accuracy to 0 while
random heads, and the same heads on other relations' prompts, change nothing.
"""

from experiments.config import RunConfig
from headjax.analyses import AblationCurves, DynamicScores, HeadAblation, RelationScores
from headjax.report.options import Report
from headjax.study import Data


def get_config() -> RunConfig:
    return RunConfig(
        model="planted",
        data=Data(n_prompts=6),
        analyses=(
            RelationScores(),
            DynamicScores(),
            HeadAblation(),
            AblationCurves(max_heads=6, n_random_draws=3),
        ),
        report=Report(heat_maps=("country_to_capital", "name_copying")),
        out="out/demo",
    )
