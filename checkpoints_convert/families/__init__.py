"""`model_type` of config.json -> its table. A new architecture is one more file and one more line."""

from checkpoints_convert.families.gpt2 import GPT2
from checkpoints_convert.families.gpt_neox import GPT_NEOX
from checkpoints_convert.families.llama import LLAMA
from checkpoints_convert.families.phi import PHI

FAMILIES = {"gpt2": GPT2, "gpt_neox": GPT_NEOX, "phi": PHI, "llama": LLAMA}
