"""Which implementation of an op runs, and the record of what ran.

Every op's `api.py` asks `choose`, which notes its choice in the `recording` around it, if there is one:

    with recording() as ran:
        scores = sweep(model)
    ran  # {Choice("head_attention", "xla", "highest"), ...}

An op chooses while a program is traced, and a program that was traced before runs without asking again. So
whatever calls an op is compiled by the `jit` here: it is `jax.jit`, and its programs carry their choices with
them and note them at every call.
"""

import contextlib
import contextvars
import dataclasses
import functools
import importlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax


class Choice(NamedTuple):
    """What an op was computed by, and at which matmul precision."""

    op: str
    implementation: str
    precision: str


# What every op has, a module each that holds a function of the op's name.
NAMES = ("reference", "xla", "pallas_mosaic_tpu", "pallas_mosaic_gpu")
# Their float32 products are exact whatever precision is asked for.
ALWAYS_HIGHEST = ("reference", "pallas_mosaic_gpu")

_ran: contextvars.ContextVar[set[Choice] | None] = contextvars.ContextVar("ran", default=None)


def implementations(op: str) -> dict[str, Callable]:
    """Name -> an op's implementation, whose module is imported when it is first called: Pallas takes long
    to import, and few runs use it."""

    def imported(name: str) -> Callable:
        def run(*args: Any, **kwargs: Any) -> Any:
            return getattr(importlib.import_module(f"{__package__}.{op}.{name}"), op)(*args, **kwargs)

        return run

    return {name: imported(name) for name in NAMES}


def choose(
    op: str,
    implementations: Mapping[str, Callable],
    default: str,
    implementation: str | None,
    precision: str | None,
) -> tuple[Callable, str | None]:
    """The function of the implementation asked for, or of the default, and the precision it computes at.

    Both are noted. Raises ValueError if there is no implementation of that name.
    """
    name = default if implementation is None else implementation
    if name not in implementations:
        raise ValueError(f"implementation must be one of {sorted(implementations)}; got {name!r}")
    if name in ALWAYS_HIGHEST:
        precision = "highest"
    note(op, name, precision)
    return implementations[name], precision


def note(op: str, implementation: str, precision: str | None) -> None:
    """Adds to the record what computes an op, or what stands in for one."""
    if (ran := _ran.get()) is not None:
        ran.add(Choice(op, implementation, precision or jax.config.jax_default_matmul_precision or "default"))


@contextlib.contextmanager
def recording() -> Iterator[set[Choice]]:
    """What runs inside, in this thread; of recordings within each other the outer ones get all."""
    outer, ran = _ran.get(), set()
    token = _ran.set(ran)
    try:
        yield ran
    finally:
        _ran.reset(token)
        if outer is not None:
            outer |= ran


def jit(function: Callable, **options: Any) -> Callable:
    """`jax.jit`, and every call of the program notes what its ops chose when it was traced.

    The choices are part of the structure of what the program returns, which jax keeps with the program; so do
    `lower` and `trace` of the result return them, beside the function's own.
    """

    @functools.wraps(function)
    def traced(*args: Any, **kwargs: Any) -> tuple[Any, "_Choices"]:
        with recording() as ran:
            result = function(*args, **kwargs)
        return result, _Choices(frozenset(ran))

    program = jax.jit(traced, **options)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        result, choices = program(*args, **kwargs)
        for choice in choices.ran:
            note(*choice)
        return result

    for name in ("lower", "trace", "clear_cache", "_cache_size"):
        setattr(call, name, getattr(program, name))
    return call


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class _Choices:
    """Without arrays: a part of a result's structure."""

    ran: frozenset[Choice]
