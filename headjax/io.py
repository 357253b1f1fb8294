"""Files: JSON is read in one way, with every fault named; results are written whole or not at all."""

import csv
import hashlib
import json
import os
import re
import secrets
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import import_module
from io import StringIO
from pathlib import Path
from types import ModuleType
from typing import IO, Any

from filelock import FileLock, Timeout

from headjax.errors import InputError, shown

# No file of ours or of a checkpoint comes near it, a tokenizer.json of 256,000 tokens has 35 MB.
MAX_JSON_BYTES = 200_000_000
MAX_NAME_BYTES = 200  # of a file's name, which with its endings must not pass the 255 of file systems


def import_extra(name: str, rule: str = "") -> ModuleType:
    """A package that few need. Raises InputError, with a rule or how to install it, where it is not there."""
    try:
        return import_module(name)
    except ImportError as error:
        usual = f"this needs the package {name}; it is not installed (pip install {name})"
        raise InputError(rule or usual) from error


def read_json(path: str | Path, max_bytes: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """A file that must hold one JSON object. Raises InputError naming the file for anything else."""
    return json_object(parse_json(read_bytes(path, max_bytes), str(path)), str(path))


def read_bytes(path: str | Path, max_bytes: int = MAX_JSON_BYTES) -> bytes:
    """A whole file. Raises InputError where it cannot be read, or is too large to be what it should be."""
    try:
        with open(path, "rb") as file:
            content = file.read(max_bytes + 1)
    except (OSError, ValueError) as error:  # ValueError: a name with a null character
        raise InputError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if len(content) > max_bytes:
        raise InputError(f"{path}: must have at most {max_bytes:,} bytes; it has more")
    return content


def read_text(path: str | Path, max_bytes: int = MAX_JSON_BYTES) -> str:
    """A whole file of UTF-8 text, without its byte order mark. Raises InputError for any other file."""
    return _decode(read_bytes(path, max_bytes), str(path))


def _decode(content: bytes, name: str) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{name}: must be UTF-8 text; byte {error.start} is not") from error


def parse_json(content: bytes | str, name: str) -> Any:
    """The value that a JSON text stands for; `name` is what an error calls the text.

    Stricter than `json.loads`, because what it lets pass becomes a wrong number or a traceback later on.
    Raises InputError for text that is not UTF-8 (a byte order mark may come first), not JSON, nested too
    deep or with numbers too long to read, for an object that names a field twice, for NaN and infinities,
    and for half of a surrogate pair, which no file can hold.
    """
    text = _decode(content, name) if isinstance(content, bytes) else content
    try:
        value = json.loads(text, object_pairs_hook=_unique_fields, parse_constant=_refuse_constant)
        # An escape such as \ud800 is the only way in for half of a surrogate pair.
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{name}: must hold whole characters; it holds half of a surrogate pair") from error
    except InputError as error:
        raise InputError(f"{name}: {error}") from error
    except (ValueError, RecursionError) as error:
        reason = "nested too deep" if isinstance(error, RecursionError) else shown(error)
        raise InputError(f"{name}: not valid JSON: {reason}") from error
    return value


def _unique_fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(fields := dict(pairs)) < len(pairs):
        doubled = [field for field, count in Counter(field for field, _ in pairs).items() if count > 1]
        raise InputError(f"an object names each field once; twice: {shown(', '.join(doubled))}")
    return fields


def _refuse_constant(constant: str) -> None:
    raise InputError(f"JSON numbers are finite; got {constant}")


def json_object(value: Any, name: str) -> dict[str, Any]:
    """The value itself, which must be a JSON object."""
    if not isinstance(value, dict):
        raise InputError(f"{name}: must hold a JSON object; got {shown(value)}")
    return value


def read_table(path: str | Path, columns: Mapping[str, Callable[[str], Any]]) -> list[list[Any]]:
    """The rows of a csv file below its head, which names these columns; each value read by its column's type.

    Raises InputError naming the line of a row that does not fit.
    """
    try:
        rows = [*csv.reader(StringIO(read_text(path), newline=""), strict=True)]
    except csv.Error as error:
        raise InputError(f"{path}: not valid csv: {shown(error)}") from error
    if not rows or rows[0] != list(columns):
        raise InputError(
            f"{path}: the columns must be {', '.join(columns)}; got {shown(rows[0] if rows else '')}"
        )
    table = []
    for number, row in enumerate(rows[1:], start=2):
        try:
            table.append([read(text) for read, text in zip(columns.values(), row, strict=True)])
        except ValueError as error:  # too few or too many, no number, or what another reader refuses
            raise InputError(f"{path}: row {number} must fit the columns; {shown(error)}") from error
    return table


@contextmanager
def atomic_write(path: str | Path, mode: str = "w") -> Iterator[IO]:
    """Opens a file that takes its name only when its last byte is written (mode "w" or "wb").

    The bytes go to a temporary file in the same directory, which is renamed on success and removed on
    any failure, so a reader sees the old file or the new one and a killed run leaves no half of it.
    Missing directories are made. Raises InputError where the system refuses: full disk, no permission.
    """
    path = Path(path)
    temporary = path.with_name(f".headjax-{os.getpid()}-{secrets.token_hex(4)}.tmp")
    text = {} if "b" in mode else {"encoding": "utf-8", "newline": ""}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, mode, **text) as file:
                yield file
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"{path} must be writable; {error.strerror or error}") from error


