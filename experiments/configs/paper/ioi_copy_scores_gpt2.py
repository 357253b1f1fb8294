"""GPT-2 small: copy scores of name movers and negative heads, and direct effects, beside the published ones.

    python -m experiments.run --config experiments/configs/paper/ioi_copy_scores_gpt2.py

Memory: 0.5 GB of parameters in float32 and about 2 GB at work.

Estimated time: 4 TFLOP, so 8 seconds on a 16-core CPU, about a second on one H100, about a second on a
v5e-8; plus loading and compiling. How: experiments/paper.py.

Expect: name movers (L9H9, L9H6, L10H0) above 0.95, the average head below 0.2; negated, L10H7 and L11H10
near 0.98 and the average near 0.12, all within 0.05; the same order of direct effects (rank correlation
above 0.7; the name movers first). Names are ours and stand alone, where the paper's stood in 1,000 prompts
(headjax/analyses/copy_score.py). Relation scores of name copying are drawn beside. The checkpoint was not at
hand when this was written, so nobody has seen the numbers yet.
"""

from experiments.config import RunConfig
from headjax.report.options import Report
from headjax.study import Data


def get_config() -> RunConfig:
    return RunConfig(
        model="gpt2",
        data=Data(relations=("name_copying",), prompts="ioi", n_prompts=100),
        analyses=("relation_scores", "copy_score", "logit_attribution"),
        report=Report(circuits=("ioi",)),
        compare=("ioi_copy_scores", "ioi_direct_effects"),
        out="out/paper/ioi_copy_scores_gpt2",
    )
