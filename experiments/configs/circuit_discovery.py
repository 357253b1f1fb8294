"""Circuits found by path patching, marked on the relation scores that should predict them.

    python -m experiments.run --config experiments/configs/circuit_discovery.py --config.model=gpt2-medium

Three tasks (indirect object identification, colored objects, country to capital), two stages: the heads with
the largest direct effects, then those that feed their queries, keys and values; 2 % of all heads a
stage. Writes the heads (circuits.csv, and as marks circuits/*.json), which of them two tasks share, how well
static and dynamic scores predict them (circuit_prediction.csv), and marks the circuit of indirect object
identification on the name copying panel and that of country to capital on its own.

About four runs of `head_ablation` over all heads a task. `--config.n_stages=3` goes one step further back;
`--config.positions=all` finds heads that write before the last position, for as many times the work as
prompts have tokens. Your own task: `--config.prompts=ioi,my_prompts.jsonl`, each line with a "distractor" and
a "corrupted" partner. A task that the model does not do is left out with a warning.
"""

from experiments.config import RunConfig
from headjax.report.options import Report
from headjax.study import Data


def get_config() -> RunConfig:
    return RunConfig(
        model="gpt2",
        analyses=("relation_scores", "dynamic_scores", "circuit_discovery"),
        data=Data(
            relations=("name_copying", "copying", "country_to_capital"),
            prompts=("ioi", "colored_objects", "country_to_capital"),
            n_prompts=100,
        ),
        report=Report(heat_maps=("name_copying", "country_to_capital")),
        out="out/circuit_discovery",
    )
