"""Relation scores of any one model, meant for overrides.

    python -m experiments.run --config experiments/configs/relation_scores.py --config.model=gpt2
    python -m experiments.run --config experiments/configs/relation_scores.py \\
        --config.model=DIR --config.relations_dir=DIR --config.min_pairs=5

Writes the category map and the heat maps of the two relations with the highest score (or of
`--config.heat_maps=copying,country_to_capital`).
"""

from experiments.config import RunConfig


def get_config() -> RunConfig:
    return RunConfig(model="gpt2", out="out/relation_scores")
