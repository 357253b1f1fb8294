"""A run that is killed goes on where it was, bit for bit; and what must never be mixed never is."""

import dataclasses
import errno
import io
import json
import multiprocessing
import os
import random
import shutil
import subprocess
import time
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pytest

import experiments.resume
import experiments.run
import headjax.io
from experiments.config import SECTIONS, RunConfig
from experiments.run import open_model, run
from experiments.units import Units, is_whole, pack, unpack
from headjax.analyses import RelationScores
from headjax.engine.metrics import Metrics
from headjax.errors import InputError
from headjax.grid import HeadGrid
from headjax.parameters.converted import HEADER, seal
from tests.helpers import tiny_tokenizers, torch_oracle
from tests.helpers.kills import killed_after
from tests.helpers.other_fields import OTHER
from tests.helpers.runs import altered
from tests.helpers.tiny_run import PAIRS, tiny_run, write_model

N_KILLS = 20


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """A run of many small units; `out` is to be replaced. Of 8 heads, the 8 devices score a layer at once."""
    return tiny_run(tmp_path_factory.mktemp("resume"), n_heads=8)


@pytest.fixture(autouse=True)
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of runs in this process: tables and arrays are what is compared."""
    monkeypatch.setattr(experiments.run, "draw_all", lambda found, compared, config: [])


def results(out: str | Path) -> dict[str, bytes]:
    """The bytes of every table and array of a finished run."""
    return {file.name: file.read_bytes() for file in Path(out).iterdir() if file.suffix in (".csv", ".npz")}


def unit_files(out: str | Path) -> list[Path]:
    return list((Path(out) / "units").glob("*/*.unit"))


# --- SIGKILL ------------------------------------------------------------------------------------------


def run_in_child(config: RunConfig, cache: Path, keep_units: bool) -> None:
    """A run in a process of its own, with one device; compiled programs are kept, or compiling would be most
    of the test."""
    os.environ["XLA_FLAGS"] = ""
    with open(cache.with_suffix(".log"), "a") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    if keep_units:
        Units.discard = lambda self: None
    run(config, progress=False)


class Reference(NamedTuple):
    """The run that nobody disturbed: its results, its number of units, and its compiled programs."""

    results: dict[str, bytes]
    n_units: int
    cache: Path
    log: Path


@pytest.fixture(scope="module")
def server() -> multiprocessing.context.BaseContext:
    """Forks runs off a process that has imported everything and started nothing."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["experiments.run", "tests.test_resume"])
    return context


