"""Options: frozen dataclasses whose fields say what they may be and hold themselves to it.

    @dataclass(frozen=True, kw_only=True)
    class Data(Options):
        min_pairs: int = option(30, least=1)

A value of another type, outside its range or not among its choices raises InputError, from wherever it comes.
"""

import ast
import dataclasses
import inspect
import re
import types
import typing
from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import Any, ClassVar

from headjax.errors import InputError, shown
from headjax.io import parse_json

MOST = 2**31 - 1
Words = tuple[str, ...]


def option(
    default: Any,
    *,
    choices: Sequence[str] = (),
    least: float | int | None = None,
    most: float | int = MOST,
    some: bool = False,
) -> Any:
    """A field with a rule beyond its type: one of `choices`, a number in a range, `some` (no empty list)."""
    rule = {"choices": tuple(choices), "least": least, "most": most, "some": some}
    return dataclasses.field(default=default, metadata=rule)


class Options:
    """The base of dataclasses of options. Lists become tuples, whole numbers floats where those are meant."""

    # Types are checked here, with an error for users: where all signatures are checked, not once more.
    __no_type_check__: ClassVar[bool] = True

    def __post_init__(self) -> None:
        kinds = field_kinds(type(self))
        for field in dataclasses.fields(self):
            value = _checked(field.name, kinds[field.name], getattr(self, field.name), **field.metadata)
            object.__setattr__(self, field.name, value)


@cache
def field_kinds(options: type) -> dict[str, Any]:
    """Name -> type of every field."""
    hints: dict[str, Any] = {}
    for part in reversed(options.__mro__):  # what a class says itself counts
        hints |= inspect.get_annotations(part)
    return {field.name: hints[field.name] for field in dataclasses.fields(options)}


def _checked(
    name: str,
    kind: Any,
    value: Any,
    choices: Sequence[str] = (),
    least: float | int | None = None,
    most: float | int = MOST,
    some: bool = False,
) -> Any:
    """The value as the field holds it."""
    members = alternatives(kind)
    if isinstance(value, list):
        value = tuple(value)
    if not any(_is_a(value, member) for member in members):
        raise InputError(f"field {name!r} must be {describe(kind)}; got {shown(value)}")
    if isinstance(value, str | tuple):
        _check_words(name, value)
    for one in value if isinstance(value, tuple) else (value,):
        if choices and one not in choices and one is not None:
            raise InputError(f"field {name!r} must be one of {', '.join(choices)}; got {shown(one)}")
    if some and value == ():
        raise InputError(f"field {name!r} must name at least one; got none")
    if isinstance(value, int | float) and not isinstance(value, bool):
        least = -MOST if least is None else least
        if not least <= value <= most:  # NaN is in no range
            bound = f"at most {most}" if value > most else f"at least {least}"
            raise InputError(f"field {name!r} must be {bound}; got {shown(value)}")
        return float(value) if float in members else value  # 1 and 1.0 are one option
    return value


def _check_words(name: str, value: str | tuple) -> None:
    """Raises InputError for text that no file can hold, for empty text, and for a word given twice."""
    words = [value] if isinstance(value, str) else [word for word in value if isinstance(word, str)]
    for word in words:
        if not word.strip():
            raise InputError(f"field {name!r} must hold no empty text; got {shown(value)}")
        if "\0" in word or any("\ud800" <= c <= "\udfff" for c in word):
            rule = "must be text without null characters and halves of surrogate pairs"
            raise InputError(f"field {name!r} {rule}; got {shown(word)}")
    if doubled := [word for word, count in Counter(words).items() if count > 1]:
        raise InputError(f"field {name!r} must name each once; twice: {shown(', '.join(doubled))}")


# --- types --------------------------------------------------------------------------------------------


def alternatives(kind: Any) -> tuple:
    """The types that a union allows, or the one type itself."""
    return typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)


def _is_a(value: Any, kind: Any) -> bool:
    if typing.get_origin(kind) is tuple:
        of_entries = alternatives(typing.get_args(kind)[0])
        return isinstance(value, tuple) and all(any(_is_a(v, k) for k in of_entries) for v in value)
    if typing.get_origin(kind) is dict:
        of_entries = typing.get_args(kind)
        return isinstance(value, dict) and all(all(map(_is_a, entry, of_entries)) for entry in value.items())
    if kind in (int, float):
        return isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)
    return isinstance(value, kind)


_NAMES = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    dict[str, int]: "sizes of axes, as in data:2,model:4",
    types.NoneType: "none",
}


def describe(kind: Any) -> str:
    """A type in words."""
    names = [
        "words separated by commas" if typing.get_origin(member) is tuple else _NAMES[member]
        for member in alternatives(kind)
    ]
    return " or ".join(names)


# --- text ---------------------------------------------------------------------------------------------


def parse(name: str, text: str, kind: Any) -> Any:
    """The value that a command line's text stands for: words `a,b`, JSON, or a Python literal."""
    members = alternatives(kind)
    if types.NoneType in members and text.lower() == "none":
        return None
    is_list = text.lstrip()[:1] in ("[", "(")
    takes_words = any(typing.get_origin(member) is tuple for member in members)
    if takes_words and (str not in members or "," in text or is_list):
        if is_list:
            return _parse_list(name, text)
        # `relations=all` and an empty value both mean: no selection.
        return tuple(word.strip() for word in text.split(",") if word.strip() not in ("", "all"))
    if dict[str, int] in members and re.fullmatch(r"\w+:[0-9]{1,9}(,\w+:[0-9]{1,9})*", text):
        axes = [part.split(":") for part in text.split(",")]
        if len(dict(axes)) < len(axes):
            raise InputError(f"field {name!r} must name each axis once; got {shown(text)}")
        return {axis: int(size) for axis, size in axes}
    if str in members:
        return text
    try:
        value = parse_json(text.lower(), name)
    except InputError:
        value = None
    if value is None or not any(_is_a(value, member) for member in members):
        raise InputError(f"field {name!r} must be {describe(kind)}; got {shown(text)}")
    return value


def _parse_list(name: str, text: str) -> tuple:
    try:
        return tuple(parse_json(text, name))
    except InputError as error:
        try:
            return tuple(ast.literal_eval(text))
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            rule = f"field {name!r} must be a list in JSON or Python where it begins with {text.lstrip()[0]}"
            raise InputError(f"{rule}; got {shown(text)}") from error
