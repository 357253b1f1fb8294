"""Any number of variants of prompts through a model that is read layer by layer.

Each layer is read once and takes every variant that has begun, as many at a time as make the products large.
Between layers the host holds where every variant is. Prompts go through the model in groups, as many as let
that fit into the host's memory: a group reads the model once, and is remembered when it is through.
"""

from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int

from headjax.axes import Residual
from headjax.engine.batches import Remember, Track, describe_rows, prompt_chunks
from headjax.engine.layer_sweep import LayerRun, run_layer
from headjax.engine.mesh import ROWS, WHOLE, data_parts, fetch, fetch_each, free_host_memory, spread
from headjax.kernels import dispatch
from headjax.model import Block, Transformer, mask_positions
from headjax.parameters.layered import LayeredModel

# Rows of a product (variants times the positions that are run) beyond which more gain little; measured on
# CPU only.
ENOUGH_ROWS = {"cpu": 800, "gpu": 16384, "tpu": 16384}


class Steps(NamedTuple):
    """How variants go through a model. The state of a variant is whatever they say: arrays [m B ..].

    Attributes:
      begin: the residual at the last position before layer 0 -> the state [B ..] of a variant that changes
        nothing.
      clean: (block, `LayerRun` of all runs of B prompts, what is given for them in this layer) -> what
        variants are told of it.
      move: (block, that, states, what is asked of each variant in this layer) -> the states after the layer.
      finish: (the model outside of its layers, the last residual [R D] of all runs, states, *rows of further
        arrays) -> values [m B].
      ends: (the model outside of its layers, the last residual [R D] of all runs, *rows) -> values [B]; None:
        there are none.
      moves_on: whether a variant goes through the layers above the one where it begins.
    """

    begin: Callable[[Float[np.ndarray, "B D"]], Any]
    clean: Callable[[Block, LayerRun, Any], Any]
    move: Callable[[Block, Any, Any, Any], Any]
    finish: Callable[..., Any]
    ends: Callable[..., Any] | None = None
    moves_on: bool = True


class Given(NamedTuple):
    """What a sweep of M variants is of.

    Attributes:
      runs: tokens [B S] of the runs that it starts from, the prompts' own first; `mask` is of all of them.
      rows: further arrays by prompt, for `Steps.finish` and `Steps.ends`.
      start: [M], the layer in which each variant begins. The first one changes nothing, and begins in 0.
      in_layer: (layer, prompts' rows) -> what is given to `Steps.clean`.
      of_variants: (layer, variants) -> what is asked of each of them.
    """

    runs: tuple[Int[np.ndarray, "B S"], ...]
    mask: Bool[np.ndarray, "B S"]
    rows: tuple[np.ndarray, ...]
    start: Int[np.ndarray, " M"]
    in_layer: Callable[[int, Int[np.ndarray, " rows"]], Any]
    of_variants: Callable[[int, Int[np.ndarray, " m"]], Any]


