"""The record of a run: figures show what it computed, and are drawn again from its own files alone."""

import json
import shutil
from pathlib import Path

import pytest

from experiments import draw
from experiments.config import RunConfig
from experiments.run import run
from headjax.errors import InputError
from tests.helpers.runs import altered
from tests.helpers.tiny_run import tiny_run

FOREIGN = {
    "circuits.csv": "model,task,role,stage,input,head,effect\ntiny,copying,Movers,1,direct,L1H1,-9.0\n",
    "ablation_curves.csv": "model,relation\ntiny,copying\n",
    "comparison.csv": "table\nx\n",
    "category_shares.csv": "model\ntiny\n",
    "figures/mine.png": "mine",
}
DAMAGED = "scores.npz must be the file that the run of run.json wrote; it is missing or another"


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """A run into a directory in which grids and figures of others lie."""
    tmp = tmp_path_factory.mktemp("record")
    config = altered(tiny_run(tmp), analyses=("relation_scores",), heat_maps=("copying",), templates=())
    for name, content in FOREIGN.items():
        (tmp / "out" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp / "out" / name).write_text(content)
    run(config, progress=False)
    return config


@pytest.fixture
def out(config: RunConfig, tmp_path: Path) -> Path:
    """A copy of the finished run."""
    return Path(shutil.copytree(config.out, tmp_path / "copy"))


def figures(out: Path) -> set[str]:
    return {file.name for file in (out / "figures").iterdir()}


def test_what_lies_beside_a_run_is_not_drawn_as_its_own(config: RunConfig, out: Path):
    own = {f"{name}.{kind}" for name in ("category_map", "relations_tiny_copying") for kind in ("png", "pdf")}
    assert figures(Path(config.out)) == own | {"mine.png"}
    before = {file.name: file.read_bytes() for file in (out / "figures").iterdir()}
    for name in own:
        (out / "figures" / name).unlink()
    draw.main(["draw", str(out)])
    assert {file.name: file.read_bytes() for file in (out / "figures").iterdir()} == before
    assert {name: (out / name).read_text() for name in FOREIGN} == FOREIGN


def test_the_record_lists_the_runs_files(config: RunConfig):
    record = json.loads((Path(config.out) / "run.json").read_text())
    files = {f.relative_to(config.out).as_posix() for f in Path(config.out).rglob("*") if f.is_file()}
    assert set(record["files"]) == files - set(FOREIGN) - {"run.json"}


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("scores.npz", lambda content: content[:-1], DAMAGED),
        ("scores.npz", lambda content: content + b" ", DAMAGED),
        ("scores.npz", None, DAMAGED),
        ("run.json", None, "must be the directory of a finished run; .*run.json: cannot be read"),
        (
            "run.json",
            lambda content: content[:-9],
            "must be the directory of a finished run; .*not valid",
        ),
        (
            "run.json",
            lambda content: b"[]",
            "must be the directory of a finished run; .*JSON object",
        ),
        (
            "run.json",
            lambda content: content.replace(b'"threshold": 0.15', b'"threshold": 0.25'),
            "run.json must be as a run of this version wrote it; it was changed",
        ),
    ],
)
def test_what_is_not_the_runs_own_is_refused(out: Path, name: str, change, message: str):
    if change is None:
        (out / name).unlink()
    else:
        content = change((out / name).read_bytes())
        assert content != (out / name).read_bytes()
        (out / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        draw.main(["draw", str(out)])


def test_what_an_earlier_run_wrote_goes_and_the_rest_stays(config: RunConfig, out: Path, capsys):
    """A file that somebody changed since is theirs."""
    (out / "figures" / "relations_tiny_copying.pdf").write_text("changed")
    run(altered(config, heat_maps=("capitals",), out=str(out)), progress=False)
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("removed ")]
    assert said == [
        f"removed {out}/figures/relations_tiny_copying.png, which an earlier run wrote and this one did not"
    ]
    assert figures(out) == {
        *(
            f"{name}.{kind}"
            for name in ("category_map", "relations_tiny_capitals")
            for kind in ("png", "pdf")
        ),
        *("relations_tiny_copying.pdf", "mine.png"),
    }
    assert {name: (out / name).read_text() for name in FOREIGN} == FOREIGN


def test_a_record_names_no_file_outside_of_its_directory(config: RunConfig, out: Path, tmp_path: Path):
    from experiments.record import digests, read_record, remove_stale, write_record

    (tmp_path / "theirs.txt").write_text("theirs")
    record = read_record(out)
    digest = digests(tmp_path, [tmp_path / "theirs.txt"])["theirs.txt"]
    write_record(out, record, {"../theirs.txt": digest, str(tmp_path / "theirs.txt"): digest})
    assert remove_stale(out, []) == []
    assert (tmp_path / "theirs.txt").is_file()
