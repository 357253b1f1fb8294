"""Forward sweeps: what a clean run shows in every layer, written once for two kinds of models.

A sweep says what it asks of the prompts (`begin`), what it keeps of a layer (`layer`) and what it makes of
all that it kept (`finish`). A model in memory goes through one compiled program, a scan over its layers. One
that is read layer by layer goes through a loop: each layer is read once, takes every batch of prompts, and is
gone before the next but one is read. Between layers the host holds the residual stream and what was kept.
"""

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array, lax
from jaxtyping import Bool, Float, Int

from headjax.axes import HeadOutputs, Residual
from headjax.engine.batches import Remember, Track, compute_anew, map_prompts, prompt_chunks, untracked
from headjax.engine.mesh import OF_LAYERS, ROWS, WHOLE, data_parts, fetch, fetch_each, spread
from headjax.kernels import dispatch
from headjax.model import Block, Transformer, mask_positions
from headjax.parameters.layered import LayeredModel


class LayerRun(NamedTuple):
    """The clean run of B prompts in one layer.

    Attributes:
      before, after: [B S D], the residual stream before and after the layer.
      q, k, v: queries, keys and values; z: every head's output before W_O.
      valid: [B S], False on padding.
    """

    before: Residual
    after: Residual
    q: HeadOutputs
    k: Float[Array, "B S G K"]
    v: Float[Array, "B S G K"]
    z: HeadOutputs
    valid: Bool[Array, "B S"]


class Ends(NamedTuple):
    """The residual stream of the last position before the first layer and after the last one."""

    first: Float[Array, "B D"]
    last: Float[Array, "B D"]


class Sweep(NamedTuple):
    """One forward sweep. The prompts are the first axis of whatever `begin`, `layer` and `finish` give.

    Attributes:
      name: of its compiled program.
      begin: (the model outside of its layers, tokens [B S], mask [B S], *rows of further arrays) -> what
        `layer` and `finish` need to know of these prompts.
      layer: (block, `LayerRun`, that, what all prompts share) -> what is kept of the layer.
      finish: (the model outside of its layers, what `begin` gave, what was kept, stacked over layers, `Ends`)
        -> the result.
    """

    name: str
    begin: Callable[..., Any]
    layer: Callable[[Block, LayerRun, Any, Any], Any]
    finish: Callable[[Transformer, Any, Any, Ends], Any]


def run_sweep(
    sweep: Sweep,
    model: Transformer | LayeredModel,
    arrays: tuple[np.ndarray, ...],
    *,
    shared: Any = None,
    batch_size: int,
    label: str,
    track: Track = untracked,
    remember: Remember = compute_anew,
) -> Any:
    """What the sweep finds for all prompts, as numpy arrays.

    Args:
      arrays: tokens, mask and further ones, whose first axis are the prompts.
      shared: arrays that all prompts share.
      batch_size: prompts that are run at once.
      remember: asked for every batch, of a model in memory.
    """
    if isinstance(model, LayeredModel):
        return _layer_by_layer(sweep, model, arrays, shared, batch_size, track, label)
    return map_prompts(whole_sweep(sweep), (model, shared), arrays, batch_size, track, label, remember)


def run_layer(block: Block, x: Residual, positions: Int[Array, "B S"], valid: Bool[Array, "B S"]) -> LayerRun:
    """A layer of the clean run."""
    q, k, v = block.project(x, positions)
    z = block.attn.attend(q, k, v, valid)
    return LayerRun(x, block.finish(x, z), q, k, v, z, valid)


@lru_cache(maxsize=32)
def whole_sweep(sweep: Sweep) -> Callable[..., Any]:
    """The compiled sweep over a model in memory: ((model, shared), *arrays) -> result."""

    def run(model_and_shared: tuple[Transformer, Any], tokens: Array, mask: Array, *rows: Array) -> Any:
        model, shared = model_and_shared
        positions, valid = mask_positions(mask), jax.numpy.asarray(mask)
        asked = sweep.begin(model, tokens, mask, *rows)

        def layer(x: Residual, block: Block) -> tuple[Residual, Any]:
            ran = run_layer(block, x, positions, valid)
            return ran.after, sweep.layer(block, ran, asked, shared)

        first = model.embed(tokens, positions)
        last, kept = lax.scan(layer, first, model.blocks)
        return sweep.finish(model, asked, kept, Ends(first[:, -1], last[:, -1]))

    run.__name__ = run.__qualname__ = sweep.name
    return dispatch.jit(run)


class _Steps(NamedTuple):
    """The compiled parts of a sweep over a model that is read layer by layer."""

    begin: Callable[..., Any]
    layer: Callable[..., Any]
    finish: Callable[..., Any]


@lru_cache(maxsize=32)
def _steps(sweep: Sweep) -> _Steps:
    def begin(outer: Transformer, tokens: Array, mask: Array, *rows: Array) -> tuple[Residual, Any]:
        return outer.embed(tokens, mask_positions(mask)), sweep.begin(outer, tokens, mask, *rows)

    def layer(block: Block, x: Residual, mask: Array, asked: Any, shared: Any) -> tuple[Residual, Any]:
        ran = run_layer(block, x, mask_positions(mask), jax.numpy.asarray(mask))
        return ran.after, sweep.layer(block, ran, asked, shared)

    return _Steps(*map(dispatch.jit, (begin, layer, sweep.finish)))


def _layer_by_layer(
    sweep: Sweep,
    model: LayeredModel,
    arrays: tuple[np.ndarray, ...],
    shared: Any,
    batch_size: int,
    track: Track,
    label: str,
) -> Any:
    mesh, steps, n_prompts = model.mesh, _steps(sweep), len(arrays[0])
    begin = spread(steps.begin, mesh, (ROWS,) * len(arrays))
    layer = spread(steps.layer, mesh, (ROWS, ROWS, ROWS, WHOLE))
    finish = spread(steps.finish, mesh, (ROWS, OF_LAYERS, ROWS))
    chunks = prompt_chunks(n_prompts, batch_size, data_parts(mesh))
    batches = [[array[rows] for array in arrays] for rows in chunks]
    begun = [begin(model.outer, *batch) for batch in batches]
    asked, residuals = [one for _, one in begun], [fetch(x) for x, _ in begun]
    first = [x[:, -1] for x in residuals]
    del begun

    def run(block: Block) -> Iterator[tuple[int, Any]]:
        """(batch, its residual after the layer and what is kept of it)."""
        for i, (_, mask, *_) in enumerate(batches):
            yield i, layer(block, residuals[i], mask, asked[i], shared)

    layers = []
    for block in track(model.layers(), model.config.n_layers, label):
        of_layer = []
        for i, (after, kept) in fetch_each(run(block)):
            residuals[i] = after
            of_layer.append(kept)
        layers.append(of_layer)
        del block  # or it would stay while the next one is waited for
    results = []
    for i, own in enumerate(asked):
        kept = jax.tree.map(lambda *parts: np.stack(parts), *(of_layer[i] for of_layer in layers))
        ends = Ends(first[i], residuals[i][:, -1])
        results.append(fetch(finish(model.outer, own, kept, ends)))
    return jax.tree.map(lambda *parts: np.concatenate(parts)[:n_prompts], *results)
