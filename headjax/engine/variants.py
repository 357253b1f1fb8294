"""Running any number of edited variants on any number of prompts, as many at a time as memory allows.

Of a model in memory a batch of variants goes through all layers, then the next one. A model that is read
layer by layer takes all of them through a layer before the next one (`layered_variants`).
"""

import logging
from collections.abc import Callable
from functools import cache, partial
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jax import Array
from jax.sharding import PartitionSpec
from jaxtyping import Float, Int

from headjax.config import ModelConfig
from headjax.data.prompts import PromptBatch
from headjax.engine.batches import (
    Remember,
    Replacement,
    Track,
    check_prompts,
    compute_anew,
    describe_rows,
    prompt_chunks,
    replacement_spec,
    untracked,
)
from headjax.engine.layered_variants import ENOUGH_ROWS, Given, sweep_layers
from headjax.engine.mesh import (
    DATA_AXIS,
    ROWS,
    WHOLE,
    data_parts,
    fetch,
    model_mesh,
    one_ahead,
    spread,
    upload,
)
from headjax.engine.metrics import Metrics
from headjax.engine.prefill import SPECS, prefill
from headjax.engine.variant_step import LAYERED, Positions, VariantEdit, variant_step
from headjax.errors import InputError
from headjax.model import Transformer
from headjax.parameters.layered import LayeredModel

HOST_BYTES = 2**31  # for the activations of one batch, where a device does not tell its free memory

# What the copies of a model on a mesh share out among themselves.
Split = Literal["prompts", "variants"]

_log = logging.getLogger(__name__)


class VariantRuns(NamedTuple):
    """Metrics of the clean run, each [B], and of every variant, each [M B]; numpy arrays.

    The clean run is a variant that edits nothing, run beside the others: any other that changes nothing
    gives the same bits, in every dtype.
    """

    clean: Metrics
    edited: Metrics


def run_variants(
    model: Transformer | LayeredModel,
    prompts: PromptBatch,
    gain: Float[np.ndarray, "M L H"],
    replacement: Replacement,
    *,
    positions: Positions,
    batch_size: int = 64,
    variant_batch: int | None = None,
    filled_to: int | None = None,
    track: Track = untracked,
    remember: Remember = compute_anew,
    label: str = "variants",
) -> VariantRuns:
    """Runs every variant on every prompt.

    Args:
      replacement: what takes the heads' place (`find_replacement` for the same prompts and positions).
      batch_size: prompts that are run at once.
      variant_batch: variants that are run at once; None chooses by the device's free memory. Whenever the
        device runs out of memory the number is halved, and a warning logged.
      filled_to: at most so many variants are run at once, and as many where there are fewer: sweeps of any
        numbers of variants then share one program. None: as many as there are, if they fit.
      track, label: wrapper of the loop over variants, for a progress bar, and its name.
      remember: asked for every batch of variants, and for the number of variants that was chosen: with
        another one the last bits could differ.

    On a mesh each copy of the model runs its share of the prompts or, where there are fewer prompts than
    copies, its share of the variants.

    Raises InputError for logits that are NaN, where memory cannot hold a single variant, and for "all"
    positions of a model that is read layer by layer.
    """
    prompts = check_prompts(
        prompts, model.config, positions=positions, batch_size=batch_size, variant_batch=variant_batch
    )
    if gain.ndim != 3 or gain.shape[1:] != (model.config.n_layers, model.config.n_heads):
        L, H = model.config.n_layers, model.config.n_heads
        raise InputError(f"gains must be [M L H] with L={L} and H={H}; got {list(gain.shape)}")
    gain = np.concatenate([np.ones((1, *gain.shape[1:]), np.float32), gain.astype(np.float32)])
    how = {"batch_size": batch_size, "variant_batch": variant_batch}
    how |= {"track": track, "remember": remember, "label": label}
    if isinstance(model, LayeredModel):
        check_streamed(positions)
        values = _layer_by_layer(model, prompts, gain, replacement, **how)
    else:
        values = _held(model, prompts, gain, replacement, positions, filled_to=filled_to, **how)
    runs = VariantRuns(*(jax.tree.map(lambda rows, at=at: rows[at], values) for at in (0, slice(1, None))))
    bad = np.isnan(runs.clean.logprob) | np.isnan(runs.edited.logprob).any(axis=0)
    if bad.any():
        raise InputError(f"logits must be numbers; {prompts.prompts[int(bad.argmax())].name} gives NaN")
    return runs


