"""The command `headjax`: what it does not understand it says at once; what it runs is what a config says."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import headjax
from experiments import cli
from experiments.config import load_config, split_fields
from headjax.errors import InputError
from tests.helpers.tiny_run import tiny_run

ROOT = Path(__file__).resolve().parents[1]


def headjax_command(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "headjax", *arguments]
    environment = os.environ | {"XLA_FLAGS": ""}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (("--help",), 0, "COMMAND"),
        (("--version",), 0, f"headjax {headjax.__version__}"),
        (("run", "--help"), 0, "--FIELD VALUE"),
        (("rum",), 2, "invalid choice: 'rum'"),
        (("list", "model"), 2, "invalid choice: 'model'"),
        ((), 2, "required: COMMAND"),
    ],
)
def test_help_and_mistyped_commands_take_no_second_of_work(arguments, status, said, capfd):
    """In the seconds of the processor, which a busy machine does not stretch."""
    before = os.times()
    done = headjax_command(*arguments)
    after = os.times()
    assert done.returncode == status
    assert said in done.stdout + done.stderr
    assert after.children_user - before.children_user < 1


def test_help_imports_nothing_that_takes_time():
    code = "import sys, experiments.cli; print([name for name in ('jax', 'torch') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout == "[]\n"


def test_importing_a_run_imports_neither_torch_nor_what_only_some_runs_need():
    names = ("torch", "transformers", "orbax.checkpoint", "matplotlib", "scipy.stats")
    code = f"import sys, experiments.run; print([m for m in {names} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout == "[]\n", done.stderr


@pytest.mark.parametrize(
    ("arguments", "config", "progress"),
    [
        ("run --n_prompts 4", "relation_scores", True),
        ("run trained --n_prompts 4", "trained", True),
        ("run --noprogress trained --n_prompts 4", "trained", False),
        ("run trained --noprogress --n_prompts 4", "trained", False),
        ("run trained --n_prompts 4 --noprogress", "trained", False),
        ("run --n_prompts 4 --noprogress", "relation_scores", False),
    ],
)
def test_a_run_without_progress_is_asked_for_anywhere(
    arguments: str, config: str, progress: bool, monkeypatch
):
    asked = []
    monkeypatch.setattr("experiments.run.execute", lambda *how: asked.append(how))
    monkeypatch.setattr(sys, "argv", ["headjax", *arguments.split()])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    assert asked == [(config, {"n_prompts": "4"}, False, progress)]


def test_fields_in_any_spelling():
    assert split_fields(["--model", "gpt2", "--out=a=b", "--config.analyses.mean.positions=all"]) == {
        **{"model": "gpt2", "out": "a=b", "analyses.mean.positions": "all"},
    }
    for wrong, message in (
        (["model"], "fields are given as --FIELD VALUE, after all else; got 'model'"),
        (["--model"], "'--model' has none"),
        (["--out", "a", "--config.out=b"], "a field must be given once; got --out twice"),
    ):
        with pytest.raises(InputError, match=message):
            split_fields(wrong)


def test_a_run_a_plan_and_its_figures(tmp_path: Path):
    tiny = tiny_run(tmp_path)
    fields = ["--model", tiny.model, "--relations_dir", tiny.data.relations_dir, "--min_pairs=3"]
    fields += ["--out", str(tmp_path / "out")]
    planned = headjax_command("plan", *fields, "--rate", "1")
    assert planned.returncode == 0, planned.stderr
    assert "relation_scores" in planned.stdout
    done = headjax_command("run", *fields)
    assert done.returncode == 0, done.stderr
    written = json.loads((tmp_path / "out" / "run.json").read_text())
    assert written["config"]["model"] == tiny.model
    figure = tmp_path / "out" / "figures" / "category_map.png"
    before = figure.read_bytes()
    figure.unlink()
    assert headjax_command("draw", str(tmp_path / "out")).returncode == 0
    assert figure.read_bytes() == before
    wrong = headjax_command("run", *fields, "--positions", "all")
    assert wrong.returncode == 2
    assert wrong.stderr.startswith(
        "error: field 'positions' must have an effect; it has one on head_ablation"
    )
    assert wrong.stderr.count("\n") == 1


def test_everything_there_is_by_name_is_listed():
    models, relations, configs, analyses = (list(cli.list_names(what)) for what in cli.LISTS[:4])
    assert any(line.startswith("gpt2-xl ") for line in models)
    assert any(line.startswith("planted ") for line in models)
    assert len(relations) == 20
    for line in configs:
        assert load_config(line.split()[0], {})
    assert "    --replacement (default zero)" in analyses
    assert {"head_ablation", "data"} <= {line.partition(":")[0] for line in analyses}
    assert "circuit_reuse" in {line.split()[0] for line in cli.list_names("circuits")}
    assert "maps_scores" in set(cli.list_names("published"))


def test_the_time_of_a_mistyped_field():
    """It takes JAX, which analyses import, and neither torch nor transformers."""
    before = os.times()
    done = headjax_command("run", "--modle", "gpt2")
    assert os.times().children_user - before.children_user < 5
    assert done.stderr == "error: a config has no field 'modle'; near ones: model\n"
