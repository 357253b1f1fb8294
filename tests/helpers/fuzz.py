"""Damaged input for everything that headjax reads: refused in one line, or read as it should be.

    python -m tests.helpers.fuzz [--cases 10000] [--seed 1] [--target NAME ...]

prints how many cases of each target ended how. A target writes good files, of which a case damages one and
puts it back, and says whether what was read all the same is right: as an independent reader has it, or as it
was before the damage. `tests/test_fuzz.py` runs some cases of each.
"""

import argparse
import collections
import contextlib
import io
import json
import random
import re
import signal
import sys
import tempfile
import traceback
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import safetensors
import tokenizers
from safetensors.numpy import save, save_file

from checkpoints_convert.engine import open_source
from checkpoints_convert.reader import DTYPES, open_tensors
from experiments import draw
from experiments.config import RunConfig, config_to_json, load_config
from experiments.record import digests, write_record
from headjax.circuits.published import read_circuit
from headjax.config import ModelConfig, Rotary
from headjax.data.prompt_sets import read_prompts
from headjax.data.prompts import encode, load_tokenizer
from headjax.data.relations import load_relations
from headjax.errors import InputError
from headjax.grid import GridSet, HeadGrid, load_npz, save_npz
from headjax.model import parameter_shapes
from headjax.parameters.cache import ensure_converted
from headjax.parameters.converted import read_config, read_parameters, read_provenance, write_checkpoint
from headjax.report.curve_tables import CurveRow
from headjax.report.options import Report
from headjax.report.page.data import describe_run
from headjax.result import Result
from tests.helpers import tiny_tokenizers
from tests.helpers.damage import Damage, damage_bytes, damage_json
from tests.helpers.runs import altered

REFUSED, RIGHT = "refused", "accepted, right"
WRONG, TRACEBACK, HANG, LONG = "accepted, damaged", "traceback", "hang", "more than a line"
OUTCOMES = (REFUSED, RIGHT, WRONG, TRACEBACK, HANG, LONG)
SECONDS = 20  # that one case may take, on a busy machine
LINE = 4000  # characters: a path, all faults of a checkpoint's tensors, and of what came some 200


class Target(NamedTuple):
    """Good files, each with the damage that suits it; `use` reads them: whether it read them right."""

    files: Mapping[Path, Damage]
    use: Callable[[], bool]


class Case(NamedTuple):
    """How one case ended, and what is needed to look at it."""

    outcome: str
    target: str
    number: int
    file: str
    detail: str


def run_cases(name: str, cases: int, seed: int, directory: Path) -> Iterator[Case]:
    """So many cases of one target; case by case drawn from the seed and its number."""
    target = TARGETS[name](directory)
    assert target.use(), f"{name}: the good files must be read right"
    for number in range(cases):
        rng = random.Random(f"{name} {seed} {number}")
        file = rng.choice(list(target.files))
        whole = file.read_bytes()
        gone = rng.random() < 0.02
        try:
            if gone:
                file.unlink()
            else:
                file.write_bytes(target.files[file](whole, rng))
            outcome, detail = _outcome(target.use)
            yield Case(outcome, name, number, str(file.relative_to(directory)), detail)
        finally:
            file.write_bytes(whole)


class _Hang(BaseException):
    """Not an Exception: nothing that catches those may take it for a fault of a file."""


@contextlib.contextmanager
def _alarm() -> Iterator[None]:
    def ring(*_: object) -> None:
        raise _Hang

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _outcome(use: Callable[[], bool]) -> tuple[str, str]:
    try:
        with _alarm():
            return (RIGHT, "") if use() else (WRONG, "")
    except InputError as error:
        line = " ".join(str(error).split())
        return (LONG if len(line) > LINE else REFUSED), line[:LINE]
    except _Hang:
        return HANG, traceback.format_exc()
    except (Exception, SystemExit):
        return TRACEBACK, traceback.format_exc()


# --- checkpoints --------------------------------------------------------------------------------------


