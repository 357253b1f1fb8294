"""Name copying and country to capital on GPT-2 medium, with the heads of a published circuit marked.

    python -m experiments.run --config experiments/configs/gpt2_medium_circuits.py

The marks on the name copying panel are the heads of "Circuit Component Reuse" (Merullo et al. 2024). The
heads published as "Capital heads" were only ever drawn, not listed: give your own with
`--config.circuits=name_copying=circuit_reuse,country_to_capital=MY_HEADS.json`; without them the panel
says it has none.
"""

from experiments.config import RunConfig
from headjax.report.options import Report
from headjax.study import Data


def get_config() -> RunConfig:
    return RunConfig(
        model="gpt2-medium",
        data=Data(relations=("name_copying", "country_to_capital")),
        report=Report(
            heat_maps=("name_copying", "country_to_capital"), circuits=("name_copying=circuit_reuse",)
        ),
        out="out/gpt2_medium_circuits",
    )
