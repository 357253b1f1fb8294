"""Reading a converted checkpoint: all of it, some of it, one layer of it; on one device and on eight."""

import dataclasses
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from checkpoints_convert import convert
from headjax import load_model
from headjax.config import ModelConfig
from headjax.engine.mesh import PARAMETER_AXES, parameter_axes, parameter_sharding
from headjax.errors import InputError
from headjax.model import parameter_shapes
from headjax.parameters.cache import ensure_converted
from headjax.parameters.converted import (
    check_files,
    is_converted,
    parameter_groups,
    read_config,
    read_layer,
    read_parameters,
    read_provenance,
    stored_dtypes,
    write_checkpoint,
)
from tests.helpers import torch_oracle
from tests.helpers.tolerances import assert_close

ROOT = Path(__file__).resolve().parents[1]
# Eight devices split the heads and the MLP of this model, but not its 1,009 tokens.
CONFIG = ModelConfig(
    family="llama",
    n_layers=3,
    n_heads=16,
    n_kv_heads=8,
    d_head=2,
    d_model=37,
    d_mlp=8 * 1021,
    vocab_size=1009,
    max_positions=11,
    norm="rms",
    norm_eps=1e-5,
    rotary=None,
    activation="silu",
    gated_mlp=True,
    parallel_residual=False,
    tied_embeddings=False,
    norms="around",
    qk_norm="joint",
    scores_by_layer=True,
)
TINY = dataclasses.replace(CONFIG, n_layers=1, d_mlp=5, vocab_size=7)


def random_parameters(config: ModelConfig) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(5)
    return {
        name: rng.normal(size=shape).astype(np.float32) for name, shape in parameter_shapes(config).items()
    }


def write(
    directory: Path, config: ModelConfig, parameters: dict[str, np.ndarray], files: Sequence[Path] = ()
) -> None:
    write_checkpoint(
        directory,
        config,
        {name: array.dtype for name, array in parameters.items()},
        {"source": "somewhere"},
        lambda group: {
            name: parameters[name] if group.layer is None else parameters[name][group.layer]
            for name in group.names
        },
        files,
    )


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, np.ndarray]]:
    directory, parameters = tmp_path_factory.mktemp("written") / "model", random_parameters(CONFIG)
    write(directory, CONFIG, parameters)
    return directory, parameters


@pytest.fixture
def mesh() -> jax.sharding.Mesh:
    return jax.make_mesh((8,), ("model",))


def test_every_parameter_has_axes_and_they_are_its_own():
    sizes = {"L": 3, "H": 16, "G": 8, "K": 2, "D": 37, "F": 8 * 1021, "V": 1009, "P": 11}
    shapes = parameter_shapes(CONFIG)
    assert set(shapes) == set(PARAMETER_AXES)
    for name, shape in shapes.items():
        sizes["N"] = sizes["H" if "q_norm" in name else "G"]
        assert shape == tuple(sizes[letter] for letter in PARAMETER_AXES[name].split())
    # Where each head is normed alone, there is no axis of heads.
    alone = parameter_shapes(dataclasses.replace(CONFIG, qk_norm="head"))["blocks.attn.q_norm.scale"]
    assert parameter_axes("blocks.attn.q_norm.scale", alone)[-1] == "K"
    mesh = jax.make_mesh((8,), ("model",))
    assert parameter_sharding("blocks.attn.q_norm.scale", alone, mesh).spec == PartitionSpec(None, None)


def test_groups_hold_every_parameter_once():
    groups = parameter_groups(CONFIG)
    names = [(name, group.layer) for group in groups for name in group.names]
    assert len(names) == len(set(names))
    assert {name for name, _ in names} == set(parameter_shapes(CONFIG))
    assert len({group.path for group in groups}) == len(groups) == CONFIG.n_layers + 2


def test_round_trip(written):
    directory, parameters = written
    assert is_converted(directory)
    assert read_config(directory) == CONFIG
    assert read_provenance(directory) == {"source": "somewhere"}
    assert set(stored_dtypes(directory).values()) == {np.dtype(np.float32)}
    actual = read_parameters(directory)
    assert set(actual) == set(parameters)
    for name, expected in parameters.items():
        np.testing.assert_array_equal(actual[name], expected, err_msg=name)