@pytest.fixture(scope="module")
def reference(config: RunConfig, server, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    tmp = tmp_path_factory.mktemp("reference")
    whole = altered(config, out=str(tmp / "out"))
    process = server.Process(target=run_in_child, args=(whole, tmp / "cache", True))
    process.start()
    process.join()
    log = tmp / "cache.log"
    assert process.exitcode == 0, log.read_text()
    return Reference(results(whole.out), len(unit_files(whole.out)), tmp / "cache", log)


@pytest.mark.slow
def test_killed_at_twenty_moments_it_ends_with_the_same_bits(
    config: RunConfig, server, reference: Reference, tmp_path: Path
):
    rng = random.Random(7)
    # One moment in each twentieth of the run: so many units stored, and a little later.
    moments = [(i + rng.random()) / N_KILLS * reference.n_units for i in range(N_KILLS)]
    killed = altered(config, out=str(tmp_path / "out"))
    counts = []
    for moment in moments:
        process = server.Process(target=run_in_child, args=(killed, reference.cache, False))
        process.start()
        while len(unit_files(killed.out)) < int(moment) and process.is_alive():
            time.sleep(0.003)
        time.sleep(rng.random() * 0.03)
        process.kill()
        process.join()
        assert process.exitcode == -9, f"ended before it was killed: {reference.log.read_text()}"
        counts.append(len(unit_files(killed.out)))
        assert all(is_whole(file.read_bytes()) for file in unit_files(killed.out))
    assert counts == sorted(counts)  # nothing that was finished is lost
    assert counts[-1] > 0.9 * reference.n_units
    process = server.Process(target=run_in_child, args=(killed, reference.cache, False))
    process.start()
    process.join()
    assert process.exitcode == 0, reference.log.read_text()
    assert results(killed.out) == reference.results
    described = json.loads((tmp_path / "out" / "run.json").read_text())
    assert described["units_found"] == counts[-1]
    left = [file.name for file in (tmp_path / "out").rglob("*") if file.is_file()]
    assert not [name for name in left if name.endswith((".unit", ".tmp"))]
    assert not (tmp_path / "out" / "units").exists()


# --- what is never mixed ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def static(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunConfig, dict[str, bytes]]:
    """A short run, and its results where nothing disturbs it. Its units: five layers, then the grids."""
    short = altered(config, analyses=("relation_scores",))
    whole = altered(short, out=str(tmp_path_factory.mktemp("static")))
    run(whole, progress=False)
    return short, results(whole.out)


def n_found(out: Path) -> int:
    return json.loads((out / "run.json").read_text())["units_found"]


def test_another_config_starts_anew_and_leaves_the_other_runs_units(static, tmp_path, monkeypatch):
    short, expected = static
    short = altered(short, out=str(tmp_path))
    with killed_after(3, monkeypatch):
        run(short, progress=False)
    run(altered(short, top_k=3), progress=False)
    assert n_found(tmp_path) == 0
    assert results(tmp_path)["scores.csv"] != expected["scores.csv"]
    assert len(unit_files(tmp_path)) == 3
    run(short, progress=False)
    assert n_found(tmp_path) == 3
    assert results(tmp_path) == expected


def test_a_run_goes_on_with_its_devices_shared_otherwise(static, tmp_path, monkeypatch):
    short, expected = static
    short = altered(short, out=str(tmp_path))
    with killed_after(3, monkeypatch):
        run(short, progress=False)
    run(altered(short, mesh={"data": 2, "model": 4}), progress=False)
    assert n_found(tmp_path) == 3
    assert results(tmp_path) == expected


def test_a_damaged_unit_is_computed_again(static, tmp_path, monkeypatch):
    short, expected = static
    short = altered(short, out=str(tmp_path))
    with killed_after(4, monkeypatch):
        run(short, progress=False)
    truncated, flipped, empty, _ = sorted(unit_files(tmp_path))
    truncated.write_bytes(truncated.read_bytes()[:-1])
    content = bytearray(flipped.read_bytes())
    content[-1] ^= 1
    flipped.write_bytes(content)
    empty.write_bytes(b"")
    (tmp_path / ".headjax-123-0a1b2c3d.tmp").write_text("left by a kill")
    (tmp_path / ".scores.csv.123.tmp").write_text("somebody's own")
    run(short, progress=False)
    assert n_found(tmp_path) == 1
    assert results(tmp_path) == expected
    assert [file.name for file in tmp_path.glob(".*")] == [".scores.csv.123.tmp"]


def key(config: RunConfig) -> str:
    study = open_model(config.model, config)
    return experiments.resume.run_key(experiments.resume.determinants(config, [study]))


def test_the_key_is_of_what_determines_the_numbers_and_of_nothing_else(config, tmp_path, monkeypatch):
    own = key(config)
    shutil.copytree(config.model, tmp_path / "moved")
    shutil.copytree(config.data.relations_dir, tmp_path / "relations")
    elsewhere = {"model": str(tmp_path / "moved"), "relations_dir": str(tmp_path / "relations")}
    same = (
        {"out": "elsewhere", "checkpoint_dir": "elsewhere", "parallel": "pmap", "device_memory": 1.0},
        {"threshold": 0.5, "heat_maps": ("copying",), "circuits": ("copying=L1H2",), "tables": ("md",)},
        elsewhere,
    )
    for changes in same:
        assert key(altered(config, **changes)) == own, changes
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "The capital of Italy is", "answer": "Rome"}')
    other = (
        {"seed": 1},
        {"top_k": 3},
        {"dtype": "bfloat16"},
        {"precision": "default"},
        {"batch_size": 5},
        {"variant_batch": None},
        {"analyses": ("relation_scores",)},
        {"prompts": str(prompts)},
        {"templates": ("<X> was",)},
    )
    keys = [key(altered(config, **changes)) for changes in other]
    prompts.write_text('{"prompt": "The capital of Spain is", "answer": "Madrid"}')
    keys.append(key(altered(config, prompts=str(prompts))))
    with monkeypatch.context() as patch:
        patch.setattr(experiments.resume, "versions", lambda: {"jax": "0.0.1"})
        keys.append(key(config))
    with monkeypatch.context() as patch:
        patch.setattr(experiments.resume, "code_digest", lambda: "another")
        keys.append(key(config))
    (tmp_path / "relations" / "copying.json").write_text(json.dumps(PAIRS["copying"][1:]))
    keys.append(key(altered(config, **elsewhere)))
    header = json.loads((tmp_path / "moved" / HEADER).read_text())
    header["provenance"]["files"]["weights"]["sha256"] = "another"
    (tmp_path / "moved" / HEADER).write_text(json.dumps(seal(header)))
    keys.append(key(altered(config, model=str(tmp_path / "moved"))))
    assert len({own, *keys}) == 1 + len(keys)