def remove_temporary(directory: Path) -> None:
    """Removes what `atomic_write` left in a directory when it was killed; nothing else looks like that.

    Only for who holds the lock under which the directory is written: another's file may be alive.
    """
    for file in directory.glob(".headjax-*.tmp"):
        if re.fullmatch(r"\.headjax-\d+-[0-9a-f]{8}\.tmp", file.name):
            file.unlink(missing_ok=True)


@contextmanager
def hold_lock(path: Path, timeout: float = 0.0) -> Iterator[bool]:
    """Whether this process is now the only one that holds the lock of that name, until the block ends.

    The lock is of the operating system: it ends with the process, however that ends. The file is gone
    afterwards. Raises OSError where the file cannot be made.

    Args:
      timeout: seconds to wait for another holder.
    """
    lock = FileLock(path, timeout=timeout)
    try:
        lock.acquire()
        # Its last holder may have removed the file between our opening and our locking it.
        held = path.exists()
    except Timeout:
        held = False
    try:
        yield held
    finally:
        if held:
            with suppress(OSError):  # Windows removes it as it is let go
                path.unlink()
        lock.release()


def safe_name(*words: str) -> str:
    """Words joined into a file's name; see `check_file_names`."""
    name = "_".join("".join(c if c.isalnum() or c in "._-" else "_" for c in word) for word in words)
    if len(encoded := name.encode()) <= MAX_NAME_BYTES:
        return name
    digest = hashlib.sha256(encoded).hexdigest()[:16]  # what is cut off still tells names apart
    return f"{encoded[: MAX_NAME_BYTES - 17].decode(errors='ignore')}_{digest}"


def check_file_names(names: Iterable[str | tuple[str, ...]], what: str) -> None:
    """Raises InputError where two names (or tuples of words) would name one file, and overwrite each other:
    they are the same, or differ in punctuation alone, or in case, which some file systems do not tell apart.

    Args:
      what: what is named, for the message.
    """
    seen: dict[str, str] = {}
    for name in names:
        words = (name,) if isinstance(name, str) else name
        file, text = safe_name(*words).casefold(), ", ".join(words)
        if file in seen:
            rule = f"{what} name files, so they differ in more than punctuation and case"
            raise InputError(f"{rule}; got {shown(seen[file])} and {shown(text)}")
        seen[file] = text