def test_some_parameters_in_another_dtype(written):
    directory, parameters = written
    names = ["embed.W_E", "blocks.attn.W_V", "unembed.b_U"]
    actual = read_parameters(directory, names, dtype=jnp.bfloat16)
    assert sorted(actual) == sorted(names)
    for name in names:
        assert isinstance(actual[name], jax.Array)
        np.testing.assert_array_equal(actual[name], jnp.asarray(parameters[name], jnp.bfloat16))
    with pytest.raises(ValueError, match=r"parameters are .*embed.W_E, .*; got blocks.attn.W_X"):
        read_parameters(directory, ["blocks.attn.W_X"])


def test_one_layer(written):
    directory, parameters = written
    actual = read_layer(directory, 2, ["blocks.attn.W_O", "blocks.ln2.bias"])
    assert sorted(actual) == ["blocks.attn.W_O", "blocks.ln2.bias"]
    for name, array in actual.items():
        np.testing.assert_array_equal(array, parameters[name][2])
    whole = read_layer(directory, 1, dtype=jnp.float16)
    assert set(whole) == {name for name in parameters if name.startswith("blocks.")}
    assert {array.dtype for array in whole.values()} == {np.dtype(np.float16)}


def bytes_read() -> int:
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["rchar"])


@pytest.mark.skipif(not os.path.exists("/proc/self/io"), reason="counts bytes where Linux does")
def test_only_what_is_asked_for_is_read(written):
    """An MLP matrix has 1.2 MB, W_V 2.4 kB: neither reader may touch the MLP for the sake of W_V."""
    directory, _ = written
    for read in (
        lambda name: read_layer(directory, 1, [name]),
        lambda name: read_parameters(directory, [name]),
    ):
        read("blocks.attn.W_V")  # imports and compiles
        before = bytes_read()
        read("blocks.attn.W_V")
        between = bytes_read()
        jax.block_until_ready(read("blocks.mlp.W_in"))
        assert between - before < 200_000
        assert bytes_read() - between > 1_200_000


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_on_a_mesh(written, axis_type: AxisType):
    directory, parameters = written
    mesh = jax.make_mesh((8,), ("model",), axis_types=(axis_type,))
    actual = read_parameters(directory, mesh=mesh)
    for name, expected in parameters.items():
        np.testing.assert_array_equal(actual[name], expected, err_msg=name)
        sharding = parameter_sharding(name, expected.shape, mesh)
        assert actual[name].sharding.is_equivalent_to(sharding, expected.ndim), name
        for shard in actual[name].addressable_shards:
            np.testing.assert_array_equal(shard.data, expected[shard.index])
    assert actual["blocks.attn.W_K"].addressable_shards[3].data.shape == (3, 37, 1, 2)
    layer = read_layer(directory, 1, ["blocks.mlp.W_out"], mesh=mesh)["blocks.mlp.W_out"]
    assert layer.sharding.shard_shape(layer.shape) == (1021, 37)
    np.testing.assert_array_equal(layer, parameters["blocks.mlp.W_out"][1])


def test_what_is_split(mesh):
    def spec(name: str, *shape: int) -> PartitionSpec:
        return parameter_sharding(name, shape, mesh).spec

    assert spec("blocks.attn.W_Q", 5, 7, 16, 3) == PartitionSpec(None, None, "model", None)
    assert spec("blocks.attn.W_O", 16, 3, 7) == PartitionSpec("model", None, None)  # one layer of it
    assert spec("blocks.attn.W_Q", 48, 1600, 25, 64) == PartitionSpec(None, None, None, None)
    assert spec("blocks.attn.W_V", 5, 7, 2, 3) == PartitionSpec(None, None, None, None)
    assert spec("blocks.mlp.b_in", 5, 24) == PartitionSpec(None, "model")
    assert spec("embed.W_E", 50304, 512) == PartitionSpec("model", None)
    assert spec("embed.W_E", 50257, 512) == PartitionSpec(None, None)
    data_only = jax.make_mesh((8,), ("data",))
    assert parameter_sharding("blocks.mlp.b_in", (5, 24), data_only).is_fully_replicated


@pytest.mark.parametrize("name", [*torch_oracle.FAMILIES, "llama-mqa-tied"])
def test_sharded_model_gives_the_same_logits(name: str, tmp_path: Path):
    """On 2 (copies) x 4 devices; head counts that do not divide are kept whole on every device."""
    torch_oracle.save_model(name, tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "converted")
    mesh = jax.make_mesh((2, 4), ("data", "model"))
    whole, sharded = (load_model(tmp_path / "converted", mesh=m) for m in (None, mesh))
    tokens = np.random.default_rng(6).integers(0, whole.config.vocab_size, (2, 7)).astype(np.int32)
    expected, actual = whole(tokens, return_z=True), sharded(tokens, return_z=True)
    assert_close(actual.logits, expected.logits)
    assert_close(actual.z, expected.z)
    assert len(sharded.W_E.devices()) == 8