def damage_safetensors(content: bytes, rng: random.Random) -> bytes:
    """Mostly the header, under its right length: the rest are numbers, of which any may be meant."""
    if rng.random() < 0.25:
        return damage_bytes(content, rng)
    end = 8 + int.from_bytes(content[:8], "little")
    header = damage_json(content[8:end], rng)
    return len(header).to_bytes(8, "little") + header + content[end:]


def safetensors_file(directory: Path) -> Target:
    """Every tensor as the safetensors library reads it."""
    rng, file = np.random.default_rng(0), directory / "model.safetensors"
    tensors = {f"layer.{i}.w": rng.normal(size=(i + 1, 3)).astype(np.float32) for i in range(4)}
    tensors |= {"half": np.ones(5, np.float16), "empty": np.ones((0, 2), np.float32), "one": np.array(3.0)}
    tensors |= {"ids": np.arange(6, dtype=np.int64), "mask": np.array([True, False])}
    file.write_bytes(save(tensors, {"format": "pt"}))

    def use() -> bool:
        ours, _ = open_tensors(directory)
        try:
            theirs = dict(safetensors.deserialize(file.read_bytes()))
        except safetensors.SafetensorError:
            return False
        return {tensor.name for tensor in ours} == set(theirs) and all(
            (tensor.dtype, list(tensor.shape)) == (theirs[tensor.name]["dtype"], theirs[tensor.name]["shape"])
            and (tensor.dtype not in DTYPES or tensor.read().tobytes() == bytes(theirs[tensor.name]["data"]))
            for tensor in ours
        )

    return Target({file: damage_safetensors}, use)


LLAMA = {
    **{"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 11, "hidden_size": 6},
    **{"intermediate_size": 5, "num_hidden_layers": 2, "num_attention_heads": 3, "num_key_value_heads": 1},
    **{"head_dim": 2, "max_position_embeddings": 13, "rms_norm_eps": 1e-05, "rope_theta": 10000.0},
    **{"hidden_act": "silu", "tie_word_embeddings": False, "attention_bias": False, "mlp_bias": False},
    **{"torch_dtype": "float32", "bos_token_id": 1, "eos_token_id": [1, 2], "use_cache": True},
}
# What a config says, under our names; a field that is not there has the family's default.
SAYS = {
    **{"n_layers": "num_hidden_layers", "n_heads": "num_attention_heads", "d_model": "hidden_size"},
    **{"d_mlp": "intermediate_size", "vocab_size": "vocab_size", "max_positions": "max_position_embeddings"},
    **{"norm_eps": "rms_norm_eps", "tied_embeddings": "tie_word_embeddings"},
}
DEFAULTS = {"rms_norm_eps": 1e-6, "tie_word_embeddings": False, "rope_theta": 10000.0}
DEFAULTS["max_position_embeddings"] = 2048


def hugging_face_directory(directory: Path) -> Target:
    """The sizes as config.json says them to another reader, and the weights as the library reads them."""
    D, F, H, G, K, V = 6, 5, 3, 1, 2, 11
    rng = np.random.default_rng(0)
    shapes = {
        **{"model.embed_tokens.weight": (V, D), "lm_head.weight": (V, D), "model.norm.weight": (D,)},
        **{
            f"model.layers.{layer}.{name}.weight": shape
            for layer in range(2)
            for name, shape in {
                **{"self_attn.q_proj": (H * K, D), "self_attn.k_proj": (G * K, D)},
                **{"self_attn.v_proj": (G * K, D), "self_attn.o_proj": (D, H * K)},
                **{"mlp.gate_proj": (F, D), "mlp.up_proj": (F, D), "mlp.down_proj": (D, F)},
                **{"input_layernorm": (D,), "post_attention_layernorm": (D,)},
            }.items()
        },
    }
    tensors = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    halves = {"model-00001-of-00002.safetensors": {}, "model-00002-of-00002.safetensors": {}}
    for i, (name, tensor) in enumerate(tensors.items()):
        list(halves.values())[i % 2][name] = tensor
    for file, half in halves.items():
        save_file(half, directory / file)
    weight_map = {name: file for file, half in halves.items() for name in half}
    config, index = directory / "config.json", directory / "model.safetensors.index.json"
    config.write_text(json.dumps(LLAMA), "utf-8")
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}), "utf-8")

    def use() -> bool:
        source = open_source(directory)
        said = json.loads(config.read_text("utf-8"))
        said = {name: value for name, value in said.items() if value is not None}  # which stands for absent
        rotary = said.get("rope_parameters") or {}
        theta = rotary.get("rope_theta", said.get("rope_theta", DEFAULTS["rope_theta"]))
        return (
            all(getattr(source.config, ours) == said.get(f, DEFAULTS.get(f)) for ours, f in SAYS.items())
            and source.config.rotary.theta == theta
            and {type(getattr(source.config, ours)) for ours in list(SAYS)[:6]} == {int}
            and (source.config.activation == "silu") == (said["hidden_act"] in ("silu", "swish"))
            and np.array_equal(source.read(["embed.W_E"])["embed.W_E"], tensors["model.embed_tokens.weight"])
            and np.array_equal(
                source.read(["blocks.mlp.W_out"], 1)["blocks.mlp.W_out"],
                tensors["model.layers.1.mlp.down_proj.weight"].T,
            )
        )

    return Target({config: damage_json, index: damage_json}, use)


