"""Ways to damage a file: small functions from bytes to bytes that draw from a seeded generator.

`ANY` damages bytes of any kind, `JSON` the value that a text stands for, so that what comes out is JSON still
(or nearly): a fault that gets past the parser and must be noticed by what reads the fields.
"""

import json
import random
from collections.abc import Callable
from typing import Any

Damage = Callable[[bytes, random.Random], bytes]


# --- of any bytes -------------------------------------------------------------------------------------


def flip(content: bytes, rng: random.Random) -> bytes:
    """Some bits turned over."""
    damaged = bytearray(content or b"\0")
    for _ in range(rng.choice((1, 1, 1, 4))):
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def overwrite(content: bytes, rng: random.Random) -> bytes:
    """A digit, a letter or a mark in place of another byte."""
    at = rng.randrange(len(content) or 1)
    return content[:at] + rng.choice(b'0123456789aZ-.{}[],:"\\ ').to_bytes(1, "little") + content[at + 1 :]


def truncate(content: bytes, rng: random.Random) -> bytes:
    """The end is missing."""
    return content[: rng.randrange(len(content) or 1)]


def insert(content: bytes, rng: random.Random) -> bytes:
    """Bytes that do not belong there."""
    at = rng.randint(0, len(content))
    return content[:at] + rng.choice((b"\0", b"\xff", b"\n", b"1", b'"', rng.randbytes(7))) + content[at:]


def remove(content: bytes, rng: random.Random) -> bytes:
    """A stretch is missing."""
    at = rng.randint(0, len(content))
    return content[:at] + content[at + rng.randint(1, 20) :]


def repeat(content: bytes, rng: random.Random) -> bytes:
    """A stretch comes twice."""
    start = rng.randint(0, len(content))
    end = start + rng.randint(1, 200)
    return content[:end] + content[start:]


def exchange(content: bytes, rng: random.Random) -> bytes:
    """Two stretches have changed places."""
    a, b, c = sorted(rng.randint(0, len(content)) for _ in range(3))
    return content[:a] + content[b:c] + content[a:b] + content[c:]


def replace_all(_content: bytes, rng: random.Random) -> bytes:
    """Something else altogether."""
    return rng.choice(
        (
            *(b"", b"{}", b"[]", b"null", b"0", b'"text"', b"\xef\xbb\xbf{}", b"NaN", b"\0" * 64),
            *(b"[" * 100_000, b'{"a":' * 100_000, b"9" * 10_000, "{'é': 1}".encode("latin-1")),
            *(b"version https://git-lfs.github.com/spec/v1\n", b"<!DOCTYPE html>", "{}".encode("utf-16")),
        )
    )


ANY: tuple[Damage, ...] = (flip, overwrite, truncate, insert, remove, repeat, exchange, replace_all)


# --- of JSON ------------------------------------------------------------------------------------------


ODD_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 7, 0.0, -0.5, 1e308, "", "x", "true", "1", " ", [], {}, [1], {"a": 1}),
    *(2**31, 2**63, 2**64, 10**400, -(2**63), 2_000_000_000, float("nan"), float("inf"), 1e-320, "\0"),
    *("\ud800", "é" * 300, "a" * 5000, [[[[]]]], ["x", 1, None], "../../etc/passwd", "C:\\x", "<script>"),
)


def _places(value: Any) -> list[tuple[Any, Any]]:
    """(container, key) of everything inside a value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found = []
    for key, inner in items:
        found += [(value, key), *_places(inner)]
    return found


def _edit(change: Callable[[Any, Any, random.Random], None]) -> Damage:
    """A change of one place of the value that the text stands for."""

    def damage(content: bytes, rng: random.Random) -> bytes:
        value = json.loads(content)
        places = _places(value)
        if places:
            change(*rng.choice(places), rng)
        return json.dumps(value).encode()

    damage.__name__ = change.__name__
    damage.__doc__ = change.__doc__
    return damage


@_edit
def odd_value(container: Any, key: Any, rng: random.Random) -> None:
    """A value of another type or size."""
    container[key] = rng.choice(ODD_VALUES)


@_edit
def other_number(container: Any, key: Any, rng: random.Random) -> None:
    """A number near the right one, or a text that looks like it."""
    if isinstance(container[key], int | float) and not isinstance(container[key], bool):
        changes = (lambda n: n + 1, lambda n: n - 1, lambda n: -n, lambda n: 2 * n, float, str)
        container[key] = rng.choice(changes)(container[key])
    else:
        container[key] = [container[key]]


@_edit
def missing_field(container: Any, key: Any, _rng: random.Random) -> None:
    """A field or an entry is not there."""
    del container[key]


@_edit
def renamed_field(container: Any, key: Any, rng: random.Random) -> None:
    """A field under another name, or an entry twice."""
    if isinstance(container, dict):
        container[rng.choice((key + "s", key.upper(), "", "\ud800", "é"))] = container.pop(key)
    else:
        container.append(container[key])


@_edit
def exchanged_values(container: Any, key: Any, rng: random.Random) -> None:
    """Two values have changed places."""
    other = rng.choice(list(container) if isinstance(container, dict) else range(len(container)))
    container[key], container[other] = container[other], container[key]


@_edit
def deep_value(container: Any, key: Any, _rng: random.Random) -> None:
    """A value nested deeper than anything is."""
    for _ in range(150):
        container[key] = [container[key]]


def doubled_field(content: bytes, rng: random.Random) -> bytes:
    """An object names a field twice, with different values."""
    value = json.loads(content)
    fields = [container for container, _ in _places(value) if isinstance(container, dict)]
    if not fields:
        return content
    container = rng.choice(fields)
    name = rng.choice(list(container))
    container["\x00mark"] = container[name]
    mark, twin = json.dumps("\x00mark"), json.dumps(name)
    text = json.dumps(value).replace(mark, twin)
    return text.encode()


JSON: tuple[Damage, ...] = (
    *(odd_value, odd_value, other_number, missing_field, renamed_field, exchanged_values, deep_value),
    doubled_field,
)


def damage_bytes(content: bytes, rng: random.Random) -> bytes:
    """Damaged in one way, now and then in two; never what it was."""
    return _damaged(content, rng, ANY)


def damage_json(content: bytes, rng: random.Random) -> bytes:
    """JSON text, damaged as text or as the value that it stands for."""
    return _damaged(content, rng, JSON if rng.random() < 0.7 else ANY)


def _damaged(content: bytes, rng: random.Random, ways: tuple[Damage, ...]) -> bytes:
    damaged = content
    for _ in range(20):
        damaged = rng.choice(ways)(content, rng)
        if rng.random() < 0.1:
            damaged = rng.choice(ANY)(damaged, rng)
        if damaged != content:
            break
    return damaged
