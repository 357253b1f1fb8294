"""Names of models, fetching from a hub (a small one on this machine), and loading."""

import csv
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import headjax
from checkpoints_convert import convert
from checkpoints_convert.engine import open_source
from experiments.run import run
from headjax import InputError, load_model, zoo
from headjax.io import check_file_names
from headjax.parameters.cache import ensure_converted
from headjax.parameters.converted import read_provenance
from headjax.zoo import MODELS, display_name, display_names, find_entry, find_source
from tests.helpers import torch_oracle
from tests.helpers.runs import altered
from tests.helpers.tiny_run import tiny_run
from tests.helpers.torch_or_skip import torch

ROOT = Path(__file__).resolve().parents[1]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def hf_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("hf") / "tiny-gpt2"
    torch_oracle.save_model("gpt2", directory)
    (directory / "tokenizer.json").write_text("{}")
    return directory


# --- names --------------------------------------------------------------------------------------------


def test_what_stands_behind_a_name_knows_its_family(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """`trained-phi` is one of those that the entry point `trained` makes known; others stay names."""

    class Entry:
        name = "trained"

        def load(self):
            zoo.BESIDE["trained-phi"] = lambda directory, seed: directory / "phi"
            return lambda directory, seed: directory / "own"

    def entry_points(group: str, name: str) -> list[Entry]:
        assert group == "headjax.models"
        return [Entry()] if name == "trained" else []

    monkeypatch.setattr(zoo, "BESIDE", {})
    monkeypatch.setattr("importlib.metadata.entry_points", entry_points)
    assert zoo.resolve("trained-phi", tmp_path) == tmp_path / "phi"
    assert zoo.resolve("trained", tmp_path) == tmp_path / "own"
    assert zoo.resolve("trained-other", tmp_path) == "trained-other"
    assert zoo.resolve("gpt2-xl", tmp_path) == "gpt2-xl"


@pytest.mark.parametrize(
    ("name", "model_id", "display"),
    [
        ("gpt2", "openai-community/gpt2", "GPT-2 small"),
        ("openai-community/gpt2", "openai-community/gpt2", "GPT-2 small"),
        ("gpt2-xl", "openai-community/gpt2-xl", "GPT-2 xl"),
        ("gpt2-medium", "openai-community/gpt2-medium", "GPT-2 medium"),
        ("phi-2", "microsoft/phi-2", "Phi-2"),
        ("pythia-12b", "EleutherAI/pythia-12b", "Pythia 12B"),
        ("EleutherAI/pythia-6.9b-deduped", "EleutherAI/pythia-6.9b-deduped", "Pythia 6.9B deduped"),
        ("llama-3.1-70b", "meta-llama/Llama-3.1-70B", "Llama-3.1 70B"),
        ("Llama-3.1-8B-Instruct", "meta-llama/Llama-3.1-8B-Instruct", "Llama-3.1 8B Instruct"),
        ("meta-llama/Meta-Llama-3.1-70B", "meta-llama/Llama-3.1-70B", "Llama-3.1 70B"),
        ("meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.1-8B", "Llama-3.1 8B"),
        ("distilbert/distilgpt2", "distilbert/distilgpt2", "distilgpt2"),
        ("distilgpt2", "distilbert/distilgpt2", "distilgpt2"),
        ("llama-3-8b", "meta-llama/Meta-Llama-3-8B", "Llama-3 8B"),
        ("llama-3.2-1b-instruct", "meta-llama/Llama-3.2-1B-Instruct", "Llama-3.2 1B Instruct"),
        ("llama-3.3-70b-instruct", "meta-llama/Llama-3.3-70B-Instruct", "Llama-3.3 70B Instruct"),
        ("llama-2-7b", "meta-llama/Llama-2-7b-hf", "Llama-2 7B"),
        ("llama-2-70b-chat", "meta-llama/Llama-2-70b-chat-hf", "Llama-2 70B Chat"),
        ("r1-distill-llama-8b", "deepseek-ai/DeepSeek-R1-Distill-Llama-8B", "R1-Distill-Llama 8B"),
        ("r1-distill-qwen-1.5b", "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B", "R1-Distill-Qwen 1.5B"),
        ("smollm2-135m-instruct", "HuggingFaceTB/SmolLM2-135M-Instruct", "SmolLM2 135M Instruct"),
        ("tinyllama-1.1b-chat", "TinyLlama/TinyLlama-1.1B-Chat-v1.0", "TinyLlama 1.1B Chat"),
        ("qwen2-0.5b", "Qwen/Qwen2-0.5B", "Qwen2 0.5B"),
        ("qwen2.5-7b-instruct", "Qwen/Qwen2.5-7B-Instruct", "Qwen2.5 7B Instruct"),
        ("qwen3-0.6b-base", "Qwen/Qwen3-0.6B-Base", "Qwen3 0.6B Base"),
        ("Qwen/Qwen3-32B", "Qwen/Qwen3-32B", "Qwen3 32B"),
        ("mistral-7b-v0.1", "mistralai/Mistral-7B-v0.1", "Mistral 7B v0.1"),
        ("mistral-nemo", "mistralai/Mistral-Nemo-Base-2407", "Mistral Nemo Base 2407"),
        ("pythia-70m@step3000", "EleutherAI/pythia-70m", "Pythia 70M@step3000"),
        ("EleutherAI/pythia-70m@step3000", "EleutherAI/pythia-70m", "Pythia 70M@step3000"),
        ("org/model-7B@refs/pr/3", "org/model-7B", "model-7B@refs/pr/3"),
    ],
)
def test_names(name: str, model_id: str, display: str):
    entry = find_entry(name)
    assert entry.id == model_id
    assert entry.revision == (name.split("@")[1] if "@" in name else None)
    assert display_name(name) == display


@pytest.mark.parametrize(
    "name", ["gpt2@", "gpt2@a@b", "gpt2@../x", "@main", "org/model@/x", "gpt2@a b", "~nobody/x"]
)
def test_names_that_are_none(name: str):
    with pytest.raises(InputError, match=r"a model is an alias or Hugging Face id .* or a directory; got"):
        find_source(name)


def test_models_of_a_run_have_names_of_their_own(hf_directory: Path, tmp_path: Path):
    paths = [tmp_path / place / "model" for place in ("first/x", "first/y", "second/y")]
    for path in paths:
        shutil.copytree(hf_directory, path)
    assert display_names([paths[0], "gpt2"]) == ["model", "GPT-2 small"]
    assert display_names(paths[:2]) == ["x/model", "y/model"]
    assert display_names([*paths, "gpt2"]) == ["x/model", "first/y/model", "second/y/model", "GPT-2 small"]
    for half in ("float32", "bfloat16"):
        convert(hf_directory, tmp_path / half, dtype=half)
    assert display_name(tmp_path / "float32") == display_name(tmp_path / "bfloat16") == "tiny-gpt2"
    names = display_names([tmp_path / "float32", tmp_path / "bfloat16"])
    assert names == [f"{tmp_path.name}/float32", f"{tmp_path.name}/bfloat16"]
    for twice in (["gpt2", "pythia-14m", "openai-community/gpt2"], [paths[0], paths[0]]):
        with pytest.raises(InputError, match="each model of a run must be named once; got"):
            display_names(twice)
    assert display_names(["pythia-70m@step1", "pythia-70m"]) == ["Pythia 70M@step1", "Pythia 70M"]


def test_names_of_files_do_not_fall_together():
    check_file_names([("GPT-2 small", "copying"), ("GPT-2 small", "x"), ("GPT-2 xl", "copying")], "results")
    for first, second in (
        (("a b", "copying"), ("a_b", "copying")),
        (("a", "b_c"), ("a_b", "c")),
        (("A", "copying"), ("a", "copying")),
        (("m", "x:y"), ("m", "x/y")),
        ("model", "model"),
    ):
        with pytest.raises(InputError, match="things name files, so they differ in more than punctuation"):
            check_file_names([first, ("other", "one"), second], "things")


def test_a_run_refuses_names_that_would_overwrite_each_other(tmp_path: Path):
    for name in ("a b", "a_b"):
        (tmp_path / name).mkdir()
    config = tiny_run(tmp_path / "a b")
    shutil.copytree(tmp_path / "a b" / "model", tmp_path / "a_b" / "model")
    models = [
        Path(shutil.copytree(tmp_path / "a b" / "model", tmp_path / name / "m")) for name in ("x y", "x_y")
    ]
    with pytest.raises(InputError, match=r"models name files, .*; got .x y/m. and .x_y/m."):
        run(altered(config, analyses=("relation_scores",), model=tuple(map(str, models))))
    with pytest.raises(InputError, match="field 'model' must name each once; twice"):
        run(altered(config, analyses=("relation_scores",), model=(str(models[0]),) * 2))
    files = run(altered(config, analyses=("relation_scores",), model=(str(models[0]), config.model)))
    with open(files[0], newline="") as file:
        assert {row["model"] for row in csv.DictReader(file)} == {"x y/m", "a b/model"}


# --- what looks like a checkpoint ---------------------------------------------------------------------


def adapter(directory: Path) -> None:
    (directory / "adapter_config.json").write_text('{"base_model_name_or_path": "meta-llama/Llama-2-7b-hf"}')


def adapter_alone(directory: Path) -> None:
    adapter(directory)
    for file in ("config.json", "model.safetensors"):
        (directory / file).unlink()


def pointer(name: str):
    def write(directory: Path) -> None:
        text = "version https://git-lfs.github.com/spec/v1\noid sha256:4665\nsize 548105171\n"
        (directory / name).write_text(text)

    return write


def replaced_by(name: str):
    def replace(directory: Path) -> None:
        (directory / "model.safetensors").rename(directory / name)

    return replace


def quantised(directory: Path) -> None:
    fields = json.loads((directory / "config.json").read_text())
    fields["quantization_config"] = {"quant_method": "awq", "bits": 4}
    (directory / "config.json").write_text(json.dumps(fields))


KINDS = {
    "adapter": (
        adapter_alone,
        r"a LoRA \(PEFT\) adapter of 'meta-llama/Llama-2-7b-hf' is no whole model: merge",
    ),
    "adapter beside weights": (adapter, r"where that is done already, remove adapter_config.json"),
    "pointer for weights": (
        pointer("model.safetensors"),
        "model.safetensors: is a pointer of git-lfs, not the f",
    ),
    "pointer for a shard": (
        pointer("model-00001-of-00002.safetensors"),
        "00002.safetensors: is a pointer of git",
    ),
    "pointer for torch weights": (pointer("pytorch_model.bin"), "pytorch_model.bin: is a pointer of git-lfs"),
    "pointer for a tokenizer": (pointer("tokenizer.json"), "tokenizer.json: is a pointer of git-lfs"),
    "GGUF": (replaced_by("model-q4_k_m.gguf"), r"model-q4_k_m.gguf is GGUF \(llama.cpp's quantised format\)"),
    "Meta's own": (
        replaced_by("consolidated.00.pth"),
        "consolidated.00.pth is the format of Meta's own code",
    ),
    "TensorFlow": (replaced_by("tf_model.h5"), "tf_model.h5 is TensorFlow: take the model in Hugging Face's"),
    "quantised": (
        quantised,
        r"config.json: the weights are quantised \(quantization_config\) and must be floats",
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_checkpoint_is_named(kind: str, hf_directory: Path, tmp_path: Path):
    directory = Path(shutil.copytree(hf_directory, tmp_path / "it"))
    make, message = KINDS[kind]
    make(directory)
    with pytest.raises(InputError, match=message) as caught:
        ensure_converted(directory, tmp_path / "cache")
    assert str(directory) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "cache").exists()


# --- names of tensors ---------------------------------------------------------------------------------


def wrapped(prefix: str, *, heads: str = "", without: str = ""):
    """The tensors under a prefix, less another; beside them heads for other tasks."""

    def change(tensors: dict) -> dict:
        changed = {prefix + name.removeprefix(without): array for name, array in tensors.items()}
        return changed | {name: np.ones((2, 42), np.float32) for name in heads.split()}

    return change


# How a file's names differ from transformers' -> which tensors are ignored by name.
WRAPPED = {
    "torch.compile": (wrapped("_orig_mod."), []),
    "data parallel": (wrapped("module."), []),
    "both": (wrapped("module._orig_mod."), []),
    "base model": (wrapped("", without="transformer."), []),
    "base model, compiled": (wrapped("_orig_mod.", without="transformer."), []),
    "a task's class": (wrapped("model."), []),
    "value head": (wrapped("", heads="v_head.summary.weight v_head.summary.bias"),
                   ["v_head.summary.bias", "v_head.summary.weight"]),
    "classes": (wrapped("", heads="score.weight"), ["score.weight"]),
    "classes, compiled": (wrapped("_orig_mod.", heads="_orig_mod.score.weight"), ["score.weight"]),
    "TRL": (wrapped("pretrained_model.", heads="v_head.summary.weight"), ["v_head.summary.weight"]),
}  # fmt: skip


@pytest.mark.parametrize("kind", WRAPPED)
def test_wrapped_names_are_understood(kind: str, hf_directory: Path, tmp_path: Path):
    directory = Path(shutil.copytree(hf_directory, tmp_path / "it"))
    change, ignored = WRAPPED[kind]
    tensors = load_file(directory / "model.safetensors")
    save_file(change(tensors), directory / "model.safetensors")
    opened = open_source(directory)
    assert opened.ignored["ignored_tensors"] == ignored
    read = opened.read(["embed.W_E"])["embed.W_E"]
    np.testing.assert_array_equal(read, tensors["transformer.wte.weight"])
    read = opened.read(["blocks.mlp.W_in"], 2)["blocks.mlp.W_in"]
    np.testing.assert_array_equal(read, tensors["transformer.h.2.mlp.c_fc.weight"])
    if kind == "classes":
        convert(directory, tmp_path / "out")
        assert read_provenance(tmp_path / "out")["ignored_tensors"] == ["score.weight"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda name: name if ".h.1." in name else f"module.{name}",
            "all names of tensors must begin with 'module.', as the embedding's does, or none; 12 of 40",
        ),
        (
            lambda name: name.replace("c_fc.weight", "c_fc.lora_A.default.weight"),
            "weights must be a whole model's; these hold a LoRA adapter that is not merged",
        ),
        (
            lambda name: name.replace("h.2.mlp", "h.2.moe"),
            r"- transformer.h.\*.mlp.c_fc.weight .* is missing",
        ),
    ],
)
def test_names_that_are_not_understood_are_refused(change, message: str, hf_directory: Path, tmp_path: Path):
    directory = Path(shutil.copytree(hf_directory, tmp_path / "it"))
    tensors = load_file(directory / "model.safetensors")
    save_file({change(name): array for name, array in tensors.items()}, directory / "model.safetensors")
    with pytest.raises(InputError, match=message):
        open_source(directory)


