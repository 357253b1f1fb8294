"""Names of models, where their files are, and `load_model`."""

import contextlib
import dataclasses
import difflib
import hashlib
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.sharding import Mesh
from jax.typing import DTypeLike

from headjax.errors import InputError, shown
from headjax.inputs import check_settings
from headjax.io import read_json
from headjax.model import Transformer, build_model
from headjax.parameters.converted import (
    DamagedError,
    check_files,
    is_converted,
    read_config,
    read_parameters,
    read_provenance,
    was_damaged,
)


class Entry(NamedTuple):
    """A model of the Hugging Face Hub and the name that figures give it.

    `old_id` is what the repository was called before, as a cache may still call it; `revision` is a branch,
    tag or commit other than the main one.
    """

    id: str
    display: str
    old_id: str | None = None
    revision: str | None = None


_GPT2 = {"gpt2": "small", "gpt2-medium": "medium", "gpt2-large": "large", "gpt2-xl": "xl"}
_PYTHIA = ("14m", "70m", "160m", "410m", "1b", "1.4b", "2.8b", "6.9b", "12b")
_LLAMA = ("8B", "70B")

# Alias -> model. The smallest Pythia has no deduplicated twin; asking for it fails at the Hub.
MODELS: dict[str, Entry] = {
    **{alias: Entry(f"openai-community/{alias}", f"GPT-2 {size}", alias) for alias, size in _GPT2.items()},
    "distilgpt2": Entry("distilbert/distilgpt2", "distilgpt2", "distilgpt2"),
    "phi-2": Entry("microsoft/phi-2", "Phi-2"),
    **{f"pythia-{size}": Entry(f"EleutherAI/pythia-{size}", f"Pythia {size.upper()}") for size in _PYTHIA},
    **{
        f"pythia-{size}-deduped": Entry(f"EleutherAI/pythia-{size}-deduped", f"Pythia {size.upper()} deduped")
        for size in _PYTHIA
        if size != "14m"
    },
    **{
        f"llama-3.1-{size.lower()}{end.lower()}": Entry(
            f"meta-llama/Llama-3.1-{size}{end}",
            f"Llama-3.1 {size}{end.replace('-', ' ')}",
            f"meta-llama/Meta-Llama-3.1-{size}{end}",
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
ADAPTER = "adapter_config.json"  # of PEFT; beside it may lie no weights but the adapter's
# Weights that are in a directory, but not in a format that is read here.
OTHER_FORMATS = {
    "*.gguf": "GGUF (llama.cpp's quantised format)",
    "consolidated*": "the format of Meta's own code",
    "*.pth": "a torch file of its author's own layout",
    "*.msgpack": "Flax",
    "*.h5": "TensorFlow",
    "*.onnx": "ONNX",
}
LFS_POINTER = b"version https://git-lfs"


class Source(NamedTuple):
    """A model's files on this machine: the Hub id (or the directory) and, from the Hub, the commit.

    Where a revision was asked for, it is part of the id: `EleutherAI/pythia-70m@step3000`.
    """

    directory: Path
    id: str
    revision: str | None


def find_entry(name: str) -> Entry | None:
    """The model of an alias or of a Hub id, under its current id; None where it is neither.

    Behind an `@` either may name a revision: `pythia-70m@step3000`.
    """
    name, at, revision = name.partition("@")
    if at and not re.fullmatch(r"\w[\w.-]*(/[\w.-]+)*", revision):
        return None
    entry = _find_named(name)
    if entry is None or not at:
        return entry
    return entry._replace(display=f"{entry.display}@{revision}", revision=revision)


def _find_named(name: str) -> Entry | None:
    lowered = name.lower()
    if lowered in MODELS:
        return MODELS[lowered]
    for entry in MODELS.values():
        if lowered in (entry.id.lower(), (entry.old_id or entry.id).lower()):
            return entry
    if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name):
        return Entry(name, name.split("/")[1])
    return None


def find_source(name: str | Path) -> Source:
    """A model's files: a directory as it is, anything else from the Hub by way of its cache.

    The cache's environment variables hold (HF_HOME, HF_HUB_OFFLINE, HF_TOKEN, HF_ENDPOINT, ...); only
    the files needed are fetched. Raises InputError for a name that is neither, for a directory that is no
    checkpoint (an adapter, pointers in place of files, another format), and where the Hub does not give
    the model.
    """
    directory = _as_directory(name)
    if directory is not None:
        if not is_converted(directory):
            _check_kind(directory)
            if not (directory / "config.json").is_file():
                raise InputError(f"{directory}: a checkpoint directory holds config.json; this one does not")
        directory = directory.resolve()
        return Source(directory, str(directory), None)
    entry = _require_entry(name)
    directory = _download(entry)
    _check_kind(directory)
    revision = "" if entry.revision is None else f"@{entry.revision}"
    return Source(directory, f"{entry.id}{revision}", directory.name)


def find_local(name: str | Path) -> Path | None:
    """The directory with a model's config.json, if this machine has it; never touches the network.

    Raises InputError as `find_source` does for a name that is no model's.
    """
    if _as_directory(name) is not None:
        return find_source(name).directory
    from huggingface_hub import errors, snapshot_download

    entry = _require_entry(name)
    for model_id in filter(None, (entry.id, entry.old_id)):
        try:
            directory = Path(
                snapshot_download(
                    model_id, revision=entry.revision, allow_patterns=["config.json"], local_files_only=True
                )
            )
        except (errors.LocalEntryNotFoundError, OSError, ValueError):
            continue
        if (directory / "config.json").is_file():
            return directory
    return None


def _as_directory(name: str | Path) -> Path | None:
    """The directory that a name stands for, if there is one."""
    try:
        directory = Path(name).expanduser()
        # Asked first, because it puts back a checkpoint whose replacing was killed half way.
        return directory if is_converted(directory) or directory.is_dir() else None
    except (OSError, ValueError, RuntimeError):  # too long, with a null character, an unknown user's home
        return None


def _require_entry(name: str | Path) -> Entry:
    entry = find_entry(str(name))
    if entry is None:
        near = difflib.get_close_matches(str(name)[:200].lower(), MODELS, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"aliases are {', '.join(MODELS)}"
        raise InputError(
            f"a model is an alias or Hugging Face id (behind an @, a revision), or a directory; got "
            f"{shown(str(name))}; {hint}"
        )
    return entry


def _check_kind(directory: Path) -> None:
    """Refuses what looks like a checkpoint and is none, each kind with its own sentence."""
    if (directory / ADAPTER).is_file():
        base = read_json(directory / ADAPTER).get("base_model_name_or_path")
        raise InputError(
            f"{directory}: a LoRA (PEFT) adapter of {shown(base)} is no whole model: merge it into that "
            f"(merge_and_unload) and save the result; where that is done already, remove {ADAPTER}"
        )
    patterns = ("config.json", *TOKENIZER_FILES, *_SAFETENSORS, *_TORCH)
    for file in sorted({file for pattern in patterns for file in directory.glob(pattern)}):
        if file.is_file():
            with open(file, "rb") as stream:
                if stream.read(len(LFS_POINTER)) == LFS_POINTER:
                    raise InputError(
                        f"{file}: is a pointer of git-lfs, not the file itself: fetch it with `git lfs pull`"
                    )
    if not any((directory / name).is_file() for name in WEIGHT_FILES):
        for pattern, kind in OTHER_FORMATS.items():
            for file in sorted(directory.glob(pattern))[:1]:
                raise InputError(
                    f"{directory}: weights must be in {' or '.join(WEIGHT_FILES[::2])}; {file.name} is "
                    f"{kind}: take the model in Hugging Face's format"
                )


def _download(entry: Entry) -> Path:
    """The Hub's snapshot with config, tokenizer and weights; safetensors where there are any.

    A cache may have it under the repository's old name alone.
    """
    from huggingface_hub import errors

    try:
        return _download_as(entry.id, entry.revision)
    except InputError as error:
        absent = isinstance(error.__cause__, errors.LocalEntryNotFoundError) or error.__cause__ is None
        if entry.old_id is not None and absent:
            with contextlib.suppress(InputError):
                return _download_as(entry.old_id, entry.revision, local_files_only=True)
        raise


def _download_as(model_id: str, revision: str | None, local_files_only: bool = False) -> Path:
    from huggingface_hub import errors, snapshot_download

    common = ["config.json", ADAPTER, *TOKENIZER_FILES]
    named = model_id if revision is None else f"{model_id}@{revision}"
    try:
        for weights in (_SAFETENSORS, _TORCH):
            snapshot = Path(
                snapshot_download(
                    model_id,
                    revision=revision,
                    allow_patterns=[*common, *weights],
                    local_files_only=local_files_only,
                )
            )
            if any((snapshot / file).is_file() for file in (*weights[:2], ADAPTER)):
                return snapshot
    except errors.GatedRepoError as error:
        raise InputError(
            f"{model_id} is gated: accept its terms at https://huggingface.co/{model_id} and set HF_TOKEN"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise InputError(f"{model_id} has no revision {revision!r} on the Hub") from error
    except errors.RepositoryNotFoundError as error:
        raise InputError(f"{model_id} is neither a directory nor a model that the Hub shows you") from error
    except errors.LocalEntryNotFoundError as error:
        raise InputError(
            f"{named} is not, or not whole, in the Hugging Face cache, and the Hub cannot be reached"
        ) from error
    except (OSError, ValueError) as error:  # the Hub's other answers, the disk, an id that it refuses
        raise InputError(f"{named} cannot be fetched from the Hugging Face Hub: {shown(error)}") from error
    raise InputError(f"{named} has none of {', '.join(WEIGHT_FILES)}, in the cache or on the Hub")


def display_name(name: str | Path) -> str:
    """What figures call a model: "GPT-2 xl", "Pythia 12B", "Llama-3.1 70B"; a directory's own name."""
    directory = _as_directory(name)
    if directory is not None and is_converted(directory):
        name = read_provenance(directory)["source"]
        directory = _as_directory(name)
    if directory is not None:
        return directory.resolve().name
    entry = find_entry(str(name))
    return Path(name).name if entry is None else entry.display


def display_names(names: Sequence[str | Path]) -> list[str]:
    """What figures call the models of one run, each by another name.

    Directories of one name are told apart by as many of their parents as it takes: "first/model" and
    "second/model". Raises InputError where a model is named twice.
    """
    found = [display_name(name) for name in names]
    directories = [_as_directory(name) for name in names]
    parts = [() if directory is None else directory.resolve().parts for directory in directories]
    for n_parts in range(2, max(map(len, parts), default=0) + 2):
        counts = Counter(name.casefold() for name in found)  # as file systems may
        if len(counts) == len(found):
            return found
        found = [
            "/".join(path[-n_parts:]) if path and counts[name.casefold()] > 1 else name
            for name, path in zip(found, parts, strict=True)
        ]
    if len({name.casefold() for name in found}) < len(found):
        raise InputError(f"each model of a run must be named once; got {shown(', '.join(map(str, names)))}")
    return found


# --- converted checkpoints ----------------------------------------------------------------------------


def ensure_converted(
    name: str | Path,
    checkpoint_dir: str | Path | None,
    convert: Callable[..., Any],
    ignore_fields: Collection[str] = (),
) -> Path:
    """A model's converted checkpoint, made by `convert(name, directory, ignore_fields=...)` where none is up
    to date.

    They are kept in `checkpoint_dir`, by default $HEADJAX_CACHE or ~/.cache/headjax/checkpoints; a damaged
    one is made again, and one made with ignored fields has its own place. A converted directory is its own;
    raises InputError where that one is damaged, or was made without ignoring what is to be ignored now.
    """
    source = find_source(name)
    ignored = ignored_fields(source.directory, ignore_fields)
    if is_converted(source.directory):
        check_files(source.directory, TOKENIZER_FILES)
        made = read_provenance(source.directory).get("ignored_fields", [])
        if not set(ignored) <= set(made):
            raise InputError(
                f"{source.directory}: was converted with ignore_fields={','.join(made)}, and must be "
                f"converted again to ignore others; got {','.join(ignored)}"
            )
        return source.directory
    root = checkpoint_dir or os.environ.get("HEADJAX_CACHE") or "~/.cache/headjax/checkpoints"
    label = source.id.replace("/", "--")
    if source.revision is None:
        digest = hashlib.sha256(str(source.directory).encode()).hexdigest()
        label = f"{source.directory.name}-{digest[:8]}"
    if ignored:
        label = f"{label}-ignoring-{hashlib.sha256(','.join(ignored).encode()).hexdigest()[:8]}"
    target = Path(root).expanduser() / label
    if not _is_current(target, source.directory, ignored):
        convert(name, target, ignore_fields=ignored)
    return target


def ignored_fields(directory: Path, ignore_fields: Collection[str]) -> list[str]:
    """Which of the names a directory's config.json has; a field within another is `rope_scaling.factor`."""
    if not ignore_fields or not (directory / "config.json").is_file():
        return []
    values = read_json(directory / "config.json")
    objects = {name: value for name, value in values.items() if isinstance(value, dict)}
    inner = (f"{name}.{field}" for name, value in objects.items() for field in value)
    return sorted({*values, *inner} & set(ignore_fields))


def _is_current(converted: Path, source: Path, ignored: list[str]) -> bool:
    """Whether the source still holds just the files that were converted, unchanged, read in the same way."""
    if not is_converted(converted):
        return False
    try:
        check_files(converted, TOKENIZER_FILES)
        if was_damaged(converted):
            raise DamagedError(f"{converted}: was found damaged when it was read")
        provenance = read_provenance(converted)
        if provenance.get("ignored_fields", []) != ignored:
            return False
        files = provenance["files"]
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


def _convert_in_subprocess(name: str | Path, target: Path, ignore_fields: Collection[str]) -> None:
    """The converter depends on this package, not the reverse; and needs no accelerator."""
    root = str(Path(__file__).resolve().parents[1])
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")])),
        "JAX_PLATFORMS": "cpu",
        "HF_HUB_OFFLINE": "1",  # the files are here by now
    }
    command = [sys.executable, "-m", "checkpoints_convert", f"--model={name}", f"--out={target}"]
    command += [f"--ignore_fields={','.join(ignore_fields)}"] if ignore_fields else []
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
    ignore_fields: Collection[str] = (),
) -> Transformer:
    """Loads a model by alias ("gpt2-xl"), Hugging Face id or directory (Hugging Face's or converted).

    Behind an `@`, alias or id may name a revision: "pythia-70m@step3000".

    A model is converted once, into `checkpoint_dir` (default: $HEADJAX_CACHE or
    ~/.cache/headjax/checkpoints), and read from there.

    Args:
      dtype: of the parameters in memory.
      mesh: devices to spread the parameters over (`headjax.engine.mesh`); JAX's default device where None.
      precision: of every matrix product; "highest" makes float32 mean float32 on every device.
      implementation: of the kernels (`kernels/<op>/api.py`); None: each op's default.
      ignore_fields: of config.json, to treat as absent where the converter does not understand them and you
        know that they change nothing.

    Raises InputError where there is no such model or its files do not fit, and for unknown settings.
    """
    check_settings(dtype, precision, implementation)
    directory = ensure_converted(name, checkpoint_dir, _convert_in_subprocess, ignore_fields)
    try:
        parameters = read_parameters(directory, dtype=dtype, mesh=mesh)
    except DamagedError:  # one of the cache is converted again, any other refused again
        directory = ensure_converted(name, checkpoint_dir, _convert_in_subprocess, ignore_fields)
        parameters = read_parameters(directory, dtype=dtype, mesh=mesh)
    config = read_config(directory)
    config = dataclasses.replace(config, precision=precision, implementation=implementation)
    return build_model(config, parameters)
