"""`python -m experiments.run`: from checkpoints on disk to every file it promises, and its error lines."""

import csv
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import matplotlib.image as mpimg
import numpy as np
import pytest

from experiments import draw
from experiments import run as runner
from experiments.config import RunConfig
from experiments.run import parse_overrides, run
from headjax.errors import InputError, run_main
from headjax.grid import load_npz
from headjax.report.drawing import marks_for
from headjax.report.options import Report
from tests.helpers.own_relations import write_relations
from tests.helpers.runs import altered, run_config
from tests.helpers.tiny_run import tiny_run
from tests.helpers.trained_checkpoints import TRAINED
from tests.helpers.trained_prompts import MODEL

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunConfig, list[Path]]:
    """One run over a trained checkpoint."""
    tmp = tmp_path_factory.mktemp("run")
    (tmp / "relations").mkdir()
    config = run_config(
        model=MODEL,
        relations_dir=write_relations("trained-llama", tmp / "relations"),
        min_pairs=3,
        top_k_copying=20,
        circuits=("copying=L1H2",),
        out=str(tmp / "out"),
        checkpoint_dir=str(tmp / "checkpoints"),
    )
    return config, run(config, progress=False)


def test_writes_every_file_it_names(finished):
    config, files = finished
    out = Path(config.out)
    names = {file.relative_to(out).as_posix() for file in files}
    figures = {"category_map", "relations_trained-llama_copying"}
    assert names == {
        *("scores.csv", "scores.npz", "summary.csv", "pairs.csv", "circuit_prediction.csv", "run.json"),
        "head_categories.csv",
        *("page.json", "report.html"),
        *(f"figures/{figure}.{kind}" for figure in figures for kind in ("png", "pdf")),
    }
    assert {f.relative_to(out).as_posix() for f in out.rglob("*") if f.is_file()} == names
    assert all(file.stat().st_size > 60 for file in files)


