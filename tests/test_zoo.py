"""Names of models, fetching from a hub (a small one on this machine), and loading."""

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
from safetensors.numpy import load_file

import headjax
from checkpoints_convert import convert, ensure
from headjax import InputError, load_model
from headjax.checkpoint import read_provenance
from headjax.zoo import MODELS, display_name, find_entry, find_source
from tests import torch_oracle
from tests.torch_or_skip import torch

ROOT = Path(__file__).resolve().parents[1]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def hf_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("hf") / "tiny-gpt2"
    torch_oracle.save_model("gpt2", directory)
    (directory / "tokenizer.json").write_text("{}")
    return directory


# --- names --------------------------------------------------------------------------------------------


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
    ],
)
def test_names(name: str, model_id: str, display: str):
    assert find_entry(name).id == model_id
    assert display_name(name) == display


def test_every_alias_and_id_is_told_apart():
    assert len({entry.id for entry in MODELS.values()}) == len({entry.display for entry in MODELS.values()})
    assert len({entry.id for entry in MODELS.values()}) == len(MODELS)


def test_near_names():
    with pytest.raises(InputError, match=r"got 'gpt2-x1'; did you mean gpt2-xl or "):
        find_source("gpt2-x1")
    with pytest.raises(InputError, match=r"got './nowhere'; aliases are gpt2, "):
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
        before, made = made, (ensure(source) / "headjax.json").stat().st_mtime_ns
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
    assert len({ensure(copy, tmp_path / "cache") for copy in copies}) == 2


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


def test_a_hub_model_is_converted_under_its_id(hub: type[Hub], tmp_path: Path):
    code = (
        "import headjax\n"
        "from checkpoints_convert import ensure\n"
        "path = ensure('gpt2', 'cache')\n"
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
    assert result.stdout == "cache/openai-community--gpt2\n", result.stderr[-3000:]
    converted = tmp_path / "cache" / "openai-community--gpt2"
    provenance = read_provenance(converted)
    assert (provenance["source"], provenance["revision"]) == ("openai-community/gpt2", COMMIT)
    assert [file.name for file in converted.parent.iterdir()] == [converted.name]
    assert display_name(converted) == "GPT-2 small"