def converted_directory(directory: Path) -> Target:
    """All that was written, bit for bit; damage is never guessed at."""
    sizes = {"n_layers": 2, "n_heads": 3, "n_kv_heads": 1, "d_head": 2, "d_model": 6, "d_mlp": 5}
    config = ModelConfig(
        **{"family": "llama", **sizes, "vocab_size": 11, "max_positions": 13, "norm": "rms"},
        **{"norm_eps": 1e-5, "rotary": Rotary(2, 10000.0), "activation": "silu", "gated_mlp": True},
        **{"parallel_residual": False, "tied_embeddings": False},
    )
    rng = np.random.default_rng(0)
    parameters = {
        name: rng.normal(size=shape).astype(np.float32) for name, shape in parameter_shapes(config).items()
    }
    tokenizer = directory / "tokenizer.json"
    tokenizer.write_text(json.dumps({"model": {"vocab": {"a": 0, "b": 1}}}), "utf-8")
    provenance = {"source": "tiny", "revision": None, "files": {"weights": {"sha256": "0", "size": 1}}}
    write_checkpoint(
        directory / "model",
        config,
        {name: array.dtype for name, array in parameters.items()},
        provenance,
        lambda group: {
            name: parameters[name] if group.layer is None else parameters[name][group.layer]
            for name in group.names
        },
        [tokenizer],
    )
    model, expected = directory / "model", tokenizer.read_bytes()
    files = {
        file: damage_json if file.suffix == ".json" else damage_bytes
        for file in sorted(model.rglob("*"))
        if file.is_file()
    }

    def convert(*_: object) -> None:
        raise AssertionError("a directory that is named is not converted")

    def use() -> bool:
        found = ensure_converted(model)
        read = read_parameters(found)
        return (
            (read_config(found), read_provenance(found)) == (config, provenance)
            and (found / "tokenizer.json").read_bytes() == expected
            and all(np.array_equal(read[name], array) for name, array in parameters.items())
        )

    return Target(files, use)


TEXT = "The capital of Italy is Rome. John, Mary and a dog: No cat 12 é"


def tokenizer_json(directory: Path) -> Target:
    """Tokens as the tokenizers library makes them from tokenizer.json alone."""
    tiny_tokenizers.byte_level().save_pretrained(directory)
    files = {file: damage_json for file in sorted(directory.glob("*.json"))}

    def use() -> bool:
        read = load_tokenizer(directory)
        theirs = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
        pieces = encode(read, TEXT)
        ids = theirs.encode(TEXT, add_special_tokens=False).ids
        return pieces is None or [piece.token for piece in pieces] == ids

    return Target(files, use)