def test_a_split_model_gives_the_same_logits(written):
    """Heads, MLP and key/value heads all split."""
    directory, _ = written
    mesh = jax.make_mesh((8,), ("model",))
    whole, sharded = (load_model(directory, mesh=m) for m in (None, mesh))
    tokens = np.random.default_rng(6).integers(0, 1009, (2, 5)).astype(np.int32)
    assert_close(sharded(tokens).logits, whole(tokens).logits)


@pytest.fixture
def copied(written, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written[0], tmp_path / "copy"))


def test_a_damaged_checkpoint_is_named(copied: Path):
    shutil.rmtree(copied / "params" / "blocks" / "001")
    with pytest.raises(InputError, match=r"copy/params/blocks/001/.*: cannot be read: .*; convert again"):
        check_files(copied)
    with pytest.raises(InputError, match=r"copy/params/blocks/001: cannot be read: .*; convert again"):
        read_parameters(copied)


def with_header(**changes) -> Callable[[Path], object]:
    def edit(file: Path) -> None:
        file.write_text(json.dumps(json.loads(file.read_text("utf-8")) | changes), "utf-8")

    return edit


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (with_header(format_version=0), "headjax.json: format version must be 3; got 0; convert again"),
        (with_header(config={}), "headjax.json: must be as it was written; it is damaged or was edited"),
        (with_header(dtypes={}), "headjax.json: must be as it was written; it is damaged or was edited"),
        (lambda file: file.write_text("{"), "headjax.json: not valid JSON: .*not the header of a converted"),
        (lambda file: file.write_text("[1]"), r"must hold a JSON object; got \[1\]: not the header of"),
        (lambda file: file.write_bytes(file.read_bytes()[:300]), "headjax.json: not valid JSON"),
        (lambda file: file.unlink(), "headjax.json: cannot be read: No such file"),
        (
            lambda file: file.write_text(file.read_text().replace("1e-05", "1e-06")),
            "it is damaged or was edited",
        ),
        (
            lambda file: file.write_text(file.read_text().replace('"n_layers": 3', '"n_layers": 2')),
            "was edited",
        ),
    ],
)
def test_a_damaged_header_is_refused(copied: Path, damage: Callable[[Path], object], message: str):
    damage(copied / "headjax.json")
    for read in (read_config, read_provenance, stored_dtypes, read_parameters, check_files):
        with pytest.raises(InputError, match=message):
            read(copied)


def test_a_config_that_was_not_written_by_us_is_refused():
    fields = json.loads(CONFIG.to_json())
    assert ModelConfig.from_json(json.dumps(fields)) == CONFIG
    for wrong in ([], {}, fields | {"depth": 3}, fields | {"rotary": 3}, fields | {"rotary": {"scaling": 1}}):
        with pytest.raises(InputError, match="a model's configuration"):
            ModelConfig.from_json(json.dumps(wrong))


def test_every_flipped_bit_of_a_parameter_is_found(tmp_path: Path):
    """In whatever file of a layer, wherever in it: refused, or not of what is read."""
    write(tmp_path, TINY, random_parameters(TINY))
    expected = read_layer(tmp_path, 0)
    files = [file for file in (tmp_path / "params" / "blocks" / "000").rglob("*") if file.is_file()]
    sizes = np.array([file.stat().st_size for file in files])
    rng = np.random.default_rng(8)
    refused = []
    for number in range(40):
        # Every file once, then where the bytes are.
        file = files[number if number < len(files) else rng.choice(len(files), p=sizes / sizes.sum())]
        whole = file.read_bytes()
        damaged = bytearray(whole)
        damaged[rng.integers(len(whole))] ^= 1 << rng.integers(8)
        file.write_bytes(damaged)
        try:
            actual = read_layer(tmp_path, 0)
        except InputError as error:
            refused.append(str(error))
        else:
            for name, array in expected.items():
                np.testing.assert_array_equal(actual[name], array)
        file.write_bytes(whole)
    assert len(refused) > 10  # about half: names of files are random, and so is what a bit falls on
    assert all("blocks/000: cannot be read" in message and len(message) < 500 for message in refused)


