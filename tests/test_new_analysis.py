"""A new analysis is one file and one line: here it lies in a config file, and no other file knows it.

It is run, planned, killed and resumed, streamed, drawn, tabulated and reported, on one device and on eight.
"""

import csv
import json
import os
import subprocess
import sys
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
FILE = '''
from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from experiments.config import RunConfig
from headjax.analyses.base import Asked, effect_grids
from headjax.analyses.registry import register
from headjax.costs import Cost, chunked, forward
from headjax.engine.layer_sweep import Sweep, run_sweep
from headjax.grid import Coordinate, GridSet
from headjax.options import option
from headjax.report.table import Table
from headjax.result import Result
from headjax.study import Compute, Data


class LargestNorm(NamedTuple):
    model: str
    layer: int
    norm: float


@register
@dataclass(frozen=True, kw_only=True)
class HeadNorm(Asked):
    """How long what each head writes before W_O is, at the last position.

    Attributes:
      power: of the norm.
    """

    kind = "head_norm"
    streams = True
    reads_tables = {"largest_norms": LargestNorm}
    power: float = option(1.0, least=0)

    def reads(self, data):
        return super().reads(data) | {"compute.stream"}

    def check(self, study, before):
        return {Coordinate("head_norm", task) for task in self.tasks(study)}

    def cost(self, study, machine):
        chunks, B, S, _ = chunked(study, study.task_batch(self.prompts).tokens, machine.copies)
        return Cost(chunks * forward(study.config, B, S), 0, frozenset({("head_norms", B, S)}))

    def run(self, study, work):
        batch = study.task_batch(self.prompts)
        how = dict(batch_size=study.compute.batch_size, track=work.track, remember=work.remember)
        norms = run_sweep(NORMS, study.sweep_model(), (batch.tokens, batch.mask), label="head norms", **how)
        norms = norms**self.power
        grids = effect_grids(study, batch, "head_norm", norms, "", np.zeros(len(norms)))
        largest = enumerate(norms.max(axis=(0, 2)))
        rows = tuple(LargestNorm(study.display_name, i, float(n)) for i, n in largest)
        return Result(GridSet(tuple(grids)), {"largest_norms": rows})

    def tables(self, name, found, report):
        stem = self.stem(name, "largest_norms")
        return [Table(stem, LargestNorm._fields, found.tables[stem], f"largest norms of {name}")]


NORMS = Sweep(
    "head_norms",
    begin=lambda model, tokens, mask: None,
    layer=lambda block, ran, asked, shared: jnp.linalg.norm(ran.z[:, -1], axis=-1),
    finish=lambda model, asked, kept, ends: jnp.moveaxis(kept, 0, 1),
)


def get_config():
    return RunConfig(
        MODEL,
        analyses={"head_norm": HeadNorm(), "squared": HeadNorm(power=2.0)},
        data=Data(relations_dir=RELATIONS, min_pairs=3, templates=("<X> is",)),
        compute=Compute(batch_size=8),
        out=OUT,
    )
'''


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tmp = tmp_path_factory.mktemp("new")
    known = dict(ANALYSES)
    tiny = tiny_run(tmp)
    names = {"MODEL": tiny.model, "RELATIONS": tiny.data.relations_dir, "OUT": tiny.out}
    (tmp / "config.py").write_text(FILE + "".join(f"\n{name} = {value!r}" for name, value in names.items()))
    yield tmp / "config.py"
    ANALYSES.clear()
    ANALYSES.update(known)


@pytest.fixture(scope="module")
def finished(file: Path) -> tuple[RunConfig, list[Path]]:
    config = load_config(str(file), {})
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


def test_it_is_planned(file: Path, capsys):
    print_plan(load_config(str(file), {"mesh": "data:1"}))
    said = capsys.readouterr().out
    (line,) = [line for line in said.splitlines() if line.startswith("squared")]
    assert "not worked out" not in line


def test_it_is_streamed(file: Path, finished, tmp_path: Path):
    config = load_config(str(file), {"stream": "true", "out": str(tmp_path)})
    run(config, progress=False)
    for key, grid in scores(finished[0]).items():
        np.testing.assert_allclose(scores(config)[key], grid, rtol=1e-5)


def test_it_is_killed_and_goes_on(file: Path, finished, tmp_path: Path, monkeypatch):
    config = altered(finished[0], out=str(tmp_path))
    with killed_after(3, monkeypatch):
        run(config, progress=False)
    run(config, progress=False)
    assert json.loads((tmp_path / "run.json").read_text())["units_found"] == 3
    expected = (Path(finished[0].out) / "scores.npz").read_bytes()
    assert (tmp_path / "scores.npz").read_bytes() == expected


@pytest.mark.slow
def test_one_device_finds_what_eight_find(file: Path, finished, tmp_path: Path):
    command = [sys.executable, "-m", "experiments.run", f"--config={file}", f"--config.out={tmp_path}"]
    environment = os.environ | {"XLA_FLAGS": ""}
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, timeout=300)
    described = json.loads((tmp_path / "run.json").read_text())
    assert described["devices"]["count"] == 1
    for key, grid in scores(finished[0]).items():
        np.testing.assert_allclose(scores(altered(finished[0], out=str(tmp_path)))[key], grid, rtol=1e-5)
