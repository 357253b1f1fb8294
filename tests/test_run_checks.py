"""What cannot be done is said before any work: one line, status 2, no forward pass, nothing written."""

import dataclasses
import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from experiments import run as runner
from experiments.check import check_out, check_unique
from experiments.config import RunConfig
from experiments.plan import print_plan
from headjax.data import prompt_sets
from headjax.errors import InputError, run_main
from headjax.grid import GridSet, HeadGrid
from headjax.io import atomic_write, safe_name
from tests.helpers.runs import altered
from tests.helpers.tiny_run import tiny_run

TWIN = {"prompt": "The capital of Italy is", "answer": "Rome", "corrupted": "The capital of Spain is"}
ABLATE = ("relation_scores", "head_ablation")
CURVES = ("relation_scores", "ablation_curves")
PATHS = ("path_patching",)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    tmp = tmp_path_factory.mktemp("checks")
    config = altered(tiny_run(tmp), replacement="zero")
    (tmp / "one.jsonl").write_text(json.dumps(TWIN))
    (tmp / "twins.jsonl").write_text(json.dumps(TWIN | {"distractor": "Madrid"}))
    (tmp / "bad.jsonl").write_text('{"prompt": "The capital of Italy is"}')
    shutil.copytree(config.model, tmp / "other" / "MODEL")
    return config


@pytest.fixture
def refused(monkeypatch, capsys, count_compiles) -> Callable[[RunConfig], str]:
    """The one line with which a run of a config ends before it computes anything."""

    def refuse(config: RunConfig) -> str:
        monkeypatch.setattr(sys, "argv", ["run", "--config=any"])
        monkeypatch.setattr(runner, "load_config", lambda path, overrides: config)
        with count_compiles() as compiled, pytest.raises(SystemExit) as ended:
            run_main(runner.main, unknown_flags=True)
        lines = capsys.readouterr().err.splitlines()
        assert ended.value.code == 2
        assert not compiled
        assert not [line for line in lines[:-1] if not re.search(r": (check|load): [\d.]+ s$", line)]
        out = Path(config.out)
        assert not out.is_dir() or not [file for file in out.rglob("*") if file.is_file()]
        return lines[-1].removeprefix("error: ")

    return refuse


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"analyses": ABLATE, "metrics": ("logit_diff",)}, "'logit_diff' needs prompts with distractors"),
        (
            {"analyses": ("gradient_attribution",), "metrics": ("accuracy",)},
            "gradients are measured by logprob or logit_diff; metrics are accuracy: nothing would be",
        ),
        (
            {"analyses": CURVES, "rank_by": "statik"},
            "rank_by is 'statik', grids there are: static, stat",
        ),
        ({"analyses": CURVES[::-1]}, "rank_by is 'static', grids there are: none"),
        (
            {"analyses": CURVES, "rank_by": "dynamic_context"},
            "rank_by is 'dynamic_context', grids there are: ",
        ),
        ({"analyses": CURVES, "prompts": "{}/one.jsonl"}, "'static' has capitals, copying, not one"),
        (
            {"analyses": ("attention_patterns", "ablation_curves"), "rank_by": "attention_induction"},
            "'attention_induction' has prompts, repeated_tokens, not capitals",
        ),
        (
            {"analyses": ("universality",)},
            "universality needs relation_scores before it; grids there are: none",
        ),
        (
            {"analyses": ("head_ablation",), "prompts": "{}/one.jsonl", "replacement": "resample"},
            None,  # it has a corrupted partner
        ),
        (
            {"analyses": ABLATE, "replacement": "resample", "n_prompts": 1},
            "resampling needs corrupted partners",
        ),
        ({"analyses": PATHS, "prompts": "{}/one.jsonl"}, "path patching needs prompts with distractors"),
        ({"analyses": PATHS, "receivers": ("L9H0.q",)}, "the model has 5 layers of 3 heads; got L9H0"),
        ({"analyses": PATHS, "receivers": ("L0H0.q",)}, "a receiver must be above layer 0.*; got L0H0.q"),
        ({"analyses": PATHS, "receivers": ("L3H0.v",)}, "only with positions='all'; got the receiver L3H0.v"),
        ({"analyses": PATHS, "receivers": ("L3H0.x",)}, "like L9H6.q; got 'L3H0.x'"),
        ({"analyses": ("salient_operations",), "heads": ("L1H3",)}, "5 layers of 3 heads; got L1H3"),
        ({"circuits": ("copying=L1H3",)}, "marked heads must be inside the model"),
        ({"circuits": ("copying=nowhere.json",)}, "nowhere.json: cannot be read"),
        (
            {"circuits": ("nobody=L1H1",)},
            "circuits must name relations whose heads are scored: capitals, copying",
        ),
        (
            {"heat_maps": ("copyin",)},
            "heat_maps must name relations that are scored: capitals, copying",
        ),
        ({"relations": ("copyin",)}, "'copyin' is not in"),
        ({"min_pairs": 8}, "a relation needs min_pairs=8 pairs"),
        ({"templates": ("no slot",)}, "a template must hold <X>.*; got 'no slot'"),
        ({"templates": ("<X> " * 99,), "analyses": ("dynamic_scores",)}, "1 to 64 tokens"),
        ({"prompts": "{}/nowhere.jsonl", "analyses": ("head_ablation",)}, "nowhere.jsonl: cannot be read"),
        (
            {"prompts": "{}/bad.jsonl", "analyses": ("head_ablation",)},
            "bad.jsonl line 1: .*'answer' is missing",
        ),
        ({"prompts": "{}", "analyses": ("head_ablation",)}, "cannot be read: Is a directory"),
        (
            {"top_k": 10_000},
            "capitals: a hit is within the first k tokens of more; k is 10000",
        ),
        ({"mesh": {"data": 3, "model": 5}}, "a mesh must hold all 8 devices; data 3 x model 5 are 15"),
        ({"compare": ("maps_scores",)}, "compare: maps_scores has gpt2-xl, .*; the run has "),
    ],
)
def test_it_is_said_before_any_work(config, refused, changes: dict, message: str | None, tmp_path: Path):
    root = str(Path(config.model).parent)

    def at(value: object) -> object:
        if isinstance(value, tuple):
            return tuple(map(at, value))
        return value.replace("{}", root) if isinstance(value, str) else value

    changes = {"analyses": ("relation_scores",)} | {field: at(value) for field, value in changes.items()}
    said = ""
    try:
        changed = altered(config, out=str(tmp_path / "out"), **changes)
    except InputError as error:  # an analysis is at fault by itself
        said = str(error)
    if message is None:
        print_plan(changed)
    else:
        assert re.search(message, said or refused(changed))


