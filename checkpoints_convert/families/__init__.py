"""`model_type` of config.json -> its table. A new architecture is one more file and one more line."""

from checkpoints_convert.families.gpt2 import GPT2
from checkpoints_convert.families.gpt_neox import GPT_NEOX
from checkpoints_convert.families.llama import LLAMA
from checkpoints_convert.families.mistral import MISTRAL
from checkpoints_convert.families.phi import PHI
from checkpoints_convert.families.qwen import QWEN2, QWEN3

FAMILIES = {
    "gpt2": GPT2,
    "gpt_neox": GPT_NEOX,
    "phi": PHI,
    "llama": LLAMA,
    "mistral": MISTRAL,
    "qwen2": QWEN2,
    "qwen3": QWEN3,
}
