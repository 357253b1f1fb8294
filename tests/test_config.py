"""RunConfig: files, overrides, and what is said about wrong ones."""

from pathlib import Path

import pytest

from experiments.config import RunConfig, config_from_json, config_to_json, load_config
from headjax.errors import InputError

CONFIGS = Path(__file__).resolve().parents[1] / "experiments" / "configs"


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("[a-z]*.py")), ids=lambda file: file.stem)
def test_every_config_loads_and_says_how_to_run_it(file: Path):
    assert isinstance(load_config(str(file), {}), RunConfig)
    assert load_config(file.stem, {}) == load_config(str(file), {})
    assert f"--config experiments/configs/{file.name}" in file.read_text()


def test_overrides_take_the_type_of_their_field():
    config = load_config(
        "demo",
        {
            "model": "gpt2,phi-2",
            "relations": "copying, name_copying",
            "top_k": "25",
            "first_mlp": "false",
            "threshold": "0.5",
            "relations_dir": "some/where",
            "out": "7",
        },
    )
    assert config.model == ("gpt2", "phi-2")
    assert config.relations == ("copying", "name_copying")
    assert (config.top_k, config.first_mlp, config.threshold) == (25, False, 0.5)
    assert (config.relations_dir, config.out) == ("some/where", "7")


def test_none_and_all_undo_a_choice():
    config = load_config(
        "gpt2_medium_circuits", {"relations": "all", "heat_maps": "", "top_k": "none", "first_mlp": "None"}
    )
    assert config.relations == config.heat_maps == ()
    assert config.top_k is config.first_mlp is None


def test_run_json_brings_the_config_back():
    config = load_config("gpt2_medium_circuits", {"model": "gpt2,phi-2", "top_k": "3"})
    assert config_from_json(config_to_json(config)) == config


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"tresholt": "0.1"}, "no field 'tresholt'; near ones: threshold"),
        ({"xyzzy": "1"}, "no field 'xyzzy'; fields: model, "),
        ({"top_k": "ten"}, "'top_k' must be a whole number or none; got 'ten'"),
        ({"top_k": "2.5"}, "'top_k' must be a whole number or none; got '2.5'"),
        ({"top_k": "0"}, "'top_k' must be at least 1; got 0"),
        ({"count_suppression": "1"}, "'count_suppression' must be true or false; got '1'"),
        ({"threshold": "high"}, "'threshold' must be a number; got 'high'"),
        ({"dtype": "float64"}, "'dtype' must be one of float32, bfloat16, float16; got 'float64'"),
        ({"analyses": "relation_score"}, "'analyses' must be one of relation_scores.*; got 'relation_score'"),
        ({"model": ","}, "'model' must name at least one model"),
    ],
)
def test_wrong_overrides_are_refused(overrides: dict[str, str], message: str):
    with pytest.raises(InputError, match=message):
        load_config("demo", overrides)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1", "must define get_config"),
        ("def get_config(): return {'model': 'gpt2'}", "must return a RunConfig; .* returns dict"),
        (
            "from experiments.config import RunConfig as R\ndef get_config(): return R('m', top_k='10')",
            "'top_k' must be a whole number or none; got '10'",
        ),
    ],
)
def test_wrong_config_files_are_refused(text: str, message: str, tmp_path: Path):
    file = tmp_path / "config.py"
    file.write_text(text)
    with pytest.raises(InputError, match=message):
        load_config(str(file), {})


def test_a_missing_config_file_is_named(tmp_path: Path):
    with pytest.raises(InputError, match=r"there is no .*nowhere\.py"):
        load_config(str(tmp_path / "nowhere.py"), {})