def test_copy_scores_need_names(config, refused, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(prompt_sets, "IOI_NAMES", "John Mary Xerxes Zoroaster")
    changed = altered(config, analyses=("copy_score",), out=str(tmp_path / "out"))
    assert "needs 5 names that are one token each; 2 are" in refused(changed)


def test_a_plan_refuses_the_same(config, tmp_path: Path):
    changed = altered(config, analyses=CURVES[::-1], mesh={"data": 1})
    with pytest.raises(InputError, match="rank_by is 'static', grids there are: none"):
        print_plan(changed)


def test_results_that_could_not_be_written_are_named(config, refused, tmp_path: Path):
    out = tmp_path / "out"
    changed = altered(config, out=str(out))
    (out / "scores.csv").mkdir(parents=True)
    assert re.search(r"results are written to files; .*out/scores.csv is a directory", refused(changed))
    (out / "scores.csv").rmdir()
    (out / "figures" / "category_map.png").mkdir(parents=True)
    assert "category_map.png is a directory" in refused(changed)
    file = tmp_path / "file"
    file.write_text("")
    for name in (file, file / "below", tmp_path / ("x" * 300)):
        with pytest.raises(InputError, match="must be writable"):
            runner.run(altered(config, out=str(name)), progress=False)


def test_an_unconverted_model_is_not_converted_first(config, refused, tmp_path: Path):
    """All models are looked at before the first is converted."""
    fields = {
        "model_type": "gpt2",
        "n_embd": 24,
        "n_head": 3,
        "n_layer": 5,
        "n_positions": 97,
        "vocab_size": 400,
    }
    for file in Path(config.model).glob("*token*.json"):
        (tmp_path / "unconverted").mkdir(exist_ok=True)
        shutil.copy(file, tmp_path / "unconverted")
    (tmp_path / "unconverted" / "config.json").write_text(json.dumps(fields))
    changed = altered(
        config,
        model=(str(tmp_path / "unconverted"), config.model),
        analyses=("salient_operations",),
        heads=("L4H3",),
        out=str(tmp_path / "out"),
        checkpoint_dir=str(tmp_path / "checkpoints"),
    )
    assert "5 layers of 3 heads; got L4H3" in refused(changed)
    assert not (tmp_path / "checkpoints").exists()


def test_coordinates_are_apart():
    grid = HeadGrid(np.zeros((2, 3)), "m", "r", "c", "static", 3)
    check_unique(GridSet((grid, dataclasses.replace(grid, template="<X>"))))
    with pytest.raises(InputError, match=r"coordinates of its own; 2 have m, static, r$"):
        check_unique(GridSet((grid, grid)))


def test_a_name_of_many_words_is_a_files_name(tmp_path: Path):
    """As of a figure of all relations: cut, and still its own."""
    words = [f"relation {i} 日本" for i in range(40)]
    names = {safe_name("maps", *words[:n]) for n in range(1, 41)}
    assert len(names) == 40
    for name in names:
        with atomic_write(tmp_path / f"{name}.png") as file:
            file.write("")
    assert safe_name("maps", "a b") == "maps_a_b"


def test_looking_whether_results_can_be_written_leaves_an_empty_directory(tmp_path: Path):
    check_out(tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file"):
        check_out(tmp_path / "file")
