"""Every analysis on a real model: what the page docs/real_model.md is written from.

    python -m experiments.run --config experiments/configs/real.py
    python -m experiments.pages.real out/real

Any model that there is a checkpoint of will do, by alias, Hugging Face id or directory. The second command
needs torch, which it compares with, and writes the page and its figures.

24 task prompts of every relation, and of indirect object identification for its circuit; prompts begin as the
model's tokenizer begins a text. About ten minutes on two cores for 135 million parameters.
"""

from experiments.config import RunConfig
from headjax.analyses import AblationCurves, CircuitDiscovery, LogitAttribution, PathPatching
from headjax.study import Data


def get_config() -> RunConfig:
    return RunConfig(
        model="smollm2-135m-instruct",
        analyses=(
            "relation_scores",
            "copy_score",
            "salient_operations",
            "universality",
            "dynamic_scores",
            "logit_attribution",
            {"ioi_attribution": LogitAttribution(prompts="ioi")},
            "head_ablation",
            "gradient_attribution",
            AblationCurves(max_heads=12, n_random_draws=3),
            "attention_patterns",
            PathPatching(prompts="ioi"),
            CircuitDiscovery(prompts="ioi"),
        ),
        data=Data(n_prompts=24),
        out="out/real",
    )