def sweep_layers(
    steps: Steps,
    model: LayeredModel,
    given: Given,
    *,
    batch_size: int,
    variant_batch: int | None,
    track: Track,
    remember: Remember,
    label: str,
) -> tuple[Any, Any]:
    """What `Steps.ends` says of every prompt, and `Steps.finish` of every variant on every prompt.

    batch_size: prompts that are run at once; variant_batch: variants, None: as many as are worth it.
    """
    n_prompts, n_parts = len(given.mask), data_parts(model.mesh)
    chunks = prompt_chunks(n_prompts, batch_size)
    B, M = len(chunks[0]), len(given.start)
    H, enough = model.config.n_heads, ENOUGH_ROWS[jax.default_backend()]
    size = min(M, variant_batch or 1 + H * -(-enough // (H * B)))
    size = -(-size // n_parts) * n_parts

    n_at_once = remember(f"{label}, how many chunks a group", partial(_group_size, steps, model, given, B))
    groups = [chunks[i : i + n_at_once] for i in range(0, len(chunks), n_at_once)]
    found = []
    for i, group in enumerate(groups):
        name = f"{label}, {i + 1} of {len(groups)}" if len(groups) > 1 else label
        run = partial(_run_group, steps, model, given, group, size, track, name)
        found.append(remember(f"{label}, {describe_rows(np.concatenate(group))}", run))
    return jax.tree.map(lambda *parts: np.concatenate(parts, axis=-1)[..., :n_prompts], *found)


def _group_size(steps: Steps, model: LayeredModel, given: Given, B: int) -> int:
    """How many chunks of B prompts go through the model together, in half of what memory the host has."""
    D, itemsize = model.config.d_model, model.outer.W_E.dtype.itemsize
    states = jax.tree.leaves(steps.begin(np.zeros((B, D), model.outer.W_E.dtype)))
    n_bytes = len(given.start) * sum(state.nbytes for state in states)
    n_bytes += len(given.runs) * given.mask.shape[1] * B * D * itemsize
    return max(1, int(free_host_memory() // 2 // n_bytes))


class _Compiled(NamedTuple):
    embed: Callable[..., Any]
    clean: Callable[..., Any]
    move: Callable[..., Any]
    finish: Callable[..., Any]
    ends: Callable[..., Any]


@lru_cache(maxsize=32)
def _compiled(steps: Steps) -> _Compiled:
    def embed(outer: Transformer, tokens: Int[Array, "R S"], mask: Bool[Array, "R S"]) -> Residual:
        return outer.embed(tokens, mask_positions(mask))

    def clean(block: Block, x: Residual, mask: Bool[Array, "R S"], in_layer: Any) -> tuple[Residual, Any]:
        ran = run_layer(block, x, mask_positions(mask), jax.numpy.asarray(mask))
        return ran.after, steps.clean(block, ran, in_layer)

    ends = steps.ends or (lambda *_: None)
    return _Compiled(*map(dispatch.jit, (embed, clean, steps.move, steps.finish, ends)))


def _run_group(
    steps: Steps,
    model: LayeredModel,
    given: Given,
    chunks: list[Int[np.ndarray, " rows"]],
    size: int,
    track: Track,
    label: str,
) -> tuple[Any, Any]:
    """The values of one group of prompts: (by prompt, by variant and prompt)."""
    run, mesh, M = _compiled(steps), model.mesh, len(given.start)
    # Every device has the clean runs whole, and its share of the variants.
    embed = spread(run.embed, mesh, (WHOLE, WHOLE), WHOLE)
    clean = spread(run.clean, mesh, (WHOLE, WHOLE, WHOLE), WHOLE)
    move = spread(run.move, mesh, (WHOLE, ROWS, ROWS))
    finish = spread(run.finish, mesh, (WHOLE, ROWS, *[WHOLE] * len(given.rows)))

    order = np.concatenate([[0], 1 + np.argsort(given.start[1:], kind="stable")])
    masks = [np.concatenate([given.mask[rows]] * len(given.runs)) for rows in chunks]
    residuals, states = [], []
    for rows, mask in zip(chunks, masks, strict=True):
        tokens = np.concatenate([tokens[rows] for tokens in given.runs])
        residuals.append(np.asarray(embed(model.outer, tokens, mask)))
        first = steps.begin(residuals[-1][: len(rows), -1])
        # Memory of variants that have not begun is not touched.
        states.append(jax.tree.map(lambda one: _stack(one, M), first))

    def moved(layer: int, block: Block, new: slice) -> Iterator[tuple[tuple[int, Any], Any]]:
        """((chunk, which variants; None: its clean run), their states or residual after the layer)."""
        going = np.arange(0 if steps.moves_on else new.start, new.stop)
        for i, rows in enumerate(chunks):
            after, told = clean(block, residuals[i], masks[i], given.in_layer(layer, rows))
            yield (i, None), after
            for part in _parts(going, size):
                filled = np.resize(part, size)  # the last ones are filled up: equal rows stay equal
                own = jax.tree.map(lambda state: state[filled], states[i])  # noqa: B023
                yield (i, part), move(block, told, own, given.of_variants(layer, order[filled]))

    begun = 0
    for layer, block in enumerate(track(model.layers(), model.config.n_layers, label)):
        new = slice(begun, int(np.sum(given.start <= layer)))
        for state in states:
            for leaf in jax.tree.leaves(state):
                leaf[new] = leaf[0]
        begun = new.stop
        for (i, part), values in fetch_each(moved(layer, block, new)):
            if part is None:
                residuals[i] = values
            else:
                jax.tree.map(lambda old, fresh: _put(old, part, fresh), states[i], values)  # noqa: B023
        del block  # or it would stay while the next one is waited for

    of_prompts, of_variants = [], []
    for rows, residual, state in zip(chunks, residuals, states, strict=True):
        last, asked = residual[:, -1], [array[rows] for array in given.rows]
        of_prompts.append(fetch(run.ends(model.outer, last, *asked)))

        def finished(last: Any = last, state: Any = state, asked: Any = asked) -> Iterator[tuple[Any, Any]]:
            for part in _parts(np.arange(M), size):
                filled = np.resize(part, size)
                own = jax.tree.map(lambda leaf: leaf[filled], state)  # noqa: B023
                yield part, finish(model.outer, last, own, *asked)

        parts = [jax.tree.map(lambda v: v[: len(part)], values) for part, values in fetch_each(finished())]  # noqa: B023
        of_variants.append(jax.tree.map(lambda *parts: np.concatenate(parts), *parts))
    by_prompt, by_variant = jax.tree.map(
        lambda *columns: np.concatenate(columns, axis=-1), *zip(of_prompts, of_variants, strict=True)
    )
    back = np.argsort(order)
    return by_prompt, jax.tree.map(lambda values: values[back], by_variant)


def _stack(one: np.ndarray, n: int) -> np.ndarray:
    """Room for n of them, the first of which is there."""
    room = np.empty((n, *one.shape), one.dtype)
    room[0] = one
    return room


def _put(states: np.ndarray, rows: Int[np.ndarray, " rows"], values: np.ndarray) -> None:
    states[rows] = values[: len(rows)]


def _parts(rows: Int[np.ndarray, " rows"], size: int) -> list[Int[np.ndarray, " part"]]:
    return [rows[i : i + size] for i in range(0, len(rows), size)]
