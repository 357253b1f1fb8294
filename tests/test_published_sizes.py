"""The configs of published models: their shapes give the number of parameters that their authors state."""

import math
from pathlib import Path

import pytest

from checkpoints_convert.families import FAMILIES
from checkpoints_convert.fields import Fields
from headjax.model import parameter_shapes
from headjax.zoo import MODELS

NAMES = (
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size"),
    "vocab_size",
)
TIED, UNTIED, WIDE = {"tie_word_embeddings": True}, {"tie_word_embeddings": False}, {"head_dim": 128}
# Alias -> model_type, sizes as in NAMES, other fields, and how many numbers the checkpoint holds.
SIZES = {
    "llama-2-7b": ("llama", (4096, 32, 32, 32, 11008, 32000), UNTIED, 6_738_415_616),
    "llama-2-13b": ("llama", (5120, 40, 40, 40, 13824, 32000), UNTIED, 13_015_864_320),
    "llama-2-70b": ("llama", (8192, 80, 64, 8, 28672, 32000), UNTIED, 68_976_648_192),
    "llama-3.1-8b": ("llama", (4096, 32, 32, 8, 14336, 128256), UNTIED, 8_030_261_248),
    "llama-3.1-70b": ("llama", (8192, 80, 64, 8, 28672, 128256), UNTIED, 70_553_706_496),
    "llama-3.2-1b": ("llama", (2048, 16, 32, 8, 8192, 128256), TIED | {"head_dim": 64}, 1_235_814_400),
    "llama-3.2-3b": ("llama", (3072, 28, 24, 8, 8192, 128256), TIED | WIDE, 3_212_749_824),
    "tinyllama-1.1b": ("llama", (2048, 22, 32, 4, 5632, 32000), UNTIED, 1_100_048_384),
    "smollm2-135m": ("llama", (576, 30, 9, 3, 1536, 49152), TIED, 134_515_008),
    "smollm2-360m": ("llama", (960, 32, 15, 5, 2560, 49152), TIED, 361_821_120),
    "smollm2-1.7b": ("llama", (2048, 24, 32, 32, 8192, 49152), TIED, 1_711_376_384),
    "r1-distill-qwen-1.5b": ("qwen2", (1536, 28, 12, 2, 8960, 151936), UNTIED, 1_777_088_000),
    "qwen2.5-0.5b": ("qwen2", (896, 24, 14, 2, 4864, 151936), TIED, 494_032_768),
    "qwen2.5-1.5b": ("qwen2", (1536, 28, 12, 2, 8960, 151936), TIED, 1_543_714_304),
    "qwen2.5-3b": ("qwen2", (2048, 36, 16, 2, 11008, 151936), TIED, 3_085_938_688),
    "qwen2.5-7b": ("qwen2", (3584, 28, 28, 4, 18944, 152064), UNTIED, 7_615_616_512),
    "qwen2.5-14b": ("qwen2", (5120, 48, 40, 8, 13824, 152064), UNTIED, 14_770_033_664),
    "qwen2.5-32b": ("qwen2", (5120, 64, 40, 8, 27648, 152064), UNTIED, 32_763_876_352),
    "qwen2.5-72b": ("qwen2", (8192, 80, 64, 8, 29568, 152064), UNTIED, 72_706_203_648),
    "qwen3-0.6b": ("qwen3", (1024, 28, 16, 8, 3072, 151936), TIED | WIDE, 596_049_920),
    "qwen3-1.7b": ("qwen3", (2048, 28, 16, 8, 6144, 151936), TIED | WIDE, 1_720_574_976),
    "qwen3-4b": ("qwen3", (2560, 36, 32, 8, 9728, 151936), TIED | WIDE, 4_022_468_096),
    "qwen3-8b": ("qwen3", (4096, 36, 32, 8, 12288, 151936), UNTIED | WIDE, 8_190_735_360),
    "qwen3-14b": ("qwen3", (5120, 40, 40, 8, 17408, 151936), UNTIED | WIDE, 14_768_307_200),
    "qwen3-32b": ("qwen3", (5120, 64, 64, 8, 25600, 151936), UNTIED | WIDE, 32_762_123_264),
    "mistral-7b-v0.1": ("mistral", (4096, 32, 32, 8, 14336, 32000), UNTIED, 7_241_732_096),
    "mistral-7b-v0.3": ("mistral", (4096, 32, 32, 8, 14336, 32768), UNTIED, 7_248_023_552),
    "mistral-nemo": ("mistral", (5120, 40, 32, 8, 14336, 131072), UNTIED | WIDE, 12_247_782_400),
    "mistral-small": ("mistral", (5120, 40, 32, 8, 32768, 131072), UNTIED | WIDE, 23_572_403_200),
}


@pytest.mark.parametrize("alias", SIZES)
def test_parameters_are_as_many_as_stated(alias: str):
    model_type, sizes, others, n_parameters = SIZES[alias]
    assert alias in MODELS
    family = FAMILIES[model_type]
    fields = Fields(dict(zip(NAMES, sizes, strict=True)) | others, Path("config.json"))
    config, switches = family.read_config(fields)
    rules = [rule for rule in family.rules if rule.when is None or switches[rule.when]]
    shapes = parameter_shapes(config)
    filled = {parameter for rule in rules for parameter in rule.parameters} & set(shapes)
    assert sum(math.prod(shapes[name]) for name in filled) == n_parameters
    assert all(".b_" in name or name.endswith(".bias") for name in set(shapes) - filled)