def test_files_beside_the_parameters_are_checked(written, tmp_path: Path):
    (tmp_path / "tokenizer.json").write_text('{"a": 1}')
    write(tmp_path / "model", CONFIG, written[1], [tmp_path / "tokenizer.json"])
    unexpected = ("added_tokens.json", "tokenizer.json")
    check_files(tmp_path / "model", unexpected)
    (tmp_path / "model" / "notes.md").write_text("mine")
    check_files(tmp_path / "model", unexpected)
    (tmp_path / "model" / "added_tokens.json").write_text("{}")
    with pytest.raises(InputError, match=r"added_tokens.json: was not there when the checkpoint was written"):
        check_files(tmp_path / "model", unexpected)
    (tmp_path / "model" / "added_tokens.json").unlink()
    (tmp_path / "model" / "tokenizer.json").write_text('{"a": 2}')
    with pytest.raises(InputError, match=r"tokenizer.json: must be as it was written; it changed: convert"):
        check_files(tmp_path / "model")
    (tmp_path / "model" / "tokenizer.json").unlink()
    with pytest.raises(InputError, match=r"tokenizer.json: cannot be read: No such file"):
        check_files(tmp_path / "model")


def test_a_damaged_one_is_converted_again_in_the_cache_and_refused_by_name(
    tmp_path: Path, capfd, monkeypatch
):
    torch_oracle.save_model("gpt2", tmp_path / "hf")
    capfd.readouterr()
    converted = ensure_converted(tmp_path / "hf", tmp_path / "cache")
    embedding = np.array(load_model(converted).W_E)
    assert capfd.readouterr().err == ""

    def flip(file: Path) -> None:
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)

    def largest() -> Path:
        return max((converted / "params" / "embed").rglob("*"), key=lambda file: file.stat().st_size)

    damages = (
        lambda: flip(largest()),
        lambda: largest().write_bytes(b""),
        lambda: (converted / "headjax.json").write_text("{"),
        lambda: (converted / "headjax.json").unlink(),
        lambda: (converted / "config.json").write_text("{}"),
    )
    for damage in damages:
        damage()
        if is_converted(converted):
            with pytest.raises(InputError):
                load_model(converted)
        model = load_model(tmp_path / "hf", checkpoint_dir=tmp_path / "cache")
        np.testing.assert_array_equal(model.W_E, embedding)
        np.testing.assert_array_equal(load_model(converted).W_E, embedding)
    said = capfd.readouterr().err.splitlines()
    assert len(said) == len(damages) - 1  # without a header nothing was known to be there
    assert all(line.endswith("; converting it again") for line in said)


def test_a_parameter_that_is_not_in_the_files_is_named(written, tmp_path: Path, monkeypatch):
    """Where its metadata name one otherwise, orbax gives the description of the array that was asked for."""
    directory = shutil.copytree(written[0], tmp_path / "model")
    monkeypatch.setattr("orbax.checkpoint.Checkpointer.restore", lambda self, path, args: dict(args.item))
    with pytest.raises(InputError, match=r"embed: cannot be read: embed.W_E is not in it; convert again"):
        read_parameters(directory)


class Interrupted(Exception):
    pass


def test_an_interrupted_write_leaves_what_was_there(tmp_path: Path):
    directory, parameters = tmp_path / "model", random_parameters(CONFIG)
    write(directory, CONFIG, parameters)

    def interrupt(_group):
        raise Interrupted

    with pytest.raises(Interrupted):
        write_checkpoint(directory, CONFIG, {}, {}, interrupt)
    assert [file.name for file in tmp_path.iterdir()] == ["model"]
    np.testing.assert_array_equal(read_parameters(directory)["embed.W_E"], parameters["embed.W_E"])


def test_a_write_that_cannot_take_its_place_leaves_what_was_there(tmp_path: Path, monkeypatch):
    directory, parameters = tmp_path / "model", random_parameters(TINY)
    write(directory, TINY, parameters)
    rename, calls = os.rename, []

    def fail_the_second_time(*paths):
        calls.append(paths)
        if len(calls) == 2:
            raise OSError("no such luck")
        rename(*paths)

    with monkeypatch.context() as patched:
        patched.setattr("headjax.parameters.converted.os.rename", fail_the_second_time)
        with pytest.raises(InputError, match="model: cannot be written: no such luck"):
            write(directory, TINY, {name: 2 * array for name, array in parameters.items()})
    assert [file.name for file in tmp_path.iterdir()] == ["model"]
    np.testing.assert_array_equal(read_parameters(directory)["embed.W_E"], parameters["embed.W_E"])


