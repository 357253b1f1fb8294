"""Any of the sweeps on any one model, meant for overrides.

    python -m experiments.run --config experiments/configs/sweeps.py --config.model=gpt2 \\
        --config.relations=country_to_capital,name_copying

    # indirect object identification, mean ablation, what each head adds to the logit difference
    python -m experiments.run --config experiments/configs/sweeps.py --config.model=gpt2 \\
        --config.prompts=ioi --config.analyses=logit_attribution,head_ablation --config.replacement=mean

    # your own prompts, JSON lines {"prompt", "answer", "distractor"?, "corrupted"?, "source"?}
    python -m experiments.run --config experiments/configs/sweeps.py --config.model=DIR \\
        --config.prompts=prompts.jsonl --config.analyses=head_ablation --config.positions=all

Without overrides: relation scores, dynamic scores and their correlations, head ablation and its gradient
estimate on 24 task prompts of every relation, on GPT-2 small. Dynamic scores are of 24 sources too, static
scores of all pairs: correlations.csv has both numbers, and `--config.n_prompts=none` takes all sources.
"""

from experiments.config import RunConfig
from headjax.study import Data


def get_config() -> RunConfig:
    return RunConfig(
        model="gpt2",
        analyses=("relation_scores", "dynamic_scores", "head_ablation", "gradient_attribution"),
        data=Data(n_prompts=24),
        out="out/sweeps",
    )
