"""What a run says of itself where there is no terminal, and where compiled programs are kept."""

import time
from pathlib import Path

import jax
import pytest

from experiments.run import kept_programs
from experiments.stages import Stages, progress
from headjax.zoo import cache_directory, programs_directory


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    """The time, which passes when somebody changes it."""
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return now


def test_a_stage_is_named_before_and_after(clock, capsys):
    timed = Stages(progress=True)
    with timed.stage("model: load"):
        assert capsys.readouterr().err == "model: load ...\n"
        clock[0] += 3.21
    assert capsys.readouterr().err == "model: load: 3.2 s\n"
    assert timed.seconds == {"model: load": pytest.approx(3.21)}


@pytest.mark.parametrize(
    ("total", "seconds", "lines"),
    [
        # Twenty steps of 4 s: at every tenth, of which each takes 8 s; the last is the end.
        (
            20,
            4.0,
            [f"x: {n} of 20, {4 * (20 - n)} s to go" for n in range(2, 20, 2)] + ["x: 4.00 s each of 20"],
        ),
        # Of 0.1 s: a tenth takes less than it is worth a line.
        (20, 0.1, ["x: 0.10 s each of 20"]),
        # Three steps of 50 s, more than a tenth each.
        (3, 50.0, ["x: 1 of 3, 100 s to go", "x: 2 of 3, 50 s to go", "x: 50.00 s each of 3"]),
        # Of no number that is known: every minute.
        (None, 25.0, ["x: 3", "x: 6", "x: 25.00 s each of 7"]),
        (1, 99.0, []),
    ],
)
def test_a_loop_says_how_far_it_is(total: int | None, seconds: float, lines: list[str], clock, capsys):
    for _ in Stages(progress=True).track(range(total or 7), total, "x"):
        clock[0] += seconds
    assert capsys.readouterr().err.splitlines() == lines


def test_minutes_where_it_takes_minutes():
    assert progress(1, 3, 300) == " of 3, 10 min to go"
    assert progress(5, None, 300) == ""


def test_programs_are_kept_beside_checkpoints_for_as_long_as_a_run_lasts(tmp_path: Path):
    settings = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in settings}
    with kept_programs(str(tmp_path / "checkpoints")):  # the tests keep theirs elsewhere
        assert {name: getattr(jax.config, name) for name in settings} == before
    try:
        jax.config.update("jax_compilation_cache_dir", None)
        with kept_programs(str(tmp_path / "checkpoints")):
            directory = Path(jax.config.jax_compilation_cache_dir)
            assert directory.parent == tmp_path / "programs"
            assert jax.config.jax_persistent_cache_min_compile_time_secs < 1
        assert jax.config.jax_compilation_cache_dir is None
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
    assert programs_directory().parent == cache_directory().parent / "programs"
