"""What a compiled program costs, counted in its jaxpr: nothing is compiled, no array and no device is there.

FLOP are those of matrix products, 2 a multiplication and addition; norms, softmax and the like are left out.
Bytes are those of all values alive at once, each from the operation that gives it to the last one that takes
it; compilers hold less of what is computed element by element.
"""

import math
from collections.abc import Callable, Hashable, Iterator
from functools import lru_cache, partial
from inspect import unwrap
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import ShapeDtypeStruct
from jax.typing import DTypeLike

from headjax.kernels import platform


class Compiled(NamedTuple):
    """A program by its name and what tells its shapes apart, and how many operations are compiled."""

    name: str
    shapes: Hashable = ()
    operations: int = 0


class Program(NamedTuple):
    """One call of a compiled program.

    Attributes:
      gives: the shapes of what it returns.
      flops: without loops whose length the program is given.
      loops: of one pass of each such loop, in the order in which they come.
      n_bytes: alive at once beside what it is given.
    """

    compiled: Compiled
    gives: Any
    flops: int
    loops: tuple[int, ...]
    n_bytes: int


def shape(*sizes: int, dtype: DTypeLike = jnp.float32) -> ShapeDtypeStruct:
    """What stands for an array."""
    return ShapeDtypeStruct(sizes, dtype)


def n_bytes_of(tree: Any) -> int:
    """Bytes of all arrays, or what stands for them, in a tree."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def trace(target: str, step: Callable[..., Any], *arguments: Any, **static: Any) -> Program:
    """A program as a platform runs it. Of the arguments only the shapes are looked at."""
    leaves, structure = jax.tree.flatten(arguments)
    shapes = tuple(shape(*leaf.shape, dtype=jax.dtypes.canonicalize_dtype(leaf.dtype)) for leaf in leaves)
    return _traced(target, step, structure, shapes, tuple(sorted(static.items())))


@lru_cache(maxsize=256)
def _traced(
    target: str, step: Callable[..., Any], structure: Any, shapes: tuple[ShapeDtypeStruct, ...], static: tuple
) -> Program:
    # The function within: the compiled program would keep for itself what is traced for another platform.
    function = partial(unwrap(step), **dict(static))
    with platform.targeting(target):
        jaxpr, gives = jax.make_jaxpr(function, return_shape=True)(*jax.tree.unflatten(structure, shapes))
    *counts, operations = _count(jaxpr.jaxpr)
    return Program(Compiled(step.__name__, hash((structure, shapes, static)), operations), gives, *counts)


def _count(jaxpr: Any) -> tuple[int, tuple[int, ...], int, int]:
    """`Program.flops`, `loops` and `n_bytes`, and how many operations there are."""
    flops, loops, alive, most, operations = 0, (), 0, 0, len(jaxpr.eqns)
    last = {id(value): i for i, eqn in enumerate(jaxpr.eqns) for value in eqn.invars}
    last |= dict.fromkeys(map(id, jaxpr.outvars), len(jaxpr.eqns))
    ends = [0] * (len(jaxpr.eqns) + 1)  # bytes that nobody takes after an operation
    for i, eqn in enumerate(jaxpr.eqns):
        for value in eqn.outvars:
            ends[last.get(id(value), i)] += n_bytes_of(value.aval)
        given = n_bytes_of([value.aval for value in eqn.outvars])
        inside = [_count(inner) for inner in _inner(eqn)]
        own, own_loops, held, _ = map(max, zip(*inside, strict=True)) if inside else (0, (), 0, 0)
        operations += sum(counts[-1] for counts in inside)
        match eqn.primitive.name:
            case "dot_general":
                (contracted, _), _ = eqn.params["dimension_numbers"]
                sizes = [eqn.invars[0].aval.shape[axis] for axis in contracted]
                own = 2 * math.prod(eqn.outvars[0].aval.shape) * math.prod(sizes)
            case "scan":
                own *= eqn.params["length"]
                (body,) = _inner(eqn)  # it is given a slice of what is scanned
                slices = body.invars[eqn.params["num_consts"] + eqn.params["num_carry"] :]
                held += n_bytes_of([value.aval for value in slices])
            case "while":
                own, own_loops = 0, (*own_loops, own)
            case _:  # a call or a condition gives what is alive inside already
                held = max(0, held - given)
        flops, loops, alive = flops + own, loops + own_loops, alive + given
        most = max(most, alive + held)
        alive -= ends[i]
    return flops, loops, most, operations


def _inner(eqn: Any) -> Iterator[Any]:
    """What an operation runs: the body of a loop, the branches of a condition, a function."""
    for value in eqn.params.values():
        for inner in value if isinstance(value, tuple | list) else (value,):
            if hasattr(inner := getattr(inner, "jaxpr", inner), "eqns"):
                yield inner
