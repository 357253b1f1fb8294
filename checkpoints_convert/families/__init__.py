"""`model_type` of config.json -> its table. A new architecture is one more file and one more line."""

from checkpoints_convert.families.gemma import GEMMA, GEMMA2, GEMMA3, GEMMA3_TEXT
from checkpoints_convert.families.gpt2 import GPT2
from checkpoints_convert.families.gpt_neo import GPT_NEO
from checkpoints_convert.families.gpt_neox import GPT_NEOX
from checkpoints_convert.families.gptj import GPTJ
from checkpoints_convert.families.llama import LLAMA
from checkpoints_convert.families.mistral import MISTRAL
from checkpoints_convert.families.olmo import OLMO2, OLMO3
from checkpoints_convert.families.opt import OPT
from checkpoints_convert.families.phi import PHI
from checkpoints_convert.families.phi3 import PHI3
from checkpoints_convert.families.qwen import QWEN2, QWEN3

FAMILIES = {
    "gpt2": GPT2,
    "gpt_neo": GPT_NEO,
    "gptj": GPTJ,
    "gpt_neox": GPT_NEOX,
    "opt": OPT,
    "phi": PHI,
    "phi3": PHI3,
    "llama": LLAMA,
    "mistral": MISTRAL,
    "qwen2": QWEN2,
    "qwen3": QWEN3,
    "gemma": GEMMA,
    "gemma2": GEMMA2,
    "gemma3_text": GEMMA3_TEXT,
    "gemma3": GEMMA3,
    "olmo2": OLMO2,
    "olmo3": OLMO3,
}