def vocabulary_and_merges(directory: Path) -> Target:
    """Tokens as the tokenizers library makes them from vocab.json and merges.txt."""
    saved = json.loads(tiny_tokenizers.byte_level().backend_tokenizer.to_str())["model"]
    vocabulary, merges = directory / "vocab.json", directory / "merges.txt"
    vocabulary.write_text(json.dumps(saved["vocab"]), "utf-8")
    merges.write_text("#version: 0.2\n" + "\n".join(map(" ".join, saved["merges"])) + "\n", "utf-8")
    (directory / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}', "utf-8")

    def use() -> bool:
        read = load_tokenizer(directory)
        theirs = tokenizers.ByteLevelBPETokenizer(str(vocabulary), str(merges))
        pieces = encode(read, TEXT)
        return pieces is None or [piece.token for piece in pieces] == theirs.encode(TEXT).ids

    return Target({vocabulary: damage_json, merges: damage_bytes}, use)


# --- what a user writes -------------------------------------------------------------------------------


def prompt_file(directory: Path) -> Target:
    """The prompts as another reader of JSON lines has them."""
    file = directory / "prompts.jsonl"
    lines = (
        {"prompt": "The capital of Italy is", "answer": "Rome", "distractor": "Paris", "source": "Italy"},
        {
            "prompt": "John and Mary met; John gave it to",
            "answer": "Mary",
            "corrupted": "A and B met; C gave",
        },
    )
    file.write_text("\n".join(map(json.dumps, lines)) + "\n", "utf-8")

    def damage(content: bytes, rng: random.Random) -> bytes:
        lines = content.split(b"\n")
        if rng.random() < 0.5:
            lines[0] = damage_json(lines[0], rng)
            return b"\n".join(lines)
        return damage_bytes(content, rng)

    def use() -> bool:
        read = read_prompts(file)
        said = [json.loads(line) for line in file.read_text("utf-8-sig").split("\n") if line.strip()]
        return len(read) == len(said) and all(
            (ours.text, ours.answer, ours.distractor, ours.corrupted)
            == tuple(theirs.get(name) for name in ("prompt", "answer", "distractor", "corrupted"))
            and ("source" not in theirs or ours.text[slice(*ours.source)] == theirs["source"].strip())
            for ours, theirs in zip(read, said, strict=True)
        )

    return Target({file: damage}, use)


def marks_file(directory: Path) -> Target:
    """The heads that another reader finds in the text."""
    as_json, as_text = directory / "marks.json", directory / "marks.txt"
    marks = {"legend": "Mine", "Movers": ["L9H6", "9.10", [3, 4]], "Others": ["L0H1"]}
    as_json.write_text(json.dumps(marks), "utf-8")
    as_text.write_text("L9H6, 9.10  # the best\nL0H1\n", "utf-8")

    def heads(value: Any) -> list[tuple[int, int]]:
        if isinstance(value, list) and len(value) == 2 and all(type(part) is int for part in value):
            return [tuple(value)]
        if isinstance(value, list):
            return [head for one in value for head in heads(one)]
        return [tuple(map(int, pair)) for pair in re.findall(r"L?(\d+)(?:H|\.)(\d+)", value, re.IGNORECASE)]

    def use() -> bool:
        said = json.loads(as_json.read_text("utf-8-sig"))
        expected = heads([v for k, v in said.items() if k != "legend"] if isinstance(said, dict) else said)
        plain = heads(re.sub(r"#.*", "", as_text.read_text("utf-8-sig")))
        read = [[tuple(head) for head in read_circuit(file).heads()] for file in (as_json, as_text)]
        return set(read[0]) == set(expected) and set(read[1]) == set(plain)

    def checked() -> bool:
        for file in (as_json, as_text):
            read_circuit(file)  # refused before the other reader stumbles
        return use()

    return Target({as_json: damage_json, as_text: damage_bytes}, checked)


