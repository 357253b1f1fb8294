"""What counts as a hit: the rule that a model's scores were published with belongs to the model's name."""

import json

import pytest

from experiments.run import open_model, run
from headjax.data.hit_rule import HitRule, published_rule
from headjax.data.relations import RELATION_IDS
from headjax.parameters.converted import HEADER, seal
from headjax.zoo import MODELS, display_name
from tests.helpers.runs import altered
from tests.helpers.tiny_run import tiny_run

# Elhelo & Geva 2024, section 4.1 and appendix: k is 10, and 1 for copying; for Llama-3.1, whose vocabulary is
# larger, 25 and 3; Llama-3.1 70B takes the embedding itself, all others pass it through the first MLP.
ORDINARY, LLAMA_3, LLAMA_3_1_70B = HitRule(10, 1, True), HitRule(25, 3, True), HitRule(25, 3, False)
RULES = {
    "llama-3.1-8b": LLAMA_3,
    "llama-3.1-8b-instruct": LLAMA_3,
    "llama-3.1-70b": LLAMA_3_1_70B,
    "llama-3.1-70b-instruct": LLAMA_3_1_70B,
    # Not published; of the same vocabulary.
    **dict.fromkeys(("llama-3-8b", "llama-3-8b-instruct", "llama-3-70b", "llama-3-70b-instruct"), LLAMA_3),
    **dict.fromkeys(("llama-3.2-1b", "llama-3.2-1b-instruct"), LLAMA_3),
    **dict.fromkeys(("llama-3.2-3b", "llama-3.2-3b-instruct", "llama-3.3-70b-instruct"), LLAMA_3),
}
SPELLINGS = {
    "meta-llama/Meta-Llama-3.1-8B": LLAMA_3,
    "meta-llama/Meta-Llama-3-8B": LLAMA_3,
    "Llama-3.2-1B": LLAMA_3,
    "Llama-3.1 70B": LLAMA_3_1_70B,
    "meta-llama/Meta-Llama-3.1-70B": LLAMA_3_1_70B,
    "Llama-3.1-70B@0123abc": LLAMA_3_1_70B,
    "Llama-3.1 70B@0123abc": LLAMA_3_1_70B,
    "/mnt/models/Llama-3.1-70B/": LLAMA_3_1_70B,
    "Llama-3.3-70B-Instruct": LLAMA_3,  # not the published 70B
    "meta-llama/Llama-2-70b-hf": ORDINARY,
    "openlm-research/open_llama_3b": ORDINARY,
    "llama-30b": ORDINARY,
    "llama-3b": ORDINARY,
    "not-llama-3.1-70b": ORDINARY,
    "SmolLM2-135M-Instruct": ORDINARY,
}


@pytest.mark.parametrize("alias", MODELS)
def test_every_published_model_has_its_rule_by_alias_id_and_name(alias: str):
    for name in (alias, MODELS[alias].id, display_name(alias)):
        assert published_rule(name) == RULES.get(alias, ORDINARY), name


@pytest.mark.parametrize("name", SPELLINGS)
def test_a_rule_belongs_to_the_published_name(name: str):
    assert published_rule(name) == SPELLINGS[name]


def test_copying_relations_have_their_own_k():
    rule = HitRule(top_k=25, top_k_copying=3, first_mlp=True)
    small = {relation for relation in RELATION_IDS if rule.k(relation) == 3}
    assert small == {"copying", "name_copying"}
    assert {rule.k(relation) for relation in {*RELATION_IDS, "my relation"} - small} == {25}


def test_a_run_takes_the_rule_of_the_models_name_and_records_it(tmp_path):
    """Two directories with the same files: only the name differs."""
    config = altered(tiny_run(tmp_path), analyses=("relation_scores",))
    assert open_model(config.model, config).rule == ORDINARY
    source = tmp_path / "Llama-3.1-70B"
    file = tmp_path / "model" / HEADER
    header = json.loads(file.read_text("utf-8"))
    assert header["provenance"]["source"] == "tiny"
    header["provenance"]["source"] = str(source)
    file.write_text(json.dumps(seal(header)), "utf-8")
    run(config, progress=False)
    (record,) = json.loads((tmp_path / "out" / "run.json").read_text())["models"]
    assert record["hit_rule"] == LLAMA_3_1_70B._asdict()
    own = altered(config, top_k=7, top_k_copying=2, first_mlp=True)
    assert open_model(config.model, own).rule == HitRule(7, 2, True)
