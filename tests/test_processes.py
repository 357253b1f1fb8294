"""Two processes, four devices each, on this machine: they give what one process gives."""

import csv
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from headjax.grid import load_npz
from tests.helpers.meshes import assert_same
from tests.helpers.runs import altered
from tests.helpers.tiny_run import tiny_run

ANALYSES = ("relation_scores", "dynamic_scores", "head_ablation")
ROOT = Path(__file__).resolve().parents[1]


def named_rows(file: Path) -> list[tuple[str, ...]]:
    """What every row of scores.csv is about, without its numbers."""
    with open(file, newline="") as stream:
        return [
            tuple(row[name] for name in ("model", "relation", "kind", "layer", "head", "metric"))
            for row in csv.DictReader(stream)
        ]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


def start(n_devices: int, *arguments: str) -> subprocess.Popen:
    environment = os.environ | {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={n_devices}",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-m", "experiments.run", *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=environment, cwd=ROOT, stdout=pipe, stderr=pipe, text=True)


def run_all(*processes: subprocess.Popen) -> list[tuple[int, str, str]]:
    """Exit status, output and errors of each."""
    outputs = [process.communicate(timeout=300) for process in processes]
    return [(process.returncode, *output) for process, output in zip(processes, outputs, strict=True)]


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    config = altered(tiny_run(tmp_path), analyses=ANALYSES)
    file = tmp_path / "config.py"
    file.write_text(
        f"from experiments.config import RunConfig\nfrom headjax.analyses import *\n"
        "from headjax.report.options import Report\nfrom headjax.study import *\n\n\n"
        f"def get_config():\n    return {config!r}\n"
    )
    return file


@pytest.mark.slow
def test_two_processes_do_what_one_does(config_file: Path, tmp_path: Path):
    """Four devices of each process; the first one writes and speaks, the other is silent."""
    address = f"localhost:{free_port()}"
    runs = run_all(
        start(1, f"--config={config_file}", f"--config.out={tmp_path / 'one'}"),
        *(
            start(
                4,
                f"--config={config_file}",
                f"--config.out={tmp_path / 'two'}",
                f"--config.distributed={address},2,{number}",
                "--config.mesh=data:4,model:2",
            )
            for number in range(2)
        ),
    )
    for status, _, errors in runs:
        assert status == 0, errors
    _, (_, first, _), (_, second, _) = runs
    assert "wrote" in first
    _, _, (_, _, errors) = runs
    assert " s each of " not in errors
    # The transport's threads speak, at times into each other's lines, which leaves empty ones.
    said = [line for line in second.splitlines() if line.strip()]
    assert [line for line in said if "[Gloo]" not in line and "peer ranks" not in line] == []
    assert named_rows(tmp_path / "one" / "scores.csv") == named_rows(tmp_path / "two" / "scores.csv")
    one, two = (load_npz(tmp_path / out / "scores.npz") for out in ("one", "two"))
    assert [grid.kind for grid in one] == [grid.kind for grid in two]
    assert_same([grid.scores for grid in two], [grid.scores for grid in one])


def test_processes_with_different_configs_are_refused(config_file: Path, tmp_path: Path):
    address = f"localhost:{free_port()}"
    runs = run_all(
        *(
            start(
                1,
                f"--config={config_file}",
                f"--config.distributed={address},2,{number}",
                f"--config.batch_size={number + 3}",
            )
            for number in range(2)
        )
    )
    for status, _, errors in runs:
        assert status == 2, errors
        assert errors.strip().splitlines()[-1] == (
            "error: all processes must have the same code and config; process 1 differs from 0"
        )