def test_scores_of_all_heads_in_csv_and_npz(finished):
    config, _ = finished
    with open(Path(config.out) / "scores.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["kind"] for row in rows} == {"static", "static_suppression"}
    assert len(rows) == 2 * 3 * 4  # signs, layers, heads
    assert {float(row["score"]) for row in rows} > {0.0}
    assert {(row["model"], row["relation"], row["n_pairs"]) for row in rows} == {
        ("trained-llama", "copying", "4")
    }
    for grid in load_npz(Path(config.out) / "scores.npz"):
        of_kind = [float(row["score"]) for row in rows if row["kind"] == grid.kind]
        np.testing.assert_array_equal(grid.scores.ravel(), np.float32(of_kind))


def test_summary_says_what_was_skipped_and_why(finished):
    config, _ = finished
    with open(Path(config.out) / "summary.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    skipped = [row for row in rows if row["skipped"]]
    assert [(row["relation"], row["skipped"]) for row in skipped] == [
        ("too_few", "0 of 1 pairs are single tokens, min_pairs is 3; not in the vocabulary: unheard-of")
    ]
    counts = [
        int(row["heads"])
        for row in rows
        if row["category"].endswith(("nclassified", "categories", "category"))
    ]
    assert sum(counts) == 3 * 4


def test_run_json_says_what_determined_the_numbers(finished):
    config, _ = finished
    described = json.loads((Path(config.out) / "run.json").read_text())
    (model,) = described["models"]
    assert set(model["source"]["files"]) >= {"config.json", "model.safetensors", "tokenizer.json"}
    assert model["relations"] == {"copying": 4}
    assert model["bos"] is None
    assert model["dropped"] == {}
    assert model["config"]["n_kv_heads"] == 2
    assert described["versions"]["jax"]
    assert described["devices"]["platform"] == "cpu"
    assert described["precision"] == "highest"
    assert described["peak_bytes"]["host"] > 1e6
    assert set(described["implementations"]) == {"relation_hits"}
    assert all(seconds > 0 for seconds in described["seconds"].values())


def test_figures_are_drawn_again_without_the_model(finished, capsys):
    config, files = finished
    figures = [file for file in files if file.suffix == ".png"]
    before = {file: file.read_bytes() for file in figures}
    for file in figures:
        file.unlink()
    draw.main(["draw", config.out])
    assert {file: file.read_bytes() for file in figures} == before
    assert "category_map.png" in capsys.readouterr().out


def test_figures_are_drawn_again_otherwise(finished, tmp_path: Path):
    config, _ = finished
    out = Path(shutil.copytree(config.out, tmp_path / "out"))
    before = {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}
    usual = out / "figures" / "relations_trained-llama_copying.png"
    fields = {"formats": "svg,png", "size": "0.5", "title": "Mine: {}", "colors": "cividis"}
    drawn = draw.draw_again(out, fields)
    assert {file.suffix for file in drawn} == {".svg", ".png", ".json", ".html"}
    text = (out / "figures" / "relations_trained-llama_copying.svg").read_text()
    assert drawn == draw.draw_again(out, fields)
    assert (out / "figures" / "relations_trained-llama_copying.svg").read_text() == text  # byte for byte
    small, large = (mpimg.imread(file) for file in (usual, Path(config.out) / usual.relative_to(out)))
    assert small.shape[0] < 0.9 * large.shape[0]
    middle = tuple(n // 2 for n in small.shape[:2])
    assert small[middle][2] != large[tuple(n // 2 for n in large.shape[:2])][2]  # of another map
    changed = {file for file, content in before.items() if file.read_bytes() != content}
    assert {file.suffix for file in changed} == {".png", ".json", ".html"}  # neither scores nor PDFs
    record = json.loads((out / "run.json").read_text())
    assert record["drawn_with"] == fields
    assert set(record["files"]) >= {file.relative_to(out).as_posix() for file in drawn}
    draw.draw_again(out, {})  # as it was drawn by the run
    assert usual.read_bytes() == before[usual]
    draw.draw_again(out, {"threshold": "0.99", "report.origin": "upper"})
    assert (out / "figures" / "category_map.png").read_bytes() != before[out / "figures" / "category_map.png"]
    for fields, message in (
        ({"top_k": "3"}, "are drawn again with other values of threshold, .*; top_k needs another run"),
        ({"tables": "md"}, "are drawn again with other values of threshold, .*; tables needs another run"),
        ({"circuits": "L9H6"}, "L9H6"),
        ({"circuits": "copying=L1H2,copying=L0H1"}, "circuits must mark each relation once, .*L0H1"),
        ({"circuits": "unknown=L1H2"}, "circuits must name relations whose heads are scored: copying; got"),
        ({"heat_maps": "unknown"}, "heat_maps must name relations that are scored: copying; got 'unknown'"),
        ({"formats": "gif"}, "field 'formats' must be one of png, pdf, svg; got 'gif'"),
        ({"formats": ""}, "field 'formats' must name at least one; got none"),
        ({"colour": "x"}, "a config has no field 'colour'; near ones: colors"),
    ):
        with pytest.raises(InputError, match=message):
            draw.draw_again(out, fields)
    for arguments in (["draw"], ["draw", "--formats", "svg"]):
        with pytest.raises(InputError, match="first argument must be the directory of a finished run; got"):
            draw.main(arguments)


@pytest.mark.parametrize("name", TRAINED)
def test_every_trained_checkpoint_runs_through_to_its_figures(name: str, shared_data: Path, tmp_path: Path):
    (tmp_path / "relations").mkdir()
    config = run_config(
        model=str(shared_data / "checkpoints" / name),
        relations_dir=write_relations(name, tmp_path / "relations"),
        min_pairs=3,
        out=str(tmp_path / "out"),
        checkpoint_dir=str(tmp_path / "checkpoints"),
    )
    assert all(file.is_file() for file in run(config, progress=False))
    (model,) = json.loads((tmp_path / "out" / "run.json").read_text())["models"]
    bos = {"stories260K": {"text": "<s>", "id": 1}}
    assert model["bos"] == bos.get(name)


def command(*arguments: str, **environment: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "experiments.run", *arguments],
        cwd=ROOT,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def one_line(process: subprocess.Popen) -> str:
    """The one line with which a command ended, after those of its stages."""
    _, said = process.communicate(timeout=300)
    assert process.returncode == 2, said
    assert "Traceback" not in said
    *stages, line = said.strip().splitlines()
    assert not [line for line in stages if "error" in line], said
    assert line.startswith("error: ")
    return line.removeprefix("error: ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config=demo", "--config.tresholt=0.1"], "no field 'tresholt'; near ones: threshold"),
        (
            ["--config=demo", "--config.out=a", "--config.out=b"],
            "a field must be given once; got --config",
        ),
        (
            ["--config=relation_scores", "--config.replacement=mean"],
            "field 'replacement' must have an effect;",
        ),
        (["--confg=demo"], "--confg=demo"),
        (["--config=demo", "--dry_run=maybe"], "dry_run"),
        ([], "a run needs --config FILE"),
    ],
)
def test_a_command_line_at_fault_gives_one_line(arguments: list[str], message: str, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["run", *arguments])
    runner.FLAGS["config"].value = None  # of the command before
    with pytest.raises(SystemExit) as ended:
        run_main(runner.main, unknown_flags=True)
    (line,) = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2
    assert line.startswith("error: ")
    assert message in line


def test_processes_end_with_one_line(tmp_path: Path):
    """A model that is not there, and a device that is not."""
    out = f"--config.out={tmp_path / 'out'}"
    missing = command("--config=relation_scores", "--config.model=no-such-model", out)
    assert "no-such-model" in one_line(missing)
    assert not any((tmp_path / "out").iterdir())
    assert "JAX_PLATFORMS is cuda" in one_line(command("--config=relation_scores", out, JAX_PLATFORMS="cuda"))


def test_a_run_that_is_asked_to_end_keeps_what_is_finished(tmp_path: Path):
    config = altered(tiny_run(tmp_path), analyses=("relation_scores",), templates=())
    (tmp_path / "config.py").write_text(
        "import time\n"
        "from experiments.config import RunConfig\n"
        "from headjax.analyses import *\n"
        "from headjax.report.options import Report\n"
        "from headjax.study import *\n"
        "from experiments.units import Units\n"
        "store = Units._store\n"
        "Units._store = lambda *unit: (store(*unit), time.sleep(100))\n"  # the first takes its time
        f"def get_config(): return {config!r}\n"
    )
    process = command(f"--config={tmp_path / 'config.py'}", "--noprogress")
    while not (units := list((tmp_path / "out" / "units").glob("*/*.unit"))) and process.poll() is None:
        time.sleep(0.1)
    process.terminate()
    assert one_line(process) == (
        "stopped by SIGTERM; what is finished is kept: start the same run again to go on"
    )
    assert [file for file in (tmp_path / "out").rglob("*") if file.is_file()] == units


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heat_maps": ("country_to_capital",)}, "heat_maps must name relations that are scored"),
        ({"circuits": ("copying=L9H9",)}, "L9H9"),
        ({"circuits": ("nobody=L1H1",)}, "nobody"),
        ({"relations": ("copyin",)}, "copying"),
        ({"relations_dir": "/nowhere/at/all"}, "/nowhere/at/all"),
        ({"min_pairs": 8}, "a relation needs min_pairs=8 pairs"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_is_written(finished, changes, message, tmp_path):
    config, _ = finished
    changed = altered(config, out=str(tmp_path / "out"), **changes)
    with pytest.raises(InputError, match=message):
        run(changed, progress=False)
    assert not any(file.is_file() for file in (tmp_path / "out").rglob("*"))


def test_an_unwritable_out_is_named(finished, tmp_path):
    config, _ = finished
    (tmp_path / "out").write_text("a file stands here")
    with pytest.raises(InputError, match=r"out.*must be writable"):
        run(altered(config, out=str(tmp_path / "out")), progress=False)


def test_overrides_are_field_equals_value():
    assert parse_overrides(["--config.out=a=b", "--config.top_k=3"]) == {"out": "a=b", "top_k": "3"}
    with pytest.raises(InputError, match=r"--config\.FIELD=VALUE"):
        parse_overrides(["--config.out", "x"])


def test_what_cannot_be_drawn_leaves_the_figures_as_they_were(finished, tmp_path: Path, monkeypatch):
    """The last figure of several fails."""
    config, _ = finished
    out = Path(shutil.copytree(config.out, tmp_path / "out"))
    before = {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}

    def fail(*_):
        raise InputError("no room")

    monkeypatch.setattr(draw, "draw_comparison", fail)
    with pytest.raises(InputError, match="no room"):
        draw.draw_again(out, {"title": "Another"})
    assert {file: file.read_bytes() for file in out.rglob("*") if file.is_file()} == before


def test_marks_of_a_relation_go_before_those_of_all(finished):
    config, _ = finished
    grid = load_npz(Path(config.out) / "scores.npz").select(kind="static").one
    report = Report(circuits=("L0H1", "copying=L1H2"))
    assert [str(head) for head in marks_for(grid, report).heads()] == ["L1H2"]
    other = replace(grid, relation="capitals")
    assert [str(head) for head in marks_for(other, report).heads()] == ["L0H1"]
