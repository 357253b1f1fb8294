"""What makes going on after a kill safe: one run at a time, the same run, the same weights."""

import ast
import contextlib
import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax

from experiments.config import RunConfig, config_to_json
from experiments.stages import versions
from experiments.units import Units
from headjax.data.prompt_sets import read_prompts
from headjax.engine.mesh import is_first_process
from headjax.errors import InputError
from headjax.io import hold_lock, remove_temporary
from headjax.parameters.converted import DAMAGED
from headjax.study import GENERATORS, Prompts, Study

LOCK = ".headjax-run.lock"
PACKAGES = ("checkpoints_convert", "headjax", "kernels")
# What a run's numbers do not depend on: how figures and tables show them.
SHOWS = ("headjax/figures", "headjax/report")
# Fields that are not in the key, as dotted names: what is there is in it, or they change no grid.
NOT_IN_KEY = frozenset(
    {
        *("model", "out", "checkpoint_dir", "distributed", "compare", "report"),
        *("data.relations_dir", "data.relations", "data.prompts"),
        *("compute.mesh", "compute.parallel", "compute.device_memory", "compute.rate"),
    }
)


class FileState(NamedTuple):
    """What tells that a file changed, without reading it: its size and the time of its last change, in ns."""

    size: int
    mtime_ns: int


@contextlib.contextmanager
def one_run_in(out: Path) -> Iterator[None]:
    """Makes the directory, locks it and clears away half-written files of a run that was killed.

    The lock ends with the process, however that ends. Of several processes the first one holds it.

    Raises InputError where another run has it, or where it cannot be made.
    """
    if not is_first_process():
        yield
        return
    with contextlib.ExitStack() as stack:
        try:
            out.mkdir(parents=True, exist_ok=True)
            held = stack.enter_context(hold_lock(out / LOCK))
        except OSError as error:
            raise InputError(f"{out} must be writable; {error.strerror or error}") from error
        if not held:
            raise InputError(f"{out} must be one run's alone; another run is writing into it")
        for directory in (out, out / "figures", out / "circuits"):
            remove_temporary(directory)
        yield


@contextlib.contextmanager
def same_weights(directory: Path, files: dict[str, FileState], units: Units) -> Iterator[None]:
    """Makes sure that a checkpoint's files are at the end what they were when the run began: `files`.

    Raises InputError where they are not, in place of whatever that led to; none of the run's units is kept.
    """
    try:
        yield
    finally:
        now = list_files(directory)
        if now != files:
            units.discard()
            changed = min(name for name in files.keys() | now if files.get(name) != now.get(name))
            raise InputError(
                f"{directory} must stay as it is while a run reads it; {changed} changed: start again"
            )


def list_files(directory: Path) -> dict[str, FileState]:
    """Name -> state of every file below a directory."""
    found = {}
    for path, _, names in os.walk(directory):
        for file in (Path(path, name) for name in names if name != DAMAGED):
            with contextlib.suppress(FileNotFoundError):  # gone since: then it is not among them
                status = file.stat()
                found[str(file.relative_to(directory))] = FileState(status.st_size, status.st_mtime_ns)
    return found


def determinants(config: RunConfig, studies: Sequence[Study]) -> dict[str, object]:
    """Everything that the numbers depend on, as JSON: of files what they hold, not where they are."""
    values = config_to_json(config)
    fields = {
        name: {one: v for one, v in value.items() if f"{name}.{one}" not in NOT_IN_KEY}
        if name in ("data", "compute")
        else value
        for name, value in values.items()
        if name not in NOT_IN_KEY
    }
    # Analyses count with what they are called: grids bear their names.
    for study in studies[:1]:
        fields["analyses"] = {
            name: options
            | ({"prompts": _prompts(study, config.analyses[name].prompts)} if "prompts" in options else {})
            for name, options in values["analyses"].items()
        }
    return {
        "config": fields,
        "models": [
            {
                "name": study.display_name,
                # A streamed model's files are not read to the end: they are known by size, time and header.
                "files": {
                    name: file.get("sha256", file)
                    for name, file in study.parameters.provenance["files"].items()
                },
                "config": dataclasses.asdict(study.config),
                "relations": [
                    dataclasses.asdict(relation)
                    for relation in (*(p.relation for p in study.pairs), *(r for r, _ in study.skipped))
                ],
            }
            for study in studies
        ],
        "versions": {name: version for name, version in versions().items() if name != "matplotlib"},
        "code": code_digest(),
        "device": [jax.default_backend(), jax.devices()[0].device_kind],
    }


def _prompts(study: Study, prompts: Prompts) -> list[object]:
    """Sets of prompts by name, those of files and of users by what they hold."""
    known = {*GENERATORS, *(pairs.relation.id for pairs in study.pairs)}
    described: list[object] = []
    for name in study.prompt_sets(prompts):
        own = name if isinstance(name, tuple) else () if name in known else read_prompts(name)
        # Names of prompts from files are only where they were read.
        described.append([dataclasses.asdict(p) | {"name": ""} for p in own] or name)
    return described


def run_key(determined: dict[str, object]) -> str:
    """A short name for what determines a run's numbers."""
    return hashlib.sha256(json.dumps(determined, sort_keys=True).encode()).hexdigest()[:16]


def code_digest() -> str:
    """sha256 of our own code, as far as it determines numbers: neither comments nor what only shows them."""
    root = Path(__file__).resolve().parents[1]
    digest = hashlib.sha256()
    for package in PACKAGES:
        for file in sorted((root / package).rglob("*.py")):
            name = file.relative_to(root).as_posix()
            if not name.startswith(SHOWS):
                digest.update(f"{name}\n{_syntax(file.read_bytes())}\n".encode())
    return digest.hexdigest()


@functools.cache
def _syntax(source: bytes) -> str:
    """Digest of what a file says to Python; remembered, because many runs of one process ask for the same."""
    return hashlib.sha256(ast.dump(ast.parse(source)).encode()).hexdigest()
