"""Names of models, and where their files are."""

import contextlib
import difflib
import importlib.metadata
import os
import platform
import re
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import NamedTuple

from headjax.errors import InputError, shown
from headjax.io import read_json
from headjax.parameters.converted import is_converted, read_provenance


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


def _series(
    repository: str, sizes: tuple[str, ...], ends: tuple[str, ...] = ("",), removed: str = ""
) -> dict[str, Entry]:
    """Aliases of models that differ in size and in how they were finished.

    `repository` is all that stands before the size: of "Qwen/Qwen2.5" one is qwen2.5-7b-instruct, the model
    Qwen/Qwen2.5-7B-Instruct, which figures call "Qwen2.5 7B Instruct". `removed` begins names, and alias and
    display go without it.
    """
    name = repository.split("/")[1].removeprefix(removed)
    return {
        f"{name}-{size}{end}".lower(): Entry(
            f"{repository}-{size}{end}", f"{name} {size}{end.replace('-', ' ')}"
        )
        for size in sizes
        for end in ends
    }


_TUNED = ("", "-Instruct")
_MISTRAL = {
    "mistral-7b-v0.1": "7B-v0.1",
    "mistral-7b-v0.3": "7B-v0.3",
    "mistral-7b-instruct-v0.1": "7B-Instruct-v0.1",
    "mistral-7b-instruct-v0.2": "7B-Instruct-v0.2",
    "mistral-7b-instruct-v0.3": "7B-Instruct-v0.3",
    "mistral-nemo": "Nemo-Base-2407",
    "mistral-nemo-instruct": "Nemo-Instruct-2407",
    "mistral-small": "Small-24B-Base-2501",
    "mistral-small-instruct": "Small-24B-Instruct-2501",
}

