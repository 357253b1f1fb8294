"""The one script for an accelerator: small, on a CPU, every section of it; and what a cut-off run keeps."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from headjax.kernels import device_check

ROOT = Path(__file__).resolve().parents[1]


def command(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "kernels.device_check", *arguments], cwd=ROOT, capture_output=True, text=True
    )


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[dict]]:
    """What the whole of it says, and writes down."""
    out = tmp_path_factory.mktemp("device")
    done = command("--out", str(out), "--minutes", "20", "--tiny")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, json.loads((out / "device_check.json").read_text())


@pytest.mark.slow
def test_every_section_ends_well_and_finds_something(small):
    said, found = small
    ended = {record["section"]: record["how"] for record in found if record["what"] == "ended"}
    assert ended == dict.fromkeys(device_check.SHARES, "well")
    for section in device_check.SHARES:
        assert [record for record in found if record["section"] == section and record["what"] != "ended"]
    checked = [record for record in found if record["what"] == "number"]
    assert {record["implementation"] for record in checked} >= {"xla", "pallas_mosaic_tpu"}
    assert {record["op"] for record in checked} == {"head_attention", "variant_decode", "vocab_rank"}
    assert not [record for record in found if record.get("wrong")]
    assert {record["sweep"] for record in found if record["what"] == "sweep"} == {
        *("relation scores", "ablation, last position", "dynamic scores"),
    }
    assert "numbers: " in said
    assert "| vocab_rank | GPT-2 small" in said


@pytest.mark.slow
def test_every_kernel_of_it_lowers_for_its_platform():
    done = command("--lower", "--tiny")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert sum(line.endswith(" lowered") for line in lines) > 15
    assert not [line for line in lines if "FAILED" in line]


def test_a_section_that_runs_out_of_time_or_crashes_keeps_what_it_had(tmp_path: Path, monkeypatch):
    """And the others run."""
    module = tmp_path / "sections_of_a_test.py"
    module.write_text(
        "import json, sys, time\n"
        "name = sys.argv[2]\n"
        "out = sys.argv[4]\n"
        "with open(f'{out}/{name}.jsonl', 'w') as file:\n"
        "    print(json.dumps({'section': name, 'what': 'found'}), file=file, flush=True)\n"
        "    if name == 'numbers': sys.exit('broken')\n"
        "    if name == 'speed': time.sleep(60)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(device_check, "MODULES", dict.fromkeys(device_check.SHARES, "sections_of_a_test"))
    monkeypatch.setattr(device_check, "GRACE", 1.0)
    found = device_check.run_sections(tmp_path, 6.0, ["machine", "numbers", "speed"], tiny=True)
    assert found == json.loads((tmp_path / "device_check.json").read_text())
    assert [record["section"] for record in found if record["what"] == "found"] == [
        *("machine", "numbers", "speed"),
    ]
    machine, numbers, speed = (record["how"] for record in found if record["what"] == "ended")
    assert machine == "well"
    assert numbers.startswith("status 1: broken")
    assert speed.startswith("out of time after")


def test_what_there_was_no_time_for_is_written_down(tmp_path: Path):
    note = device_check.Note(tmp_path / "numbers.jsonl", "numbers", seconds=0.0)
    assert list(note.each(["a", "b"], str)) == []
    (line,) = (tmp_path / "numbers.jsonl").read_text().splitlines()
    assert json.loads(line) == {"section": "numbers", "what": "left out", "names": ["a", "b"]}


def test_a_default_should_change_where_a_kernel_is_faster_in_every_case():
    def timed(op: str, case: str, **seconds: float) -> list[dict]:
        about = {"op": op, "case": case, "dtype": "bfloat16"}
        return [{**about, "implementation": name, "seconds": value} for name, value in seconds.items()]

    fast = [*timed("rank", "a", xla=1.0, pallas_x=0.5), *timed("rank", "b", xla=2.0, pallas_x=1.0)]
    mixed = [*timed("decode", "a", xla=1.0, pallas_x=0.5), *timed("decode", "b", xla=1.0, pallas_x=0.95)]
    assert list(device_check.better_defaults(fast + mixed)) == [
        "rank: pallas_x takes 0.50 to 0.50 of XLA's time: should be the default",
        "decode: pallas_x takes 0.50 to 0.95 of XLA's time: stays by name",
    ]
