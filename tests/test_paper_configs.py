"""The configs of papers: one for every published model and experiment, each saying what it takes."""

import importlib
import re
from pathlib import Path

import pytest

from experiments.compare import check_comparison
from experiments.config import RunConfig, load_config
from experiments.paper import RATES
from experiments.published import COMPARISONS, load_direct_effects, load_published
from headjax.data.relations import RELATION_IDS
from headjax.zoo import MODELS, display_name
from tests.helpers.runs import run_config

FOLDER = Path(__file__).resolve().parents[1] / "experiments" / "configs" / "paper"
FILES = {file.stem: file for file in sorted(FOLDER.glob("*.py")) if file.stem != "__init__"}
SECONDS = {"seconds": 1, "minutes": 60, "hours": 3600}


# What each config asks for, a second time, field by field; what is not here has its default
# (`test_defaults`). Elhelo & Geva 2024: GPT-2 xl, Pythia 6.9B and 12B, Llama-3.1 8B and 70B; section 4.1
# scores and correlations; section 4.2 the causal experiment; sources of several tokens in one template. Head
# 26.2 of GPT-2 xl is its example of salient operations. Wang et al. 2022: copy scores of the circuit's heads.
CAUSAL = {
    *("adj_to_comparative", "copying", "country_to_capital", "country_to_language", "english_to_spanish"),
    *("name_copying", "noun_to_pronoun", "object_to_superclass", "product_to_company", "verb_to_past_tense"),
    *("word_to_first_letter", "word_to_last_letter", "year_to_following"),
}
MULTI_TOKEN = {
    *("copying", "country_to_capital", "country_to_language", "name_copying", "noun_to_pronoun"),
    *("object_to_superclass", "word_to_first_letter", "word_to_last_letter", "word_to_synonym"),
    *("work_to_location", "year_to_following"),
}
KINDS = {
    "correlations": {
        "analyses": ("relation_scores", "dynamic_scores", "universality"),
        "compare": ("maps_scores", "maps_correlations"),
        "tables": ("tex",),
    },
    "causal": {
        "relations": CAUSAL,
        "analyses": ("relation_scores", "ablation_curves"),
        "n_prompts": 100,
        "compare": ("maps_causal",),
    },
    "multi_token": {
        "relations": MULTI_TOKEN,
        "analyses": ("relation_scores", "dynamic_scores"),
        "templates": ("This is a document about <X>",),
        "multi_token": True,
        "compare": ("maps_multi_token",),
    },
}
IOI = {"relations": {"name_copying"}, "prompts": "ioi", "n_prompts": 100}
EXPECTED = {
    **{
        f"{kind}_{re.sub('[-.]', '_', model)}": {**KINDS[kind], "model": model}
        for kind, models in {
            "correlations": ("gpt2-xl", "pythia-6.9b", "pythia-12b", "llama-3.1-8b", "llama-3.1-70b"),
            "causal": ("gpt2-xl", "pythia-6.9b", "pythia-12b", "llama-3.1-8b"),
            "multi_token": ("gpt2-xl", "pythia-6.9b", "pythia-12b"),
        }.items()
        for model in models
    },
    "ioi_copy_scores_gpt2": {
        **IOI,
        "model": "gpt2",
        "analyses": ("relation_scores", "copy_score", "logit_attribution"),
        "circuits": ("ioi",),
        "compare": ("ioi_copy_scores", "ioi_direct_effects"),
    },
    "ioi_direct_effects": {
        **IOI,
        "model": "gpt2-medium",
        "analyses": ("relation_scores", "logit_attribution"),
        "compare": ("ioi_direct_effects",),
    },
    "salient_operations_gpt2_xl": {
        "model": "gpt2-xl",
        "analyses": ("salient_operations",),
        "heads": ("L26H2",),
    },
    "universality": {
        "model": ("gpt2-xl", "phi-2", "pythia-12b", "llama-3.1-8b", "llama-3.1-70b"),
        "analyses": ("relation_scores", "universality"),
    },
}


def load(name: str) -> RunConfig:
    return load_config(str(FILES[name]), {})


def docstring(name: str) -> str:
    """The words of a config's docstring, in one line."""
    return " ".join(importlib.import_module(f"experiments.configs.paper.{name}").__doc__.split())


@pytest.mark.parametrize("name", FILES)
def test_a_config_asks_for_what_was_published(name: str):
    config, expected = load(name), dict(EXPECTED[name])
    relations = config.data.relations
    assert set(relations) == expected.pop("relations", set())
    assert len(set(relations)) == len(relations)
    assert config == run_config(**expected, relations=relations, out=config.out)


def test_every_config_of_a_paper_is_expected():
    assert set(FILES) == set(EXPECTED)


@pytest.mark.parametrize("name", FILES)
def test_a_docstring_says_what_a_run_takes(name: str):
    text = docstring(name)
    assert f"python -m experiments.run --config experiments/configs/paper/{name}.py" in text
    for part in ("Memory:", "Estimated time:", "Expect:", *RATES):
        assert part in text, part
    assert re.search(r"[\d.]+ GB", text.split("Memory:")[1])


@pytest.mark.parametrize("name", FILES)
def test_estimated_times_are_operations_over_rates(name: str):
    text = docstring(name).split("Estimated time:")[1]
    operations = float(re.search(r"([\d,]+) TFLOP", text)[1].replace(",", ""))
    for device, rate in RATES.items():
        number, unit = re.search(rf"(about a|[\d.]+) (seconds?|minutes|hours) on {device}", text).groups()
        seconds = 1 if number == "about a" else float(number) * SECONDS[unit]
        assert seconds == pytest.approx(max(1, operations / rate), rel=0.06)


@pytest.mark.parametrize("name", FILES)
def test_a_config_can_be_run_and_is_compared_with_what_its_models_have(name: str):
    config = load(name)
    assert set(config.models) <= set(MODELS)
    assert set(config.data.relations) <= set(RELATION_IDS)
    check_comparison(config, [display_name(model) for model in config.models])
    assert config.out.startswith("out/paper/")


def test_outputs_are_apart():
    outs = [load(name).out for name in FILES]
    assert len(set(outs)) == len(outs)


def test_every_published_model_and_table_has_a_config():
    published = {
        (row.model, table)
        for table in COMPARISONS
        if table != "ioi_direct_effects"
        for row in load_published(table)
    }
    configs = [load(name) for name in FILES]
    covered = {(model, table) for config in configs for model in config.models for table in config.compare}
    assert published <= covered
    assert {model for model, table in covered if table == "ioi_direct_effects"} <= set(load_direct_effects())


@pytest.mark.parametrize("table", ["maps_causal", "maps_multi_token"])
def test_published_relations_are_among_those_that_are_run(table: str):
    relations = {row.relation for row in load_published(table)}
    for name in FILES:
        if table in load(name).compare:
            assert relations <= set(load(name).data.relations)
