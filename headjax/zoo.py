"""Names of models, where their files are, and `load_model`."""

import dataclasses
import difflib
import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.sharding import Mesh
from jax.typing import DTypeLike

from headjax.checkpoint import (
    DamagedError,
    check_files,
    is_converted,
    read_config,
    read_parameters,
    read_provenance,
    was_damaged,
)
from headjax.errors import InputError
from headjax.model import Transformer, build_model


class Entry(NamedTuple):
    """A model of the Hugging Face Hub and the name that figures give it."""

    id: str
    display: str


_GPT2 = {"gpt2": "small", "gpt2-medium": "medium", "gpt2-large": "large", "gpt2-xl": "xl"}
_PYTHIA = ("14m", "70m", "160m", "410m", "1b", "1.4b", "2.8b", "6.9b", "12b")
_LLAMA = ("8B", "70B")

# Alias -> model. The smallest Pythia has no deduplicated twin; asking for it fails at the Hub.
MODELS: dict[str, Entry] = {
    **{alias: Entry(f"openai-community/{alias}", f"GPT-2 {size}") for alias, size in _GPT2.items()},
    "phi-2": Entry("microsoft/phi-2", "Phi-2"),
    **{f"pythia-{size}": Entry(f"EleutherAI/pythia-{size}", f"Pythia {size.upper()}") for size in _PYTHIA},
    **{
        f"pythia-{size}-deduped": Entry(f"EleutherAI/pythia-{size}-deduped", f"Pythia {size.upper()} deduped")
        for size in _PYTHIA
        if size != "14m"
    },
    **{
        f"llama-3.1-{size.lower()}{end.lower()}": Entry(
            f"meta-llama/Llama-3.1-{size}{end}", f"Llama-3.1 {size}{end.replace('-', ' ')}"
        )
        for size in _LLAMA
        for end in ("", "-Instruct")
    },
}

# The first of these that exists holds the weights, or names the files that do.
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
TOKENIZER_FILES = (
    "added_tokens.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
)
_SAFETENSORS = ("model.safetensors", "model.safetensors.index.json", "model-?????-of-?????.safetensors")
_TORCH = ("pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-?????-of-?????.bin")


class Source(NamedTuple):
    """A model's files on this machine: the Hub id (or the directory) and, from the Hub, the commit."""

    directory: Path
    id: str
    revision: str | None


def find_entry(name: str) -> Entry | None:
    """The model of an alias or of a Hub id, under its current id; None where it is neither."""
    lowered = name.lower().replace("/meta-llama-", "/llama-")
    by_id = {entry.id.lower(): entry for entry in MODELS.values()}
    if lowered in MODELS or lowered in by_id:
        return MODELS.get(lowered) or by_id[lowered]
    if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name):
        return Entry(name, name.split("/")[1])
    return None


