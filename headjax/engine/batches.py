"""Running one compiled step over many prompts, a batch at a time, on one device or on a mesh of them."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array
from jax.sharding import PartitionSpec
from jaxtyping import Float, Int

from headjax.config import ModelConfig
from headjax.data.prompts import PromptBatch
from headjax.engine.mesh import DATA_AXIS, ROWS, data_parts, fetch, model_mesh, one_ahead, spread
from headjax.errors import InputError, shown
from headjax.inputs import as_array, check_ids, check_options, check_tokens
from headjax.model import Transformer
from headjax.result import Result

# track(items, total, label) -> items, showing on the way how far it is; `untracked` shows nothing.
Track = Callable[..., Iterable]
# What stands in for the outputs of heads at some rows of the prompts, P as a prefill keeps positions.
Replacement = Callable[[Int[np.ndarray, " rows"]], Float[Array | np.ndarray, " L #rows #P #H #K"]]


def untracked(items: Iterable, total: int | None = None, label: str = "") -> Iterable:
    """The items as they are."""
    return items


# remember(name, compute) -> compute(), or what it gave when an earlier start of the same run asked for it
# under the same name. What is computed holds no device arrays. `compute_anew` remembers nothing.
Remember = Callable[[str, Callable[[], Any]], Any]


def compute_anew(name: str, compute: Callable[[], Any]) -> Any:
    """What `compute` gives now."""
    return compute()


class Work(NamedTuple):
    """What whoever runs an analysis lends it.

    Attributes:
      earlier: what analyses before it gave for all models.
      track, remember: see above.
    """

    earlier: Result = Result()
    track: Track = untracked
    remember: Remember = compute_anew


def prompt_chunks(n_prompts: int, batch_size: int, parts: int = 1) -> list[Int[np.ndarray, " rows"]]:
    """Rows of all prompts in order, in as few equal chunks as may be; the last row fills up the last one.

    The size of a chunk is a multiple of `parts`, so that each of so many devices gets as many.
    """
    n_chunks = -(-n_prompts // batch_size)
    size = -(-n_prompts // (n_chunks * parts)) * parts
    return [np.minimum(np.arange(i, i + size), n_prompts - 1) for i in range(0, n_prompts, size)]


def map_prompts(
    step: Callable[..., Any],
    model: Transformer | tuple[Transformer, Any],
    arrays: tuple[np.ndarray, ...],
    batch_size: int,
    track: Track = untracked,
    label: str = "",
    remember: Remember = compute_anew,
    replacement: Replacement | None = None,
    **static: Any,
) -> Any:
    """``step(model, *rows of every array)`` for all rows, put together again as numpy arrays.

    Every array, and every array in what `step` returns, has the prompts as its first axis. All batches
    have the same size, so that `step` compiles once. On a mesh each copy of the model gets its share of a
    batch.

    Args:
      model: a Transformer, or a tuple that begins with one, which the step gets whole.
      remember: asked for every batch.
      replacement: gives one more argument of the step for the rows of a batch.
      static: keyword arguments of the step.
    """
    mesh, n_prompts = model_mesh(model), len(arrays[0])

    def begin(i: int) -> Any:
        rows = chunks[i]
        values = [array[rows] for array in arrays]
        specs = (ROWS,) * len(arrays)
        if replacement is not None:
            values.append(replacement(rows))
            specs += (replacement_spec(values[-1]),)
        return spread(step, mesh, specs, **static)(model, *values)

    chunks = prompt_chunks(n_prompts, batch_size, data_parts(mesh))
    run = one_ahead(begin, lambda i: i + 1 if i + 1 < len(chunks) else None)
    parts = [
        remember(f"{label}, {describe_rows(rows)}", lambda i=i: fetch(run(i)))
        for i, rows in enumerate(track(chunks, len(chunks), label))
    ]
    return jax.tree.map(lambda *part: np.concatenate(part)[:n_prompts], *parts)


def describe_rows(rows: Int[np.ndarray, " rows"]) -> str:
    """What a part of the prompts is remembered by: another number of devices may cut other parts."""
    return f"prompts {rows[0]} + {len(rows)}"


def replacement_spec(values: Float[Array | np.ndarray, " L #B #P #H #K"]) -> PartitionSpec:
    """How a replacement is split over a mesh: as the prompts, unless all prompts share it."""
    return PartitionSpec(None, DATA_AXIS) if values.shape[1] > 1 else PartitionSpec()


def check_prompts(prompts: Any, config: ModelConfig, **options: Any) -> PromptBatch:
    """Prompts as numpy arrays that a sweep over this model can be given; `options` as in `check_options`.

    Raises InputError for tokens as `check_tokens` does, for padding that is not on the left, for answers,
    distractors, corrupted partners and sources that do not fit the tokens.
    """
    check_options(**options)
    if not isinstance(prompts, PromptBatch):
        raise InputError(f"prompts must be a PromptBatch, as batch_prompts makes it; got {shown(prompts)}")
    mask = np.ones(np.shape(prompts.tokens), bool) if prompts.mask is None else prompts.mask
    tokens, mask = (np.asarray(part) for part in check_tokens(prompts.tokens, mask, config))
    if not mask[:, -1].all() or (mask[:, :-1] > mask[:, 1:]).any():
        raise InputError("prompts must be padded on the left, so that all of them end at the last position")
    B, S = tokens.shape
    arrays = {"tokens": tokens, "mask": mask}
    for field in ("answers", "distractors"):
        if getattr(prompts, field) is not None:
            ids = np.asarray(as_array(getattr(prompts, field), field))
            if ids.shape != (B,) or ids.dtype.kind not in "iu":
                raise InputError(f"{field} must be one token id a prompt; got {ids.dtype} {list(ids.shape)}")
            check_ids(ids, field, config.vocab_size)
            arrays[field] = ids.astype(np.int32)
    if prompts.corrupted is not None:
        corrupted, _ = check_tokens(prompts.corrupted, mask, config)
        arrays["corrupted"] = np.asarray(corrupted)
    sources = np.asarray(as_array(prompts.sources, "sources"))
    if sources.shape != (B,) or sources.dtype.kind not in "iu" or (sources >= S).any():
        raise InputError(f"sources must be one position a prompt, of {S}; got {shown(sources)}")
    if len(prompts.prompts) != B:
        raise InputError(f"a batch must describe its {B} prompts; got {len(prompts.prompts)}")
    return dataclasses.replace(prompts, **arrays, sources=sources.astype(np.int32))
