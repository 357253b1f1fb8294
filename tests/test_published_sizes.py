"""The sizes of published models: their shapes give the number of parameters that their authors state."""

import math
import re
from pathlib import Path

import pytest

from checkpoints_convert.families import FAMILIES
from checkpoints_convert.fields import Fields
from checkpoints_convert.published import PUBLISHED
from headjax.model import parameter_shapes

# Alias -> how many numbers the checkpoint holds, as its page on the Hub says.
COUNTS = {
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "llama-2-70b": 68_976_648_192,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "tinyllama-1.1b": 1_100_048_384,
    "smollm2-135m": 134_515_008,
    "smollm2-360m": 361_821_120,
    "smollm2-1.7b": 1_711_376_384,
    "r1-distill-qwen-1.5b": 1_777_088_000,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-3b": 3_085_938_688,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-14b": 14_770_033_664,
    "qwen2.5-32b": 32_763_876_352,
    "qwen2.5-72b": 72_706_203_648,
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "qwen3-14b": 14_768_307_200,
    "qwen3-32b": 32_762_123_264,
    "mistral-7b-v0.1": 7_241_732_096,
    "mistral-7b-v0.3": 7_248_023_552,
    "mistral-nemo": 12_247_782_400,
    "gemma-2b": 2_506_172_416,
    "gemma-7b": 8_537_680_896,
    "gemma-2-2b": 2_614_341_888,
    "gemma-2-9b": 9_241_705_984,
    "gemma-2-27b": 27_227_128_320,
    "gemma-3-270m": 268_098_176,
    "gemma-3-1b": 999_885_952,
    "gemma-3-4b": 3_880_263_168,
    "olmo-2-1b": 1_484_916_736,
    "olmo-2-7b": 7_298_617_344,
    "olmo-2-13b": 13_716_198_400,
    "olmo-3-7b": 7_298_011_136,
    "gpt-j-6b": 6_050_882_784,
    "gpt-neo-1.3b": 1_315_575_808,
    "opt-125m": 125_239_296,
    "opt-6.7b": 6_658_473_984,
    "phi-3-mini-4k": 3_821_079_552,
    "mistral-small": 23_572_403_200,
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
    "phi-2": 2_779_683_840,
    "pythia-70m": 70_426_624,
    "pythia-160m": 162_322_944,
    "pythia-410m": 405_334_016,
    "pythia-1b": 1_011_781_632,
    "pythia-1.4b": 1_414_647_808,
    "pythia-2.8b": 2_775_208_960,
    "pythia-6.9b": 6_857_302_016,
    "pythia-12b": 11_846_072_320,
    "gpt-neo-125m": 125_198_592,
    "gpt-neo-2.7b": 2_651_307_520,
    "opt-1.3b": 1_315_758_080,
    "opt-2.7b": 2_651_596_800,
    "opt-13b": 12_853_473_280,
    "opt-30b": 29_974_540_288,
    # Of the Gemma 3 that see, the part that reads text.
    "distilgpt2": 81_912_576,
    "pythia-14m": 14_067_712,
    "llama-3-8b": 8_030_261_248,
    "llama-3-70b": 70_553_706_496,
    "llama-3.3-70b": 70_553_706_496,
    "r1-distill-llama-8b": 8_030_261_248,
    "r1-distill-llama-70b": 70_553_706_496,
    "qwen2-0.5b": 494_032_768,
    "qwen2-1.5b": 1_543_714_304,
    "qwen2-7b": 7_615_616_512,
    "qwen2-72b": 72_706_203_648,
    "r1-distill-qwen-7b": 7_615_616_512,
    "r1-distill-qwen-14b": 14_770_033_664,
    "r1-distill-qwen-32b": 32_763_876_352,
    "mistral-7b-v0.2": 7_241_732_096,
    "olmo-2-32b": 32_234_279_936,
    "olmo-3-32b": 32_233_522_176,
    "gemma-3-12b": 11_766_034_176,
    "gemma-3-27b": 27_009_346_304,
}
# The rows of OPT's positions that are not used are stored, and counted.
NOT_USED = {"opt": 2}


@pytest.mark.parametrize("alias", COUNTS)
def test_parameters_are_as_many_as_stated(alias: str):
    model_type = PUBLISHED[alias]["model_type"]
    family = FAMILIES[model_type]
    config, switches = family.read_config(Fields(PUBLISHED[alias], Path("config.json")))
    rules = [rule for rule in family.rules if rule.when is None or switches[rule.when]]
    shapes = parameter_shapes(config)
    filled = {parameter for rule in rules for parameter in rule.parameters} & set(shapes)
    unused = NOT_USED.get(model_type, 0) * config.d_model
    # A norm that fills both of ours is stored once.
    twice = config.n_layers * 2 * config.d_model if model_type in ("gptj", "phi") else 0
    assert sum(math.prod(shapes[name]) for name in filled) + unused - twice == COUNTS[alias]
    assert all(".b_" in name or name.endswith(".bias") for name in set(shapes) - filled)


def test_every_published_model_is_counted():
    assert set(COUNTS) == set(PUBLISHED)


@pytest.mark.parametrize("alias", PUBLISHED)
def test_the_config_of_every_model_is_understood(alias: str):
    """And its parameters are about as many as its name says."""
    config, _ = FAMILIES[PUBLISHED[alias]["model_type"]].read_config(
        Fields(PUBLISHED[alias], Path("config.json"))
    )
    n = sum(math.prod(shape) for shape in parameter_shapes(config).values())
    said = re.search(r"-([\d.]+)([mb])(?:-|$)", alias)
    if said is not None:
        billions = float(said[1]) / (1000 if said[2] == "m" else 1)
        assert 0.7 * billions < n / 1e9 < 1.5 * billions, n
