"""The demonstration: a checkpoint with planted heads, from building it to finding the heads again.

    python -m experiments.run --config experiments/configs/demo.py

No download and no accelerator; about a minute on two cores. Prints the planted heads beside the recovered
ones: every planted (head, relation) should score above the threshold and no other head should.
"""

from experiments.config import RunConfig


def get_config() -> RunConfig:
    return RunConfig(model="planted", heat_maps=("country_to_capital", "name_copying"), out="out/demo")