_GEMMA_TUNED = {"": "", "-it": " IT"}

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
        for end in _TUNED
    },
    **_series("meta-llama/Meta-Llama-3", _LLAMA, _TUNED, removed="Meta-"),
    **_series("meta-llama/Llama-3.2", ("1B", "3B"), _TUNED),
    **_series("meta-llama/Llama-3.3", ("70B",), ("-Instruct",)),
    **{
        f"llama-2-{size}{end}": Entry(f"meta-llama/Llama-2-{size}{end}-hf", f"Llama-2 {size.upper()}{of}")
        for size in ("7b", "13b", "70b")
        for end, of in (("", ""), ("-chat", " Chat"))
    },
    **_series("deepseek-ai/DeepSeek-R1-Distill-Llama", _LLAMA, removed="DeepSeek-"),
    **_series("deepseek-ai/DeepSeek-R1-Distill-Qwen", ("1.5B", "7B", "14B", "32B"), removed="DeepSeek-"),
    **_series("HuggingFaceTB/SmolLM2", ("135M", "360M", "1.7B"), _TUNED),
    "tinyllama-1.1b": Entry("TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T", "TinyLlama 1.1B"),
    "tinyllama-1.1b-chat": Entry("TinyLlama/TinyLlama-1.1B-Chat-v1.0", "TinyLlama 1.1B Chat"),
    **_series("Qwen/Qwen2", ("0.5B", "1.5B", "7B", "72B"), _TUNED),
    **_series("Qwen/Qwen2.5", ("0.5B", "1.5B", "3B", "7B", "14B", "32B", "72B"), _TUNED),
    **_series("Qwen/Qwen3", ("0.6B", "1.7B", "4B", "8B", "14B"), ("", "-Base")),
    **_series("Qwen/Qwen3", ("32B",)),
    **{
        alias: Entry(f"mistralai/Mistral-{name}", f"Mistral {name.replace('-', ' ')}")
        for alias, name in _MISTRAL.items()
    },
    **{
        f"gemma-{size}{end}": Entry(f"google/gemma-{size}{end}", f"Gemma {size.upper()}{of}")
        for size in ("2b", "7b")
        for end, of in _GEMMA_TUNED.items()
    },
    **{
        f"gemma-2-{size}{end}": Entry(f"google/gemma-2-{size}{end}", f"Gemma 2 {size.upper()}{of}")
        for size in ("2b", "9b", "27b")
        for end, of in _GEMMA_TUNED.items()
    },
    **{
        f"gemma-3-{size}{end}": Entry(
            f"google/gemma-3-{size}{end or ('-pt' if size != '270m' else '')}", f"Gemma 3 {size.upper()}{of}"
        )
        for size in ("270m", "1b", "4b", "12b", "27b")
        for end, of in _GEMMA_TUNED.items()
    },
    **{
        f"olmo-2-{size.lower()}{end.lower()}": Entry(
            f"allenai/OLMo-2-{made}-{size}{end}", f"OLMo 2 {size}{end.replace('-', ' ')}"
        )
        for size, made in {"1B": "0425", "7B": "1124", "13B": "1124", "32B": "0325"}.items()
        for end in _TUNED
    },
    "olmo-3-7b": Entry("allenai/Olmo-3-1025-7B", "OLMo 3 7B"),
    "olmo-3-32b": Entry("allenai/Olmo-3-1125-32B", "OLMo 3 32B"),
    "phi-3-mini-4k": Entry("microsoft/Phi-3-mini-4k-instruct", "Phi-3 mini"),
    "gpt-j-6b": Entry("EleutherAI/gpt-j-6b", "GPT-J 6B"),
    **{
        f"gpt-neo-{size.lower()}": Entry(f"EleutherAI/gpt-neo-{size}", f"GPT-Neo {size.upper()}")
        for size in ("125m", "1.3B", "2.7B")
    },
    **{
        f"opt-{size}": Entry(f"facebook/opt-{size}", f"OPT {size.upper()}")
        for size in ("125m", "1.3b", "2.7b", "6.7b", "13b", "30b")
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


# Models that a package beside this one brings along or builds: name -> a function of the directory that it
# may build in and a seed, which gives the model's directory. `resolve` looks for them under the entry points
# "headjax.models" too.
BESIDE: dict[str, Callable[[Path, int], Path]] = {}


def cache_directory(checkpoint_dir: str | Path | None = None) -> Path:
    """Where converted checkpoints are kept: as given, $HEADJAX_CACHE, or ~/.cache/headjax/checkpoints."""
    return Path(
        checkpoint_dir or os.environ.get("HEADJAX_CACHE") or "~/.cache/headjax/checkpoints"
    ).expanduser()


def programs_directory(checkpoint_dir: str | Path | None = None) -> Path:
    """Where compiled programs are kept: beside the converted checkpoints, a folder for every machine."""
    return cache_directory(checkpoint_dir).parent / "programs" / (platform.node() or "machine")


def resolve(name: str | Path, checkpoint_dir: str | Path | None = None, seed: int = 0) -> str | Path:
    """The directory of a model that comes along or is built on the spot ("trained", "planted"); any other
    name as it is."""
    build = BESIDE.get(str(name))
    if build is None and Path(name).name == str(name):  # no path
        # What stands behind "trained" knows "trained-phi" too, and says so in BESIDE when it is loaded.
        family = str(name).partition("-")[0]
        for entry in importlib.metadata.entry_points(group="headjax.models", name=family):
            loaded = entry.load()
            build = BESIDE.get(str(name), loaded if entry.name == str(name) else None)
    return name if build is None else build(cache_directory(checkpoint_dir), seed)


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


def find_source(name: str | Path | Source) -> Source:
    """A model's files: a directory as it is, anything else from the Hub by way of its cache.

    The cache's environment variables hold (HF_HOME, HF_HUB_OFFLINE, HF_TOKEN, HF_ENDPOINT, ...); only
    the files needed are fetched. Raises InputError for a name that is neither, for a directory that is no
    checkpoint (an adapter, pointers in place of files, another format), and where the Hub does not give
    the model.
    """
    if isinstance(name, Source):
        return name
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
        hint = f"did you mean {' or '.join(near)}?" if near else "`headjax list models` lists the aliases"
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
    """What figures call a model: "GPT-2 xl", "Pythia 12B", "Llama-3.1 70B"; a directory's own name.

    A directory of the Hub's cache goes by the model that it is a snapshot of.
    """
    directory = _as_directory(name)
    if directory is not None and is_converted(directory):
        name = read_provenance(directory)["source"]
        directory = _as_directory(name)
    entry = find_entry(str(name)) if directory is None else _snapshot_entry(directory)
    if entry is not None:
        return entry.display
    return Path(name).name if directory is None else directory.resolve().name


def _snapshot_entry(directory: Path) -> Entry | None:
    """The model of a directory in the Hub's cache, `models--ORG--NAME/snapshots/COMMIT`; None of others."""
    parts = Path(os.path.abspath(directory)).parts[-3:]
    if len(parts) < 3 or parts[1] != "snapshots" or not parts[0].startswith("models--"):
        return None
    return find_entry("/".join(parts[0].split("--")[1:]))


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


def ignored_fields(directory: Path, ignore_fields: Collection[str]) -> list[str]:
    """Which of the names a directory's config.json has; a field within another is `rope_scaling.factor`."""
    if not ignore_fields or not (directory / "config.json").is_file():
        return []
    values = read_json(directory / "config.json")
    objects = {name: value for name, value in values.items() if isinstance(value, dict)}
    inner = (f"{name}.{field}" for name, value in objects.items() for field in value)
    return sorted({*values, *inner} & set(ignore_fields))
