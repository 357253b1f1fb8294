"""RunConfig: files, overrides, and what is said about wrong ones."""

import json
import typing
from pathlib import Path

import pytest

from experiments.config import SECTIONS, RunConfig, config_from_json, config_to_json, load_config
from headjax.analyses import CircuitDiscovery
from headjax.analyses.registry import ANALYSES
from headjax.data.prompts import Prompt
from headjax.data.relations import Relation
from headjax.errors import InputError
from headjax.options import field_kinds
from headjax.report.options import Report
from headjax.study import Data
from tests.helpers.runs import run_config


def _numeric(kind: object) -> bool:
    return bool({int, float} & {kind, *typing.get_args(kind)})


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
    data = config.data
    assert data.relations == ("copying", "name_copying")
    assert (data.top_k, data.first_mlp, config.report.threshold) == (25, False, 0.5)
    assert (data.relations_dir, config.out) == ("some/where", "7")


def test_none_and_all_undo_a_choice():
    config = load_config(
        "gpt2_medium_circuits", {"relations": "all", "heat_maps": "", "top_k": "none", "first_mlp": "None"}
    )
    assert config.data.relations == config.report.heat_maps == ()
    assert config.data.top_k is config.data.first_mlp is None


def test_run_json_brings_the_config_back():
    config = load_config("gpt2_medium_circuits", {"model": "gpt2,phi-2", "top_k": "3"})
    assert config_from_json(json.loads(json.dumps(config_to_json(config)))) == config
    prompt = Prompt("mine", "The capital of Peru is", "Lima", source=(15, 19))
    relation = Relation("capitals", [("Peru", "Lima")])
    config = run_config("gpt2", relations=(relation, "copying"), prompts=(prompt, "ioi"), mesh={"data": 2})
    assert config_from_json(json.loads(json.dumps(config_to_json(config)))) == config


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
        (
            {"analyses": "relation_score"},
            "'analyses' must be one of relation_scores.*; got 'relation_score'; did you mean relation_scores",
        ),
        ({"model": ","}, "'model' must name at least one"),
        ({"analyses": "all"}, "'analyses' must name at least one; got none"),
        ({"prompts": ","}, "'prompts' must name at least one; got none"),
        ({"prompts": ""}, "'prompts' must hold no empty text"),
        ({"out": " "}, "'out' must hold no empty text"),
        ({"out": "a\0b"}, r"'out' must be text without null characters.*got 'a\\x00b'"),
        ({"model": "gpt2,\udcff"}, r"'model' must be text without .* surrogate pairs; got '\\udcff'"),
        ({"analyses": "copy_score,copy_score"}, "'analyses' must name each once; twice: 'copy_score'"),
        ({"relations": '["a", "b", "a"]'}, "'relations' must name each once; twice: 'a'"),
        ({"relations": "[1]"}, "'relations' must be words separated by commas"),
        ({"prompts": "[" * 9999}, "'prompts' must be a list in JSON or Python"),
        ({"mesh": "data:2,data:2"}, "'mesh' must name each axis once"),
        ({"mesh": "data:2,rows:2"}, "'mesh' must give data and model"),
        ({"mesh": "model:0"}, "'mesh' must give data and model"),
        ({"mesh": "model:" + "9" * 5000}, "'mesh' must be sizes of axes"),
        ({"distributed": "localhost:1,2,2"}, "'distributed' must be COORDINATOR:PORT,COUNT,ID"),
        ({"distributed": f"localhost:1,{'9' * 5000},2"}, "'distributed' must be COORDINATOR:PORT,COUNT,ID"),
        (
            {
                **{"stream": "true", "analyses": "gradient_attribution"},
                **{"positions": "all", "replacement": "mean"},
            },
            "'stream'.* needs replacement 'zero'; got 'mean'",
        ),
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
            "from experiments.config import RunConfig as R\nfrom headjax.study import Data\n"
            "def get_config(): return R('m', data=Data(top_k='10'))",
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


NUMBERS = ("1e400", "-1e400", "nan", "NaN", "Infinity", "-1", "1" * 5000, "9" * 30, "1_000", "٣", "0x10", "")


PARTS = {"": RunConfig, **SECTIONS, **ANALYSES}
NUMERIC = [
    (part, name) for part in PARTS for name, kind in field_kinds(PARTS[part]).items() if _numeric(kind)
]


@pytest.mark.parametrize(("part", "name"), NUMERIC)
def test_every_number_has_its_range(part: str, name: str):
    """Whatever a command line gives: a number of the field's range, or one line."""
    asked = {"analyses": f"relation_scores,{part}"} if part in ANALYSES and part != "relation_scores" else {}
    for text in NUMBERS:
        with pytest.raises(InputError, match=f"field '{name}' must be") as caught:
            load_config("relation_scores", asked | {name: text})
        assert len(str(caught.value)) < 300
    for value in (float("nan"), float("inf"), -1, 10**400):
        with pytest.raises(InputError, match=f"field '{name}' must be"):
            RunConfig("gpt2", **{name: value}) if part == "" else PARTS[part](**{name: value})


def test_shares_are_at_most_one():
    for options, name in ((Report, "threshold"), (CircuitDiscovery, "top_share")):
        assert isinstance(getattr(options(**{name: 1}), name), float)
        with pytest.raises(InputError, match=f"'{name}' must be at most 1; got 1.01"):
            options(**{name: 1.01})
    with pytest.raises(InputError, match="'n_prompts' must be at most 100000; got 100000000"):
        Data(n_prompts=10**8)


def test_a_list_is_words_or_json():
    for field in ("model", "prompts", "relations"):
        for text, expected in (('["a, b", "c"]', ("a, b", "c")), ('["a"]', ("a",)), ("a,b", ("a", "b"))):
            config = load_config("demo", {field: text})
            assert getattr(config if field == "model" else config.data, field) == expected
    assert load_config("demo", {"templates": "('<X>, a', '<X> b')"}).data.templates == ("<X>, a", "<X> b")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = (\n", "valid Python; .*config.py, line 1: '\\(' was never closed"),
        (
            "import json\n\njson.nothing\n",
            "without an error; .*config.py, line 3: AttributeError: ",
        ),
        ("def get_config():\n    return 1 / 0\n", "config.py, line 2: ZeroDivisionError: division by zero"),
        ("import sys\nsys.exit('no')", "config.py, line 2: SystemExit: no"),
        ("import nowhere_at_all", "config.py, line 1: ModuleNotFoundError: No module"),
        (
            "from experiments.config import RunConfig as R\ndef get_config():\n    return R('m', nothing=1)",
            "config.py, line 3: TypeError: .*'nothing'",
        ),
        ("raise ValueError('two\\nlines ' + 'x' * 9999)", "line 1: ValueError: two lines x"),
        ("x = '\0'", "valid Python|without an error"),
    ],
)
def test_a_config_file_at_fault_is_named_with_its_line(text: str, message: str, tmp_path: Path):
    (tmp_path / "config.py").write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        load_config(str(tmp_path / "config.py"), {})
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300 + len(str(tmp_path))


def test_a_config_is_a_python_file(tmp_path: Path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "directory.py").mkdir()
    for name, message in (
        ("config.json", "does not end in .py"),
        ("directory.py", "is a directory"),
        ("", "is a dir"),
    ):
        with pytest.raises(InputError, match=f"must be a Python file; .*{message}"):
            load_config(str(tmp_path / name), {})
