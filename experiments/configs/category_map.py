"""The map of head categories over GPT-2 xl, Phi-2, Pythia 12B and Llama-3.1 70B, one panel each.

    python -m experiments.run --config experiments/configs/category_map.py

Needs the four checkpoints in the Hugging Face cache (170 GB, most of it Llama's) and as much disk again
for the converted ones. Fewer models make a smaller figure:

    python -m experiments.run --config experiments/configs/category_map.py --config.model=gpt2-xl,phi-2
"""

from experiments.config import RunConfig


def get_config() -> RunConfig:
    return RunConfig(
        model=("gpt2-xl", "phi-2", "pythia-12b", "llama-3.1-70b"),
        out="out/category_map",
    )
