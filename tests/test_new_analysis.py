"""A new analysis is one file and one line: here it lies in a config file that the documentation shows.

No other file knows it.

It is run, planned, killed and resumed, streamed, drawn, tabulated and reported, on one device and on eight.
"""

import csv
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from experiments import draw
from experiments.config import RunConfig, load_config
from experiments.page import main as page_again
from experiments.plan import print_plan
from experiments.run import run
from headjax.analyses.registry import ANALYSES
from headjax.grid import load_npz
from tests.helpers.kills import killed_after
from tests.helpers.page_content import content
from tests.helpers.runs import altered
from tests.helpers.tiny_run import tiny_run

ROOT = Path(__file__).resolve().parents[1]
FILE = ROOT / "docs" / "examples" / "head_norm.py"  # the documentation shows it


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Fields of a run on a tiny model, in place of those that the documentation's file gives."""
    tiny, known = tiny_run(tmp_path_factory.mktemp("new")), dict(ANALYSES)
    fields = {
        "model": tiny.model,
        "relations_dir": tiny.data.relations_dir,
        "min_pairs": "3",
        "out": tiny.out,
    }
    yield fields
    ANALYSES.clear()
    ANALYSES.update(known)


@pytest.fixture(scope="module")
def finished(asked: dict[str, str]) -> tuple[RunConfig, list[Path]]:
    config = load_config(str(FILE), asked)
    return config, run(config, progress=False)


def scores(config: RunConfig) -> dict[tuple[str, str], np.ndarray]:
    grids = load_npz(Path(config.out) / "scores.npz")
    return {(grid.analysis, grid.relation): grid.scores for grid in grids}


def test_it_is_run_tabulated_drawn_and_reported(finished, capsys):
    config, files = finished
    found, out = scores(config), Path(config.out)
    assert {analysis for analysis, _ in found} == {"head_norm", "squared"}
    for (analysis, relation), grid in found.items():
        assert grid.shape == (5, 3)
        assert (grid > 0).all()
        if analysis == "squared":
            assert (grid >= found["head_norm", relation] ** 2 * (1 - 1e-5)).all()  # mean of squares
    with open(out / "squared_largest_norms.csv", newline="") as opened:
        assert [int(row["layer"]) for row in csv.DictReader(opened)] == list(range(5))
    with open(out / "scores.csv", newline="") as opened:
        assert {row["analysis"] for row in csv.DictReader(opened)} == {"head_norm", "squared"}
    with open(out / "summary.csv", newline="") as opened:
        assert [row["kind"] for row in csv.DictReader(opened) if row["relation"]] == ["head_norm"] * 4
    named = {file.name for file in files}
    assert {"head_norm_tiny_capitals_copying.png", "squared_head_norm_tiny_capitals_copying.pdf"} <= named
    assert json.loads((out / "run.json").read_text())["config"]["analyses"]["squared"]["power"] == 2.0
    pictures = {path: path.read_bytes() for path in files if path.suffix == ".png"}
    for path in pictures:
        path.unlink()
    draw.main(["draw", config.out])
    assert {path: path.read_bytes() for path in pictures} == pictures


def test_it_is_on_the_page(finished):
    config, files = finished
    page = Path(config.out) / "report.html"
    assert page in files
    (said,) = content(page.read_text("utf-8"))[0]["runs"]
    assert "head norm and head norm (as squared) (power 2.0) of tiny" in said["sentence"]
    assert {one["analysis"] for one in said["grids"]} == {"head_norm", "squared"}
    tables = {part["title"]: part["rows"] for part in said["parts"]}
    assert set(tables) == {"Largest norms", "Squared largest norms"}
    assert [row[:2] for row in tables["Largest norms"]] == [["tiny", layer] for layer in range(5)]
    before = page.read_bytes()
    page.unlink()
    page_again(["report", config.out])
    assert page.read_bytes() == before


def test_it_is_planned(asked, capsys):
    print_plan(load_config(str(FILE), asked | {"mesh": "data:1"}))
    said = capsys.readouterr().out
    (line,) = [line for line in said.splitlines() if line.startswith("squared")]
    assert "not worked out" not in line


def test_it_is_streamed(asked, finished, tmp_path: Path):
    config = load_config(str(FILE), asked | {"stream": "true", "out": str(tmp_path)})
    run(config, progress=False)
    for key, grid in scores(finished[0]).items():
        np.testing.assert_allclose(scores(config)[key], grid, rtol=1e-5)


def test_it_is_killed_and_goes_on(finished, tmp_path: Path, monkeypatch):
    config = altered(finished[0], out=str(tmp_path))
    with killed_after(3, monkeypatch):
        run(config, progress=False)
    run(config, progress=False)
    assert json.loads((tmp_path / "run.json").read_text())["units_found"] == 3
    expected = (Path(finished[0].out) / "scores.npz").read_bytes()
    assert (tmp_path / "scores.npz").read_bytes() == expected


@pytest.mark.slow
def test_one_device_finds_what_eight_find(asked, finished, tmp_path: Path):
    fields = (asked | {"out": str(tmp_path)}).items()
    given = [f"--config.{name}={value}" for name, value in fields]
    command = [sys.executable, "-m", "experiments.run", f"--config={FILE}", *given]
    environment = os.environ | {"XLA_FLAGS": ""}
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, timeout=300)
    described = json.loads((tmp_path / "run.json").read_text())
    assert described["devices"]["count"] == 1
    for key, grid in scores(finished[0]).items():
        np.testing.assert_allclose(scores(altered(finished[0], out=str(tmp_path)))[key], grid, rtol=1e-5)