# What may change without starting anew; everything else that a config says determines the numbers.
OUTSIDE = {
    *("model", "out", "checkpoint_dir", "distributed", "compare", "ignore_fields"),
    *("relations", "relations_dir", "prompts", "mesh", "parallel", "rate", "device_memory"),
    *("threshold", "count_suppression", "tables", "circuits", "heat_maps", "orientation", "origin"),
    *("formats", "size", "width", "transparent", "title", "colors", "scale", "annotate"),
    *("palette", "several"),
}
# Of analyses, those of the run.
OTHER_OPTIONS = {
    **{"analyses": ("relation_scores",), "seed": 1, "multi_token": True, "replacement": "resample"},
    **{"positions": "all", "kv_groups": True, "metrics": ("accuracy",), "rank_by": "dynamic_context"},
    **{"max_heads": 1, "n_random_draws": 1},
}


def test_every_field_is_in_the_key_or_outside_for_a_reason(config):
    study = open_model(config.model, config)
    own, values = key(config), OTHER | OTHER_OPTIONS
    parts = (RunConfig, *SECTIONS.values(), *map(type, config.analyses.values()))
    known = {field.name for part in parts for field in dataclasses.fields(part)} - set(SECTIONS)
    assert values.keys() | OUTSIDE | {"mean_over"} == known
    for name, value in values.items():
        if name == "stream":
            continue  # refused for these analyses; the same rule holds
        other = altered(config, **{name: value})
        assert other != config, name
        determined = experiments.resume.determinants(other, [study])
        assert (experiments.resume.run_key(determined) == own) == (name in OUTSIDE), name
    means = altered(config, mean_over="tokens")
    assert experiments.resume.run_key(experiments.resume.determinants(means, [study])) != own