def relation_file(directory: Path) -> Target:
    """The pairs as another reader has them."""
    file, plain = directory / "capitals.json", directory / "copies.json"
    file.write_text(
        json.dumps(
            {
                **{"id": "capitals", "name": "Capitals", "category": "Knowledge"},
                "pairs": [["France", "Paris"], ["Italy", "Rome"], ["Spain", "Madrid"]],
            }
        ),
        "utf-8",
    )
    plain.write_text(json.dumps([["dog", "dog"], ["cat", "cat"]]), "utf-8")

    def use() -> bool:
        read = load_relations(None, directory)
        said = [json.loads(one.read_text("utf-8-sig")) for one in (file, plain)]
        expected = [
            tuple((source.strip(), target.strip()) for source, target in pairs)
            for pairs in (one["pairs"] if isinstance(one, dict) else one for one in said)
        ]
        return sorted(relation.pairs for relation in read) == sorted(expected)

    def gone_is_fine() -> bool:
        return use() if file.exists() and plain.exists() else bool(load_relations(None, directory))

    return Target({file: damage_json, plain: damage_json}, gone_is_fine)


def command_line(directory: Path) -> Target:
    """A field takes the value that its text stands for, in its own type."""
    file, hints = directory / "arguments.txt", typing.get_type_hints(RunConfig)
    good = load_config("demo", {})
    texts = {
        **{"top_k": "25", "threshold": "0.5", "first_mlp": "false", "relations": "copying,name_copying"},
        **{
            "mesh": "data:2,model:4",
            "seed": "3",
            "model": "gpt2,phi-2",
            "prompts": "ioi",
            "dtype": "bfloat16",
        },
        **{"templates": '["<X> is", "The <X>, a"]', "rate": "1e3", "n_prompts": "none", "out": "out/é"},
    }
    file.write_text("\n".join(f"{name}={text}" for name, text in texts.items()), "utf-8")

    def damage(content: bytes, rng: random.Random) -> bytes:
        lines = content.split(b"\n")
        at = rng.randrange(len(lines))
        name, _, value = lines[at].partition(b"=")
        return name + b"=" + damage_bytes(value, rng)

    def use() -> bool:
        # As the operating system hands over what is no text.
        arguments = (
            (file.read_bytes() if file.exists() else b"").decode("utf-8", "surrogateescape").split("\n")
        )
        overrides = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
        config = load_config("demo", overrides)
        return all(
            _stands_for(getattr(config, name), overrides.get(name), getattr(good, name), hints[name])
            for name in hints
        )

    return Target({file: damage}, use)


def _stands_for(value: Any, text: str | None, default: Any, kind: Any) -> bool:
    if text is None:
        return value == default
    if value is None:
        return text.strip().lower() == "none"
    if isinstance(value, bool):
        return text.strip().lower() == str(value).lower()
    if isinstance(value, int | float):
        return float(text) == float(value) and (
            isinstance(value, int) or float in (*typing.get_args(kind), kind)
        )
    if isinstance(value, str):
        return value == text
    words = re.sub(r"[\s\[\]\\\"']", "", text)
    if isinstance(value, dict):
        return ",".join(f"{axis}:{size}" for axis, size in value.items()) == words
    return all(re.sub(r"[\s\[\]\\\"']", "", word) in words or "\\" in text for word in value)


# --- a finished run -----------------------------------------------------------------------------------


def _grids() -> GridSet:
    rng = np.random.default_rng(0)
    return GridSet(
        tuple(
            HeadGrid(
                rng.uniform(size=(2, 3)),
                "tiny",
                relation,
                "Knowledge",
                "static",
                n_pairs=40,
                analysis="relation_scores",
            )
            for relation in ("capitals", "copying")
        )
    )