def test_a_write_killed_at_any_step_leaves_the_old_or_the_new_one(tmp_path: Path, monkeypatch):
    """What is on the disk before and after every change of a directory's name or end is looked at later."""
    home = tmp_path / "home"
    old = random_parameters(TINY)
    new = {name: 2 * array for name, array in old.items()}
    write(home / "model", TINY, old)
    snapshots: list[Path] = []

    def watched(change: Callable) -> Callable:
        def wrapped(*arguments, **options):
            def look() -> None:
                snapshots.append(shutil.copytree(home, tmp_path / f"snapshot{len(snapshots)}"))

            look()
            change(*arguments, **options)
            look()

        return wrapped

    with monkeypatch.context() as patched:
        for name in ("os.rename", "shutil.rmtree"):
            module, function = name.split(".")
            original = getattr({"os": os, "shutil": shutil}[module], function)
            patched.setattr(f"headjax.parameters.converted.{name}", watched(original))
        write(home / "model", TINY, new)
    states = [{file.name for file in snapshot.iterdir()} for snapshot in snapshots]
    assert {".model.headjax-lock", ".model.headjax-new", ".model.headjax-old"} in states  # between the two
    found = []
    for snapshot in snapshots:
        assert is_converted(snapshot / "model")
        check_files(snapshot / "model")
        found.append(float(read_parameters(snapshot / "model", ["embed.W_E"])["embed.W_E"][0, 0]))
        write(snapshot / "model", TINY, old)
        assert [file.name for file in snapshot.iterdir()] == ["model"]
    before, after = (float(parameters["embed.W_E"][0, 0]) for parameters in (old, new))
    assert found == sorted(found, key=[before, after].index)
    assert set(found) == {before, after}


@pytest.mark.parametrize(
    "raised", [OSError(errno.ENOSPC, "No space left on device"), ValueError("RESOURCE_EXHAUSTED: x")]
)
def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch, raised: Exception):
    def full(*_arguments, **_options):
        raise raised

    directory = tmp_path / "model"
    write(directory, TINY, random_parameters(TINY))
    for place in ("orbax.checkpoint.Checkpointer.save", "shutil.copyfile", "pathlib.Path.write_text"):
        with monkeypatch.context() as patched:
            patched.setattr(place, full)
            with pytest.raises(InputError, match=r"model: cannot be written: .*(No space left|EXHAUSTED)"):
                write(directory, TINY, random_parameters(TINY), [Path(__file__)])
        assert [file.name for file in tmp_path.iterdir()] == ["model"]
        check_files(directory)


def test_names_beside_a_checkpoint_that_are_not_ours_are_left_alone(tmp_path: Path):
    for name in (".model.new", ".model.old", ".model.lock"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "thesis.tex").write_text("years")
    for _ in range(2):
        write(tmp_path / "model", TINY, random_parameters(TINY))
    for name in (".model.new", ".model.old", ".model.lock"):
        assert (tmp_path / name / "thesis.tex").read_text() == "years"


WRITE_AND_DIE = """
import os, signal, sys
from headjax.parameters.converted import read_config, write_checkpoint
source, directory = sys.argv[1:]
def die(group):
    print("writing", flush=True)
    sys.stdin.read(1)
    os.kill(os.getpid(), signal.SIGKILL)
write_checkpoint(directory, read_config(source), {}, {}, die)
"""


def test_a_killed_write_is_locked_while_it_lives_and_cleared_after(written, tmp_path: Path):
    source, parameters = written
    directory = tmp_path / "model"
    command = [sys.executable, "-c", WRITE_AND_DIE, str(source), str(directory)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"writing\n"
        with pytest.raises(InputError, match="model: is being written by another process"):
            write(directory, CONFIG, parameters)
        process.stdin.write(b"x")
    assert process.returncode == -signal.SIGKILL
    left = sorted(file.name for file in tmp_path.iterdir())
    assert left == [".model.headjax-lock", ".model.headjax-new"]
    (tmp_path / ".model.headjax-new" / "stale").mkdir()
    write(directory, CONFIG, parameters)
    assert [file.name for file in tmp_path.iterdir()] == ["model"]
    assert not (directory / "stale").exists()
