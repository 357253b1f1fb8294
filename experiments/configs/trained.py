"""Every analysis on a small model that was trained, not planted: do the scores agree with ablation?

    python -m experiments.run --config experiments/configs/trained.py
    python -m experiments.trained.page out/trained

No download and no accelerator; about a minute and a half on two cores. The second command writes
docs/trained_model.md from what the first one found. Other shapes: `--config.model=trained-llama`.

k is 3, not 10: the vocabulary is a fiftieth of GPT-2's, and some relations have only five targets.
"""

from experiments.config import RunConfig
from headjax.analyses import AblationCurves
from headjax.study import Data


def get_config() -> RunConfig:
    return RunConfig(
        model="trained",
        analyses=(
            "relation_scores",
            "dynamic_scores",
            "logit_attribution",
            "head_ablation",
            "gradient_attribution",
            AblationCurves(max_heads=8, n_random_draws=3),
            "attention_patterns",
        ),
        data=Data(top_k=3, n_prompts=48),
        out="out/trained",
    )