def scores_npz(directory: Path) -> Target:
    """Every grid as it was saved: the archive has checksums of its own."""
    grids, file = _grids(), directory / "scores.npz"
    save_npz(grids, file)

    def use() -> bool:
        read = load_npz(file)
        return len(read) == len(grids) and all(
            np.array_equal(ours.scores, theirs.scores)
            and (ours.relation, ours.model, ours.kind, ours.n_pairs, ours.name)
            == (theirs.relation, theirs.model, theirs.kind, theirs.n_pairs, theirs.name)
            for ours, theirs in zip(read, grids, strict=True)
        )

    return Target({file: damage_bytes}, use)


CURVES = "".join(
    ",".join(row) + "\n"
    for row in (
        CurveRow._fields,
        ("tiny", "capitals", "relation", "capitals", "0", "", "0.9", "0.8", "1.0", "-1.0", "-1.5", "-0.5"),
        (
            "tiny",
            "capitals",
            "relation",
            "capitals",
            "1",
            "L1H2",
            "0.5",
            "0.4",
            "0.6",
            "-2.0",
            "-2.5",
            "-1.5",
        ),
    )
)
CIRCUITS = """model,task,role,stage,input,head,effect,stderr,n_prompts
tiny,capitals,Direct,1,direct,L1H2,-20.5,1.5,40
"""


def finished_run(directory: Path) -> Target:
    """`draw` draws it or says what is wrong with it; the pictures are not looked at."""
    save_npz(_grids(), directory / "scores.npz")
    config = config_to_json(altered(load_config("demo", {}), model="tiny", heat_maps=("capitals",), out="x"))
    contents = {"ablation_curves.csv": CURVES, "circuits.csv": CIRCUITS}
    for name, content in contents.items():
        (directory / name).write_text(content, "utf-8")
    said = describe_run("tiny", Result(_grids()), {}, [], Report(), [], {})
    (directory / "page.json").write_text(json.dumps(said), "utf-8")
    results = [directory / name for name in ("scores.npz", "page.json", *contents)]
    described = {"config": config, "models": [{"name": "tiny"}]}
    record = write_record(directory, described, digests(directory, results))

    def use() -> bool:
        unseen = mock.patch("matplotlib.figure.Figure.savefig")  # drawing them would take all the time
        with contextlib.redirect_stdout(io.StringIO()), unseen:
            draw.main(["draw", str(directory)])
        return True

    return Target({record: damage_json, **dict.fromkeys(results, damage_bytes)}, use)


TARGETS: dict[str, Callable[[Path], Target]] = {
    function.__name__: function
    for function in (
        *(safetensors_file, hugging_face_directory, converted_directory, tokenizer_json),
        *(vocabulary_and_merges, prompt_file, marks_file, relation_file, command_line, scores_npz),
        finished_run,
    )
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cases", type=int, default=10_000, help="of all targets together")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--target", nargs="*", choices=TARGETS, default=list(TARGETS))
    options = parser.parse_args()
    counts, kept = collections.Counter(), {}
    for name in options.target:
        with tempfile.TemporaryDirectory() as directory:
            for case in run_cases(name, options.cases // len(options.target), options.seed, Path(directory)):
                counts[name, case.outcome] += 1
                if case.outcome not in (REFUSED, RIGHT):
                    kept.setdefault((name, case.file, case.outcome, case.detail[-300:]), case)
        print(".", end="", file=sys.stderr, flush=True)
    print(f"\n{'':24}" + "".join(f"{outcome:>18}" for outcome in OUTCOMES))
    for name in (*options.target, "all"):
        numbers = [
            sum(counts[key] for key in counts if key[1] == o and name in (key[0], "all")) for o in OUTCOMES
        ]
        print(f"{name:24}" + "".join(f"{number:18,}" for number in numbers))
    for case in kept.values():
        print(f"\n{case.target} {case.number}, {case.file}: {case.outcome}\n{case.detail[-1500:]}")


if __name__ == "__main__":
    main()