def check_streamed(positions: Positions) -> None:
    """Raises InputError unless positions are "last": others would fill the host's memory."""
    if positions != "last":
        raise InputError(f"a model read layer by layer is edited at the last position; got {positions!r}")


def _held(
    model: Transformer,
    prompts: PromptBatch,
    gain: Float[np.ndarray, "M L H"],
    replacement: Replacement,
    positions: Positions,
    **how: Any,
) -> Metrics:
    """Metrics [M B] of every variant, the first of which edits nothing."""
    mesh, start = model_mesh(model), _start_layers(gain)

    def prepare(rows: Int[np.ndarray, " rows"], split: Split) -> tuple[None, tuple]:
        run = spread(prefill, mesh, *_CLEAN_SPECS[split], keep=positions)
        answers = (prompts.answers[rows], None if prompts.distractors is None else prompts.distractors[rows])
        # Of all batches of variants the same: uploaded once.
        replaced = replacement(rows)
        (_, edit, _, *of_answers), _ = _variant_specs(split, replaced)
        replaced, answers = upload((replaced, answers), mesh, (edit.replacement, tuple(of_answers)))
        return None, (run(model, prompts.tokens[rows], prompts.mask[rows]), replaced, answers)

    def step(shared: tuple, variants: Int[np.ndarray, " size"], split: Split) -> tuple[Metrics, tuple]:
        clean, replaced, answers = shared
        run = spread(variant_step, mesh, *_variant_specs(split, replaced), positions=positions)
        edit = VariantEdit(gain[variants], replaced)
        metrics, entries = run(model, clean, edit, start[variants].min(), *answers)
        return metrics, (clean._replace(**entries._asdict()), replaced, answers)

    work = (model, start, prompts.tokens.shape, prepare, step)
    return sweep_variants(*work, positions=positions, **how)[1]


def _layer_by_layer(
    model: LayeredModel,
    prompts: PromptBatch,
    gain: Float[np.ndarray, "M L H"],
    replacement: Replacement,
    **how: Any,
) -> Metrics:
    """The same at the last position."""
    start = _start_layers(gain)
    start[0] = 0
    rows = (prompts.answers,) if prompts.distractors is None else (prompts.answers, prompts.distractors)

    def in_layer(layer: int, rows: Int[np.ndarray, " rows"]) -> Float[np.ndarray, "#B #H #K"]:
        return np.asarray(replacement(rows))[layer, :, -1]

    given = Given(
        *((prompts.tokens,), prompts.mask, rows, start, in_layer),
        of_variants=lambda layer, variants: gain[variants, layer],
    )
    return sweep_layers(LAYERED, model, given, **how)[1]


