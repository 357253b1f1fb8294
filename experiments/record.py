"""run.json, the record of a finished run: what determined its numbers, what it cost, and its files.

Every file is listed with its digest, and the record holds its own: what draws a run again reads the files of
this run, whole, and no others that lie beside them.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from headjax.errors import InputError
from headjax.io import atomic_write, read_json

RECORD = "run.json"


def digests(out: Path, files: Iterable[Path]) -> dict[str, str | None]:
    """Name in the run's directory -> sha256, of files in it."""
    return {file.relative_to(out).as_posix(): _digest(file) for file in files}


def write_record(out: Path, described: Mapping[str, Any], files: Mapping[str, str | None]) -> Path:
    """Writes what describes a run, with the `digests` of its files, into its directory."""
    record = _finite({**described, "files": files})
    with atomic_write(out / RECORD) as file:
        json.dump(record | {"sha256": _digest_of(record)}, file, indent=2)
    return out / RECORD


def read_record(out: Path) -> dict[str, Any]:
    """The record of a finished run. Raises InputError where there is none, and for a damaged one."""
    try:
        record = read_json(out / RECORD)
    except InputError as error:
        raise InputError(f"{out} must be the directory of a finished run; {error}") from error
    rest = {name: value for name, value in record.items() if name != "sha256"}
    if record.get("sha256") != _digest_of(rest):
        raise InputError(f"{out / RECORD} must be as a run of this version wrote it; it was changed")
    return rest


def own_file(out: Path, record: Mapping[str, Any], name: str) -> Path | None:
    """A file of the run, or None where it has none of this name.

    Raises InputError for one that is not what the run wrote: damaged, or another run's.
    """
    if name not in record["files"]:
        return None
    if _digest(out / name) != record["files"][name]:
        raise InputError(
            f"{out / name} must be the file that the run of {RECORD} wrote; it is missing or another"
        )
    return out / name


def remove_stale(out: Path, files: Iterable[Path]) -> list[Path]:
    """Removes what an earlier run in this directory wrote and this one, which wrote `files`, did not.

    Files that no record lists, or that somebody changed since, are left alone. Gives those removed.
    """
    try:
        earlier = read_record(out)["files"]
    except InputError:  # no earlier run, or one of another version
        return []
    kept, removed = set(files), []
    for name, digest in earlier.items():
        path = out / name
        inside = not PurePosixPath(name).is_absolute() and ".." not in PurePosixPath(name).parts
        if inside and path not in kept and _digest(path) == digest:
            path.unlink()
            removed.append(path)
    return removed


def _digest(file: Path) -> str | None:
    """sha256 of a file, None where there is none that can be read."""
    try:
        with open(file, "rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError:
        return None


def _digest_of(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _finite(value: Any) -> Any:
    """The value as JSON holds it: null for numbers that are none."""
    if isinstance(value, Mapping):
        return {str(name): _finite(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