def test_every_alias_and_id_is_told_apart():
    assert len({entry.id for entry in MODELS.values()}) == len({entry.display for entry in MODELS.values()})
    assert len({entry.id for entry in MODELS.values()}) == len(MODELS)


def test_near_names():
    with pytest.raises(InputError, match=r"got 'gpt2-x1'; did you mean gpt2-xl or "):
        find_source("gpt2-x1")
    with pytest.raises(InputError, match=r"got './nowhere'; `headjax list models` lists"):
        find_source("./nowhere")


def test_directories(hf_directory: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://nowhere.invalid")
    assert find_source(hf_directory) == (hf_directory, str(hf_directory), None)
    assert display_name(hf_directory) == "tiny-gpt2"
    monkeypatch.chdir(hf_directory)
    assert find_source(".").directory == hf_directory
    assert display_name(".") == "tiny-gpt2"
    convert(hf_directory, tmp_path / "converted")
    assert display_name(tmp_path / "converted") == "tiny-gpt2"
    with pytest.raises(InputError, match=r"converted: is converted already"):
        convert(tmp_path / "converted", tmp_path / "twice")
    (tmp_path / "gpt2").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        InputError, match=r"gpt2: a checkpoint directory holds config.json; this one does not"
    ):
        find_source("gpt2")