def sweep_variants(
    model: Transformer,
    start: Int[np.ndarray, " M"],
    shape: tuple[int, int],
    prepare: Callable[[Int[np.ndarray, " rows"], Split], tuple[Any, Any]],
    step: Callable[[Any, Int[np.ndarray, " size"], Split], tuple[Any, Any]],
    *,
    positions: Positions,
    batch_size: int,
    variant_batch: int | None,
    streams: int = 1,
    filled_to: int | None = None,
    track: Track,
    remember: Remember,
    label: str,
) -> tuple[Any, Any]:
    """What `prepare` says of every prompt and `step` of every variant on every prompt, as numpy arrays.

    The first variant must change nothing: it is what all others are compared with. It is the first of the
    first batch (and of each copy's share of it), so that all variants can enter where it was, see
    `variant_step.Entries`. Every batch of some prompts has the same size, and runs the same program.

    Args:
      start: the layer at which each variant begins, the first one's being the lowest; those that begin
        together are run together.
      shape: [B S] of the prompts.
      prepare: (prompts' rows, how the copies of the model share the work) -> (values [rows], what the first
        `step` needs of these prompts).
      step: (that, which variants, the same split) -> (values [size rows], what all later steps need).
      streams: how many residual streams a variant keeps, for the guess of what fits into memory.
    """
    n_prompts, S = shape
    n_copies = data_parts(model_mesh(model))
    split: Split = "prompts" if min(batch_size, n_prompts) >= n_copies else "variants"
    by_prompt, by_variant = (n_copies, 1) if split == "prompts" else (1, n_copies)
    chunks = prompt_chunks(n_prompts, batch_size, by_prompt)
    size = variant_batch
    if size is None:
        guessed_by = (streams * len(chunks[0]) // by_prompt, S)
        choose = partial(choose_variant_batch, model, guessed_by, positions)
        # One more, so that the variant that changes nothing pushes none out of its layer's batch.
        size = by_variant * (1 + remember(f"{label}, how many of prompts {guessed_by}", choose))
    size = max(1, min(size, filled_to or len(start)))
    order = np.concatenate([[0], 1 + np.argsort(start[1:], kind="stable")])

    def places(size: int) -> tuple[int, int]:
        """Of a batch, and how many variants the first batch holds: every copy runs the first one of all."""
        n = -(-size // by_variant) * by_variant
        return n, n - by_variant + 1

    def enter(rows: np.ndarray, size: int) -> tuple[Any, Any, Any]:
        """Values of the prompts and of the first batch's variants, and what begins any later batch."""
        of_prompts, shared = prepare(rows, split)
        n, n_first = places(size)
        here = np.flatnonzero(np.arange(n) % (n // by_variant))[: len(order) - 1]
        variants = np.zeros(n, order.dtype)
        variants[here] = order[1:n_first]
        values, shared = step(shared, variants, split)

        def begin(batch: tuple[int, int]) -> Any:
            return step(shared, np.resize(order[slice(*batch)], n), split)[0]  # the last one is filled up

        def following(batch: tuple[int, int]) -> tuple[int, int] | None:
            return (batch[1], min(batch[1] + n, len(order))) if batch[1] < len(order) else None

        values = jax.tree.map(lambda values: values[[0, *here]], fetch(values))
        return fetch(of_prompts), values, one_ahead(begin, following)

    def run(entered: Callable[[int], tuple[Any, Any, Any]], first: int, stop: int, size: int) -> Any:
        """Values of the variants from one place in the order to another."""
        _, values, begin = entered(size)
        n, n_first = places(size)
        parts = [jax.tree.map(lambda values: values[first:stop], values)]
        for i in range(max(first, n_first), stop, n):
            batch = i, min(i + n, stop)
            values = fetch(begin(batch))
            parts.append(jax.tree.map(lambda values: values[: batch[1] - batch[0]], values))  # noqa: B023
        return jax.tree.map(lambda *parts: np.concatenate(parts), *parts)

    columns = []
    for rows in chunks:
        entered = cache(partial(enter, rows))  # runs when the first of its variants does
        n, n_first = places(size)
        ends = [*range(n_first, len(order), n), len(order)]
        batches = list(zip([0, *ends], ends, strict=False))
        name = f"{label}, {describe_rows(rows)}"
        of_prompts, size = remember(
            f"{name}, clean",
            partial(_halve_until_it_fits, lambda size: entered(size)[0], size),  # noqa: B023
        )
        parts = []
        for first, stop in track(batches, len(batches), label):
            part, size = remember(
                f"{name}, variants {first} + {stop - first}",
                partial(_halve_until_it_fits, partial(run, entered, first, stop), size),
            )
            parts.append(part)
        of_variants = jax.tree.map(lambda *parts: np.concatenate(parts), *parts)
        columns.append((of_prompts, of_variants))
    of_prompts, of_variants = jax.tree.map(
        lambda *columns: np.concatenate(columns, axis=-1)[..., :n_prompts], *columns
    )
    back = np.argsort(order)
    return of_prompts, jax.tree.map(lambda values: values[back], of_variants)


# How the arguments and results of `prefill` are split over the copies of the model.
_CLEAN_SPECS = {"prompts": ((ROWS, ROWS), SPECS), "variants": ((WHOLE, WHOLE), WHOLE)}


def _variant_specs(split: str, replaced: Array | np.ndarray) -> tuple[tuple, Any]:
    """The same for `variant_step`."""
    if split == "prompts":
        edit = VariantEdit(WHOLE, replacement_spec(replaced))
        return (SPECS, edit, WHOLE, ROWS, ROWS), PartitionSpec(None, DATA_AXIS)
    # Each copy's own first variant edits nothing, or none does: all hand on the same entries.
    return (WHOLE, VariantEdit(ROWS, WHOLE), WHOLE, WHOLE, WHOLE), (ROWS, WHOLE)


def _start_layers(gain: Float[np.ndarray, "M L H"]) -> Int[np.ndarray, " M"]:
    """Each variant's first edited layer; the last layer for one that edits nothing, and for the first of
    all, which edits nothing either, the lowest of the others'."""
    edited = (gain != 1).any(axis=2)
    start = np.where(edited.any(axis=1), edited.argmax(axis=1), gain.shape[1] - 1).astype(np.int32)
    start[0] = start.min()
    return start


def _halve_until_it_fits(run: Callable[[int], Any], size: int) -> tuple[Any, int]:
    """run(size), with the size halved for as long as the device runs out of memory; and the size it took."""
    while True:
        try:
            return run(size), size
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            if size == 1:
                rule = "device memory must hold one variant of all prompts that are run at once"
                raise InputError(f"{rule}; it does not: lower batch_size") from error
        _log.warning("out of memory with %d variants at a time; going on with %d", size, size // 2)
        size //= 2


def choose_variant_batch(model: Transformer, shape: tuple[int, int], positions: Positions) -> int:
    """How many variants of prompts [B S] to run at once, by the memory of the device that is free."""
    device = jax.local_devices()[0]
    statistics = device.memory_stats() or {}
    free = HOST_BYTES
    if "bytes_limit" in statistics:
        free = statistics["bytes_limit"] - statistics["bytes_in_use"]
    return fitting_variants(model.config, shape, positions, free, model.W_E.dtype.itemsize, device.platform)


def fitting_variants(
    config: ModelConfig, shape: tuple[int, int], positions: Positions, free: int, itemsize: int, platform: str
) -> int:
    """How many variants of prompts [B S] to run at once where so many bytes are free.

    As many as make the products large enough, if their activations fit half of the memory; then whole
    layers of heads, or equal parts of one, so that few variants begin below their own layer.
    """
    B, S = shape
    rows = B * (S if positions == "all" else 1)
    fits = free // 2 // (rows * numbers_per_row(config, S) * itemsize)
    n = max(1, min(fits, -(-ENOUGH_ROWS[platform] // rows)))
    return n - n % config.n_heads if n >= config.n_heads else -(-config.n_heads // -(-config.n_heads // n))


def numbers_per_row(config: ModelConfig, S: int) -> int:
    """How many numbers are alive at once for one row inside a layer, generously."""
    heads = 4 * (config.n_heads + config.n_kv_heads) * config.d_head
    return 6 * config.d_model + heads + 3 * config.d_mlp + 2 * config.n_heads * S
