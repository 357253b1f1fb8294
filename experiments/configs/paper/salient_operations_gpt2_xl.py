"""GPT-2 xl: the tokens that head L26H2 amplifies most, and what it maps them to.

    python -m experiments.run --config experiments/configs/paper/salient_operations_gpt2_xl.py
    python -m experiments.run --config experiments/configs/paper/salient_operations_gpt2_xl.py \\
        --config.heads=all    # all 1,200 heads, 18 TFLOP

Memory: 2.6 GB at work for one layer and the vocabulary; the model is read a layer at a time.

Estimated time: 5 TFLOP, so 10 seconds on a 16-core CPU, about a second on one H100, about a second on a
v5e-8; plus loading and compiling. How: experiments/paper.py.

Expect: salient_operations.md with 15 tokens of five mappings each. The published example of this head is
science fiction and fantasy (Jedi, lightsaber, Starfleet, Klingon, Skyrim), each mapped to words of its
kind. Nothing is compared by number. The checkpoint was not at hand when this was written.
"""

from experiments.config import RunConfig
from headjax.analyses import SalientOperations


def get_config() -> RunConfig:
    return RunConfig(
        model="gpt2-xl",
        analyses=(SalientOperations(heads=("L26H2",)),),
        out="out/paper/salient_operations_gpt2-xl",
    )