def test_a_snapshot_of_the_hubs_cache_goes_by_its_model(hf_directory: Path, tmp_path: Path):
    """So that rules published for a model hold for it, whichever way it is named."""
    for repository, display in (
        ("models--openai-community--gpt2-xl", "GPT-2 xl"),
        ("models--meta-llama--Meta-Llama-3.1-70B", "Llama-3.1 70B"),
        ("models--somebody--tuned--twice", COMMIT),
        ("models--somebody--tuned", "tuned"),
        ("datasets--openai-community--gpt2", COMMIT),
    ):
        snapshot = tmp_path / repository / "snapshots" / COMMIT
        shutil.copytree(hf_directory, snapshot)
        assert display_name(snapshot) == display
    converted = tmp_path / "converted"
    convert(tmp_path / "models--openai-community--gpt2-xl" / "snapshots" / COMMIT, converted)
    assert display_name(converted) == "GPT-2 xl"


# --- loading ------------------------------------------------------------------------------------------


def test_load_model_converts_once_and_when_files_change(hf_directory: Path, tmp_path: Path, monkeypatch):
    source, cache = Path(shutil.copytree(hf_directory, tmp_path / "source")), tmp_path / "cache"
    monkeypatch.setenv("HEADJAX_CACHE", str(cache))
    model = load_model(source, precision="high")
    tensors = load_file(source / "model.safetensors")
    np.testing.assert_array_equal(model.W_E, tensors["transformer.wte.weight"])
    assert model.config.precision == "high"
    assert isinstance(model, headjax.Transformer)
    [converted] = cache.iterdir()
    made = (converted / "headjax.json").stat().st_mtime_ns

    def remade() -> bool:
        nonlocal made
        before, made = made, (ensure_converted(source) / "headjax.json").stat().st_mtime_ns
        return made != before

    assert load_model(source, dtype=jnp.bfloat16).W_O.dtype == jnp.bfloat16
    assert load_model(converted).W_E.dtype == jnp.float32
    assert not remade()
    os.utime(source / "model.safetensors")  # another time, the same bytes
    assert not remade()
    data = bytearray((source / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (source / "model.safetensors").write_bytes(data)
    assert remade()
    (source / "merges.txt").write_text("")
    assert remade()
    (converted / "headjax.json").write_text("{")
    assert remade()
    assert not remade()
    assert [directory.name for directory in cache.iterdir()] == [converted.name]


def test_two_directories_of_one_name_are_two_models(hf_directory: Path, tmp_path: Path):
    copies = [Path(shutil.copytree(hf_directory, tmp_path / place / "model")) for place in ("a", "b")]
    assert len({ensure_converted(copy, tmp_path / "cache") for copy in copies}) == 2


def test_load_model_passes_the_converters_line_on(hf_directory: Path, tmp_path: Path):
    source = Path(shutil.copytree(hf_directory, tmp_path / "source"))
    (source / "model.safetensors").write_bytes(b"")
    with pytest.raises(InputError) as caught:
        load_model(source, checkpoint_dir=tmp_path / "cache")
    assert str(caught.value).startswith(f"{source / 'model.safetensors'}: truncated or corrupt: ")
    assert "\n" not in str(caught.value)


def test_load_model_works_from_any_directory(hf_directory: Path, tmp_path: Path):
    """The converter is found beside this package, wherever the caller stands."""
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); import headjax; assert 'jax' not in sys.modules; "
        f"print(headjax.load_model({str(hf_directory)!r}, checkpoint_dir='cache').config.n_layers)"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert result.stdout == "3\n", result.stderr


# --- the hub ------------------------------------------------------------------------------------------


class Hub(BaseHTTPRequestHandler):
    """As much of the Hub's interface as fetching a snapshot needs."""

    repositories: dict[str, dict[str, bytes]]
    gated: frozenset[str] = frozenset(["meta-llama/Llama-3.1-8B"])
    fetched: list[str]
    revisions = ("main", "step3000")

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        headers = {"Content-Length": str(len(body)), "X-Repo-Commit": COMMIT} | headers
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        parts = path.removeprefix("/api/models/").strip("/").split("/")
        repository = "/".join(parts[:2])
        files = self.repositories.get(repository)
        if repository in self.gated:
            if path.startswith("/api/"):
                return self.describe(parts, {"config.json": b"{}", "model.safetensors": b""})
            return self.answer(403, X_Error_Code="GatedRepo", X_Error_Message="Ask for access.")
        if files is None:
            return self.answer(401, X_Error_Code="RepoNotFound", X_Error_Message="Repository not found")
        if path.startswith("/api/"):
            revision = parts[parts.index("revision") + 1] if "revision" in parts else "main"
            if revision not in (*self.revisions, COMMIT):
                return self.answer(404, X_Error_Code="RevisionNotFound", X_Error_Message="Invalid rev id")
            return self.describe(parts, files)
        body = files["/".join(parts[4:])]
        if self.command == "GET":
            self.fetched.append(f"{parts[1]}/{'/'.join(parts[4:])}")
        return self.answer(200, body, ETag=f'"{hashlib.sha1(body).hexdigest()}"')

    do_HEAD = do_GET

    def describe(self, parts: list[str], files: dict[str, bytes]) -> None:
        if "tree" in parts:
            listing = [
                {"type": "file", "path": name, "size": len(body), "oid": hashlib.sha1(body).hexdigest()}
                for name, body in files.items()
            ]
        else:
            siblings = [{"rfilename": name} for name in files]
            listing = {"id": "/".join(parts[:2]), "sha": COMMIT, "siblings": siblings, "private": False}
        self.answer(200, json.dumps(listing).encode(), Content_Type="application/json")

    def log_message(self, *_) -> None:
        pass


@pytest.fixture(scope="module")
def hub(hf_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[type[Hub]]:
    good = {file.name: file.read_bytes() for file in hf_directory.iterdir()}
    saved = tmp_path_factory.mktemp("torch") / "pytorch_model.bin"
    torch.save(torch_oracle.random_model("gpt2").state_dict(), saved)
    extras = {
        "README.md": b"-",
        "pytorch_model.bin": saved.read_bytes(),
        "onnx/model.safetensors": b"-",
        "model.fp16.safetensors": b"-",
        "tf_model.h5": b"-",
        "vocab.json": b'{"a": 0}',
    }
    Hub.repositories = {
        "openai-community/gpt2": good | extras,
        "openai-community/gpt2-medium": {"config.json": good["config.json"]} | extras,
        "openai-community/gpt2-large": {"config.json": b"{}"},
    }
    Hub.fetched = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        Hub.address = f"http://127.0.0.1:{server.server_port}"
        yield Hub
        server.shutdown()


FIND = """
import sys
from headjax.errors import InputError
from headjax.zoo import find_source
for name in sys.argv[1:]:
    try:
        source = find_source(name)
        print(source.id, source.revision, *sorted(file.name for file in source.directory.iterdir()))
    except InputError as error:
        print("error:", error)
"""


def find(home: Path, endpoint: str, *names: str, offline: bool = False) -> list[str]:
    """What a fresh process finds; huggingface_hub reads its environment when imported."""
    environment = os.environ | {
        "HF_HOME": str(home),
        "HF_ENDPOINT": endpoint,
        "HF_HUB_OFFLINE": str(int(offline)),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    command = [sys.executable, "-c", FIND, *names]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout.splitlines()


def test_fetching_from_the_hub(hub: type[Hub], tmp_path: Path):
    hub.fetched.clear()
    small, medium, large, gated, absent = find(
        tmp_path,
        hub.address,
        "gpt2",
        "gpt2-medium",
        "gpt2-large",
        "meta-llama/Meta-Llama-3.1-8B",
        "nobody/nothing",
    )
    assert small == f"openai-community/gpt2 {COMMIT} config.json model.safetensors tokenizer.json vocab.json"
    assert medium == f"openai-community/gpt2-medium {COMMIT} config.json pytorch_model.bin vocab.json"
    assert "openai-community/gpt2-large has none of model.safetensors, " in large
    assert "meta-llama/Llama-3.1-8B is gated: accept its terms at https://huggingface.co/" in gated
    assert "nobody/nothing is neither a directory nor a model that the Hub shows you" in absent
    # No other format, no other precision, no file twice.
    assert sorted(hub.fetched) == [
        "gpt2-large/config.json",
        "gpt2-medium/config.json",
        "gpt2-medium/pytorch_model.bin",
        "gpt2-medium/vocab.json",
        "gpt2/config.json",
        "gpt2/model.safetensors",
        "gpt2/tokenizer.json",
        "gpt2/vocab.json",
    ]
    # From now on the cache serves, without the network and without a word to it.
    hub.fetched.clear()
    offline = find(tmp_path, hub.address, "gpt2", "gpt2-medium", "gpt2-xl", offline=True)
    assert offline[:2] == [small, medium]
    assert (
        "gpt2-xl is not, or not whole, in the Hugging Face cache, and the Hub cannot be reached" in offline[2]
    )
    assert find(tmp_path, "http://127.0.0.1:9", "gpt2", "gpt2-xl") == [small, offline[2]]
    assert hub.fetched == []


def test_a_revision_of_any_name(hub: type[Hub], tmp_path: Path):
    names = ("gpt2@step3000", "openai-community/gpt2@step3000", "gpt2@step4000", "gpt2-large@main")
    first, same, missing, large = find(tmp_path, hub.address, *names)
    files = "config.json model.safetensors tokenizer.json vocab.json"
    assert first == same == f"openai-community/gpt2@step3000 {COMMIT} {files}"
    assert missing == "error: openai-community/gpt2 has no revision 'step4000' on the Hub"
    assert large.startswith("error: openai-community/gpt2-large@main has none of model.safetensors, ")
    [offline, main] = find(tmp_path, hub.address, "gpt2@step3000", "gpt2", offline=True)
    assert offline == first
    assert "openai-community/gpt2 is not, or not whole, in the Hugging Face cache" in main


def test_a_cache_may_know_a_model_under_its_old_name(hf_directory: Path, tmp_path: Path):
    for old in ("gpt2", "meta-llama/Meta-Llama-3.1-8B"):
        repository = tmp_path / "hub" / f"models--{old.replace('/', '--')}"
        shutil.copytree(hf_directory, repository / "snapshots" / COMMIT)
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text(COMMIT)
        shutil.copytree(hf_directory, repository / "snapshots" / COMMIT[::-1])
        (repository / "refs" / "step1").write_text(COMMIT[::-1])
    files = " ".join(sorted(file.name for file in hf_directory.iterdir()))
    for offline, address in ((True, "http://nowhere.invalid"), (False, "http://127.0.0.1:9")):
        found = find(tmp_path, address, "gpt2", "openai-community/gpt2", "llama-3.1-8b", offline=offline)
        assert found == [
            f"openai-community/gpt2 {COMMIT} {files}",
            f"openai-community/gpt2 {COMMIT} {files}",
            f"meta-llama/Llama-3.1-8B {COMMIT} {files}",
        ]
    [revised] = find(tmp_path, address, "gpt2@step1", offline=True)
    assert revised == f"openai-community/gpt2@step1 {COMMIT[::-1]} {files}"


def test_a_hub_model_is_converted_under_its_id(hub: type[Hub], tmp_path: Path):
    code = (
        "import headjax, headjax.zoo\n"
        "from headjax.parameters.cache import ensure_converted\n"
        "path = ensure_converted('gpt2', 'cache')\n"
        "revised = ensure_converted('gpt2@step3000', 'cache')\n"
        "print(revised, headjax.zoo.display_name(revised))\n"
        "assert headjax.load_model('openai-community/gpt2', checkpoint_dir='cache').config.n_layers == 3\n"
        "print(path)"
    )
    environment = os.environ | {
        "HF_HOME": str(tmp_path / "home"),
        "HF_ENDPOINT": hub.address,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-c", code]
    result = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    revised = "cache/openai-community--gpt2@step3000 GPT-2 small@step3000"
    assert result.stdout == f"{revised}\ncache/openai-community--gpt2\n", result.stderr[-3000:]
    converted = tmp_path / "cache" / "openai-community--gpt2"
    provenance = read_provenance(converted)
    assert (provenance["source"], provenance["revision"]) == ("openai-community/gpt2", COMMIT)
    both = {converted.name, f"{converted.name}@step3000"}
    assert {file.name for file in converted.parent.iterdir()} == both
    assert display_name(converted) == "GPT-2 small"