def test_what_only_shows_numbers_is_not_in_the_key(monkeypatch, tmp_path):
    """Nor is a comment: the digest is of what Python reads."""
    root = Path(experiments.resume.__file__).parents[1]
    for package in ("headjax", "kernels", "checkpoints_convert"):
        shutil.copytree(root / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(experiments.resume, "__file__", str(tmp_path / "experiments" / "resume.py"))
    own = experiments.resume.code_digest()
    with open(tmp_path / "headjax" / "figures" / "__init__.py", "a") as file:
        file.write("\nMORE = 1\n")
    with open(tmp_path / "headjax" / "grid.py", "a") as file:
        file.write("\n# nothing that counts\n")
    assert experiments.resume.code_digest() == own
    with open(tmp_path / "headjax" / "grid.py", "a") as file:
        file.write("\nMORE = 1\n")
    assert experiments.resume.code_digest() != own


def test_the_number_of_variants_at_once_is_that_of_the_first_start(config, tmp_path, monkeypatch):
    chosen = []

    def choose(*_arguments) -> int:
        chosen.append(4)
        return 4

    monkeypatch.setattr("headjax.engine.variants.choose_variant_batch", choose)
    ablation = altered(
        config, analyses=("head_ablation",), variant_batch=None, replacement="zero", out=str(tmp_path)
    )
    for n_units in (3, 2):
        with killed_after(n_units, monkeypatch):
            run(ablation, progress=False)
    assert chosen == [4]


def test_two_runs_in_one_out_are_refused(static, tmp_path):
    short = altered(static[0], out=str(tmp_path / "out"))
    with (
        experiments.resume.one_run_in(tmp_path / "out"),
        pytest.raises(InputError, match=r"/out must be one run's alone; another run is writing into it"),
    ):
        run(short, progress=False)
    assert not list((tmp_path / "out").iterdir())
    run(short, progress=False)


def test_a_checkpoint_that_changes_under_a_sweep_is_named(static, tmp_path, monkeypatch):
    short, _ = static
    shutil.copytree(short.model, tmp_path / "model")
    short = altered(short, model=str(tmp_path / "model"), out=str(tmp_path / "out"))
    score = RelationScores.run

    def score_and_convert_again(*arguments):
        found = score(*arguments)
        write_model(tmp_path / "model", len(tiny_tokenizers.byte_level()), seed=1, n_heads=8)
        return found

    monkeypatch.setattr(RelationScores, "run", score_and_convert_again)
    with pytest.raises(InputError, match=r"/model must stay as it is while a run reads it; .* changed"):
        run(short, progress=False)
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("converted", [True, False])
def test_weights_that_change_at_the_same_size_are_noticed(converted, static, tmp_path, monkeypatch):
    """Of a converted checkpoint, and of a Hugging Face directory that is read as it goes."""
    short, _ = static
    model = tmp_path / "model"
    if converted:
        shutil.copytree(short.model, model)
    else:
        torch_oracle.save_model("gpt2", model)
        tiny_tokenizers.whole_words("John Mary Anna Peter Mark Lucy dog").save_pretrained(model)
    short = altered(
        short,
        model=str(model),
        relations=("copying",),
        templates=(),
        top_k_copying=1,
        out=str(tmp_path / "out"),
    )
    score = RelationScores.run

    def score_and_write_over(*arguments):
        found = score(*arguments)
        largest = max(
            (file for file in model.rglob("*") if file.is_file()), key=lambda file: file.stat().st_size
        )
        content = bytearray(largest.read_bytes())
        content[-1] ^= 1
        largest.write_bytes(content)
        return found

    monkeypatch.setattr(RelationScores, "run", score_and_write_over)
    with pytest.raises(InputError, match=r"/model must stay as it is while a run reads it; .* changed"):
        run(short, progress=False)
    assert not list((tmp_path / "out").iterdir())


# --- a full disk --------------------------------------------------------------------------------------


class FullDisk(io.FileIO):
    """A file that takes half of what is written to it."""

    def write(self, content: bytes) -> int:
        super().write(content[: len(content) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_gives_one_line_and_the_run_goes_on_when_there_is_room(static, tmp_path, monkeypatch):
    short, expected = static
    short = altered(short, out=str(tmp_path))

    def open_until_full(path: Path, mode: str, **options) -> io.IOBase:
        full = "b" in mode and len(unit_files(tmp_path)) == 3
        return FullDisk(path, mode) if full else open(path, mode, **options)

    with monkeypatch.context() as patch:
        patch.setattr(headjax.io, "open", open_until_full, raising=False)
        with pytest.raises(InputError, match="No space left on device; what is finished is kept"):
            run(short, progress=False)
    assert sorted(file for file in tmp_path.rglob("*") if file.is_file()) == sorted(unit_files(tmp_path))
    assert all(is_whole(file.read_bytes()) for file in unit_files(tmp_path))
    run(short, progress=False)
    assert n_found(tmp_path) == 3
    assert results(tmp_path) == expected


@pytest.mark.parametrize("full", ["scores.csv", "scores.npz", "run.json"])
def test_a_disk_that_is_full_when_results_are_written(full: str, static, tmp_path, monkeypatch):
    short, expected = static
    short = altered(short, out=str(tmp_path))
    replace = os.replace

    def replace_until_full(source: Path, target: Path) -> None:
        if Path(target).name == full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace_until_full)
        with pytest.raises(InputError, match=f"{full} must be writable; No space left on device"):
            run(short, progress=False)
    assert len(unit_files(tmp_path)) == 6
    run(short, progress=False)
    assert n_found(tmp_path) == 6
    assert results(tmp_path) == expected


def test_the_same_on_a_disk_that_is_really_full(static, tmp_path):
    short, expected = static
    short = altered(short, out=str(tmp_path))
    size = "size=16k"  # room for a few files, which take 4 KiB each
    mount = ["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(tmp_path)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a disk of 16 KiB needs the right to mount one")
    try:
        with pytest.raises(InputError, match="No space left on device"):
            run(short, progress=False)
        assert 0 < len(unit_files(tmp_path)) < 6
        assert all(is_whole(file.read_bytes()) for file in unit_files(tmp_path))
        subprocess.run(["mount", "-o", "remount,size=64m", str(tmp_path)], check=True)
        run(short, progress=False)
        assert n_found(tmp_path) > 0
        assert results(tmp_path) == expected
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


# --- units as bytes -----------------------------------------------------------------------------------


def test_values_come_back_bit_for_bit():
    grid = HeadGrid(np.arange(6, dtype=np.float32).reshape(2, 3), "m", "r", "c", "static", 7)
    metrics = Metrics(np.array([np.nan, -0.0, 1e-45], np.float32), None, np.zeros((0, 2), bool))
    half = np.asarray(jax.numpy.asarray([1.5, -2], "bfloat16"))
    value = {
        "a": (metrics, [1, True, "text", 0.1]),
        ("k", 2): (half, np.asfortranarray(np.eye(2))),
        "g": grid,
    }
    again = unpack(pack(value))
    assert list(again) == list(value)
    (m, plain), (bf16, eye), g = again.values()
    assert type(m) is Metrics
    assert m.logit_diff is None
    assert m.logprob.tobytes() == metrics.logprob.tobytes()
    assert m.accuracy.shape == (0, 2)
    assert m.accuracy.dtype == bool
    assert plain == [1, True, "text", 0.1]
    assert bf16.dtype == half.dtype
    np.testing.assert_array_equal(bf16, half)
    np.testing.assert_array_equal(eye, np.eye(2))
    np.testing.assert_array_equal(g.scores, grid.scores)
    assert dataclasses.replace(g, scores=grid.scores).__dict__.keys() == grid.__dict__.keys()
    with pytest.raises(TypeError, match="cannot hold a set"):
        pack({1, 2})


def test_a_unit_makes_no_objects_but_our_values():
    forged = pack(Metrics(None, None, None)).replace(
        b"headjax.engine.metrics:Metrics", b"subprocess:Popen" + b" " * 14
    )
    with pytest.raises(InputError, match="only headjax's own classes"):
        unpack(forged)