def find_source(name: str | Path) -> Source:
    """A model's files: a directory as it is, anything else from the Hub by way of its cache.

    The cache's environment variables hold (HF_HOME, HF_HUB_OFFLINE, HF_TOKEN, HF_ENDPOINT, ...); only
    the files needed are fetched. Raises InputError for a name that is neither, for a directory
    without config.json, and where the Hub does not give the model.
    """
    directory = Path(name).expanduser()
    converted = is_converted(directory)
    if os.path.isdir(directory):
        if not converted and not (directory / "config.json").is_file():
            raise InputError(f"{directory}: a checkpoint directory holds config.json; this one does not")
        directory = directory.resolve()
        return Source(directory, str(directory), None)
    entry = find_entry(str(name))
    if entry is None:
        near = difflib.get_close_matches(str(name).lower(), MODELS, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"aliases are {', '.join(MODELS)}"
        raise InputError(f"a model is an alias, a Hugging Face id or a directory; got {str(name)!r}; {hint}")
    directory = _download(entry.id)
    return Source(directory, entry.id, directory.name)


def find_local(name: str | Path) -> Path | None:
    """The directory with a model's config.json, if this machine has it; never touches the network.

    Raises InputError as `find_source` does for a name that is no model's.
    """
    from huggingface_hub import errors, snapshot_download

    entry = None if os.path.isdir(Path(name).expanduser()) else find_entry(str(name))
    if entry is None:
        return find_source(name).directory
    try:
        directory = Path(snapshot_download(entry.id, allow_patterns=["config.json"], local_files_only=True))
    except (errors.LocalEntryNotFoundError, OSError, ValueError):
        return None
    return directory if (directory / "config.json").is_file() else None


def _download(model_id: str) -> Path:
    """The Hub's snapshot with config, tokenizer and weights; safetensors where there are any."""
    from huggingface_hub import errors, snapshot_download

    common = ["config.json", *TOKENIZER_FILES]
    try:
        for weights in (_SAFETENSORS, _TORCH):
            snapshot = Path(snapshot_download(model_id, allow_patterns=[*common, *weights]))
            if any((snapshot / file).is_file() for file in weights[:2]):
                return snapshot
    except errors.GatedRepoError as error:
        raise InputError(
            f"{model_id} is gated: accept its terms at https://huggingface.co/{model_id} and set HF_TOKEN"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise InputError(f"{model_id} is neither a directory nor a model that the Hub shows you") from error
    except errors.LocalEntryNotFoundError as error:
        raise InputError(
            f"{model_id} is not, or not whole, in the Hugging Face cache, and the Hub cannot be reached"
        ) from error
    except (OSError, ValueError) as error:  # the Hub's other answers, the disk, an id that it refuses
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"{model_id} cannot be fetched from the Hugging Face Hub: {reason}") from error
    raise InputError(f"{model_id} has none of {', '.join(WEIGHT_FILES)}, in the cache or on the Hub")


def display_name(name: str | Path) -> str:
    """What figures call a model: "GPT-2 xl", "Pythia 12B", "Llama-3.1 70B"; a directory's own name."""
    directory = Path(name).expanduser()
    if os.path.isdir(directory) and is_converted(directory):
        name = read_provenance(directory)["source"]
        directory = Path(name)
    entry = None if os.path.isdir(directory) else find_entry(str(name))
    return directory.resolve().name if entry is None else entry.display


# --- converted checkpoints ----------------------------------------------------------------------------


def ensure_converted(
    name: str | Path, checkpoint_dir: str | Path | None, convert: Callable[[str | Path, Path], Any]
) -> Path:
    """A model's converted checkpoint, made by `convert(name, directory)` where none is up to date.

    They are kept in `checkpoint_dir`, by default $HEADJAX_CACHE or ~/.cache/headjax/checkpoints; a damaged
    one is made again. A converted directory is its own. Raises InputError where that one is damaged.
    """
    source = find_source(name)
    if is_converted(source.directory):
        check_files(source.directory, TOKENIZER_FILES)
        return source.directory
    root = checkpoint_dir or os.environ.get("HEADJAX_CACHE") or "~/.cache/headjax/checkpoints"
    label = source.id.replace("/", "--")
    if source.revision is None:
        digest = hashlib.sha256(str(source.directory).encode()).hexdigest()
        label = f"{source.directory.name}-{digest[:8]}"
    target = Path(root).expanduser() / label
    if not _is_current(target, source.directory):
        convert(name, target)
    return target


def _is_current(converted: Path, source: Path) -> bool:
    """Whether the source still holds just the files that were converted, unchanged."""
    if not is_converted(converted):
        return False
    try:
        check_files(converted, TOKENIZER_FILES)
        if was_damaged(converted):
            raise DamagedError(f"{converted}: was found damaged when it was read")
        files = read_provenance(converted)["files"]
    except DamagedError as error:  # or of another format version
        print(f"{error}; converting it again", file=sys.stderr)
        return False
    weights = next((name for name in WEIGHT_FILES if (source / name).is_file()), None)
    tokenizer = {name for name in TOKENIZER_FILES if (source / name).is_file()}
    if not {"config.json", weights, *tokenizer} <= set(files):
        return False
    return all(_is_unchanged(source / name, recorded) for name, recorded in files.items())


def _is_unchanged(file: Path, recorded: dict[str, Any]) -> bool:
    if not file.is_file() or file.stat().st_size != recorded["size"]:
        return False
    if file.stat().st_mtime_ns == recorded["mtime_ns"]:
        return True
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest() == recorded["sha256"]


def _convert_in_subprocess(name: str | Path, target: Path) -> None:
    """The converter depends on this package, not the reverse; and needs no accelerator."""
    root = str(Path(__file__).resolve().parents[1])
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")])),
        "JAX_PLATFORMS": "cpu",
        "HF_HUB_OFFLINE": "1",  # the files are here by now
    }
    command = [sys.executable, "-m", "checkpoints_convert", f"--model={name}", f"--out={target}"]
    process = subprocess.run(command, env=environment, capture_output=True, text=True)
    if process.returncode == 2:
        raise InputError(process.stderr.strip().splitlines()[-1].removeprefix("error: "))
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{process.stderr}")


def load_model(
    name: str | Path,
    dtype: DTypeLike = jnp.float32,
    mesh: Mesh | None = None,
    precision: str = "highest",
    checkpoint_dir: str | Path | None = None,
    implementation: str | None = None,
) -> Transformer:
    """Loads a model by alias ("gpt2-xl"), Hugging Face id or directory (Hugging Face's or converted).

    A model is converted once, into `checkpoint_dir` (default: $HEADJAX_CACHE or
    ~/.cache/headjax/checkpoints), and read from there.

    Args:
      dtype: of the parameters in memory.
      mesh: devices to spread the parameters over (see `headjax.mesh`); JAX's default device where None.
      precision: of every matrix product; "highest" makes float32 mean float32 on every device.
      implementation: of the kernels (`kernels/<op>/api.py`); None: each op's default.

    Raises InputError where there is no such model or its files do not fit.
    """
    directory = ensure_converted(name, checkpoint_dir, _convert_in_subprocess)
    try:
        parameters = read_parameters(directory, dtype=dtype, mesh=mesh)
    except DamagedError:  # one of the cache is converted again, any other refused again
        directory = ensure_converted(name, checkpoint_dir, _convert_in_subprocess)
        parameters = read_parameters(directory, dtype=dtype, mesh=mesh)
    config = read_config(directory)
    config = dataclasses.replace(config, precision=precision, implementation=implementation)
    return build_model(config, parameters)
