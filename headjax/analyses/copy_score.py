"""OV copy scores: does a head that attends to a name write that name? (Wang et al. 2022, section 3.1)

The state of the residual stream after the first block, at a name's token, goes through a head's value and
output weights, the final norm and the unembedding; the copy score is the share of names that are then among
the top 5. The negative copy score is the same with the head's output negated.

Which of the details the paper leaves open are chosen how:

- The first block runs whole, attention included, as in the paper's released code (which reads the stream
  after block 0); but on the name alone, as a text of one token, so attention reads that token itself. No
  position embedding is added where positions are learned: a name stands anywhere.
- The head reads the state as it reads any: through its own layer's norm, and its value bias is added. The
  released code does so too (a norm there, with the weights of each layer's norm folded into W_V). b_O is out.
  Where a norm follows attention, its gain is taken at unit scale; logits are not capped: ranks are the same.
- Layer 0's heads are given the same state, although in the model they never see it.
- A name is among the top 5 if fewer than 5 logits are strictly greater than its own.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Bool, Float, Int

from headjax.analyses.base import MAPS, WEIGHTS, Analysis, Coordinates
from headjax.circuits.tables import circuit_for
from headjax.costs import Cost, Machine
from headjax.data.prompt_sets import ioi_names
from headjax.data.prompts import word_tokens
from headjax.engine.batches import Work
from headjax.errors import InputError, shown
from headjax.grid import Coordinate, GridSet
from headjax.inputs import as_array, check_ids
from headjax.kernels import dispatch
from headjax.measures import SUPPRESSION
from headjax.model import (
    Block,
    Norm,
    abstract_block,
    abstract_model,
    fill,
    one_block,
    parameter_shapes,
    scaled_embedding,
    unit_W_O,
    write_names,
)
from headjax.parameters import Parameters, each_layer, unembedding
from headjax.report.drawing import draw_maps, figure_path
from headjax.report.options import Report
from headjax.result import Result
from headjax.study import Data, Study
from headjax.traced import n_bytes_of, shape, trace

TOP_K = 5
HEADS_AT_ONCE = 4  # whose logits of all names are held together


class Readout(NamedTuple):
    """From a residual to logits: the final norm, the unembedding [V D] and its bias [V]."""

    norm: Norm
    rows: Float[Array, "V D"]
    bias: Float[Array, " V"]


class Reader(NamedTuple):
    """What a layer's heads do with a residual: the norm before them, if any, W_V, b_V and W_O, with the gain
    of the norm after attention, if any."""

    norm: Norm | None
    W_V: Float[Array, "D G K"]
    b_V: Float[Array, "G K"]
    W_O: Float[Array, "H K D"]


class CopyWeights(NamedTuple):
    """All that copy scores need of a model; `layers` are read one at a time, in order."""

    embedding: Float[Array, "V D"]
    first_block: Block
    layers: Iterator[Reader]
    readout: Readout


class CopyShares(NamedTuple):
    """Shares of names between 0 and 1, plain and negated."""

    plain: Float[np.ndarray, "L H"]
    suppression: Float[np.ndarray, "L H"]


def copy_weights(parameters: Parameters) -> CopyWeights:
    """All that copy scores need of a model, in float32; a layer is read when its turn comes."""
    config, abstract = parameters.config, abstract_model(parameters.config)
    names = {"embed.W_E", "ln_final.scale", "ln_final.bias", unembedding(config), "unembed.b_U"}
    outer = parameters.read(sorted(names), dtype=jnp.float32)
    of_block = [name for name in parameter_shapes(config) if name.startswith("blocks.")]
    norm = [name for name in of_block if name.startswith("blocks.ln1.")]
    of_layer = (*norm, "blocks.attn.W_V", "blocks.attn.b_V", *write_names(config))
    return CopyWeights(
        scaled_embedding(config, outer["embed.W_E"]),
        one_block(config, parameters.read(of_block, 0, jnp.float32), 0),
        (
            Reader(
                fill(abstract.ln_final, own, "blocks.ln1.") if norm else None,
                *(own[name] for name in ("blocks.attn.W_V", "blocks.attn.b_V")),
                unit_W_O(config, own),
            )
            for own in each_layer(parameters, of_layer, jnp.float32)
        ),
        Readout(
            fill(abstract.ln_final, outer, "ln_final."), outer[unembedding(config)], outer["unembed.b_U"]
        ),
    )


def copy_scores(
    weights: CopyWeights,
    names: Any,
    *,
    top_k: int = TOP_K,
    vocab_size: int | None = None,
    precision: str = "highest",
    track: Callable[[Iterable], Iterable] = iter,
) -> CopyShares:
    """Plain and negative copy scores of every head, over names of one token each: their ids [N].

    `vocab_size` is the tokenizer's: logits of the rows from there on, which no token has, are not counted.
    `track` wraps the layers as they are scored, e.g. a progress bar.

    Raises InputError where there are no names, and for ids that the vocabulary does not have.
    """
    readout, tokens = weights.readout, np.asarray(as_array(names, "names"))
    if tokens.ndim != 1 or tokens.size == 0 or tokens.dtype.kind not in "iu":
        raise InputError(f"copy scores need names of one token each, as their ids; got {shown(names)}")
    check_ids(tokens, "names", min(vocab_size or len(readout.rows), len(readout.rows)))
    if vocab_size is not None and vocab_size < len(readout.rows):
        readout = readout._replace(rows=readout.rows[:vocab_size], bias=readout.bias[:vocab_size])
    tokens = jnp.asarray(tokens, jnp.int32)
    x = first_state(weights.first_block, weights.embedding[tokens])
    hits = [
        np.asarray(_layer_hits(x, reader, readout, tokens, top_k=top_k, precision=precision))
        for reader in track(weights.layers)
    ]
    return CopyShares(*np.moveaxis(np.mean(hits, axis=3, dtype=np.float32), 2, 0))


@dispatch.jit
def first_state(block: Block, x: Float[Array, "N D"]) -> Float[Array, "N D"]:
    """The residual after the first block, each row a text of its own."""
    after, _ = block(x[:, None], jnp.zeros((x.shape[0], 1), jnp.int32), None, None)
    return after[:, 0]


@partial(dispatch.jit, static_argnames=("top_k", "precision"))
def _layer_hits(
    x: Float[Array, "N D"],
    reader: Reader,
    readout: Readout,
    names: Int[Array, " N"],
    *,
    top_k: int,
    precision: str,
) -> Bool[Array, "H 2 N"]:
    """Which names every head of a layer returns, plain and negated."""
    dispatch.note("copy_score", "xla", precision)
    read = x if reader.norm is None else reader.norm(x)
    z = jnp.einsum("nd,dgk->gnk", read, reader.W_V, precision=precision) + reader.b_V[:, None]
    # Query head h reads key/value head h // (H / G).
    z = jnp.repeat(z, reader.W_O.shape[0] // z.shape[0], axis=0)

    def among_top(written: Float[Array, "N D"]) -> Bool[Array, " N"]:
        logits = jnp.matmul(readout.norm(written), readout.rows.T, precision=precision)
        logits += readout.bias[None]
        own = jnp.take_along_axis(logits, names[:, None], axis=1)
        # Written as "not at most", so that NaN makes no hit.
        return jnp.sum(~(logits <= own), axis=1) < top_k

    def one_head(head: tuple[Float[Array, "N K"], Float[Array, "K D"]]) -> Bool[Array, "2 N"]:
        written = jnp.matmul(*head, precision=precision)
        return jnp.stack([among_top(written), among_top(-written)])

    return lax.map(one_head, (z, reader.W_O), batch_size=HEADS_AT_ONCE)


@dataclass(frozen=True, kw_only=True)
class CopyScore(Analysis):
    """Whether each head writes the name it attends to (Wang et al. 2022), plain and negated."""

    kind = "copy_score"
    streams = True

    def reads(self, data: Data) -> frozenset[str]:
        return WEIGHTS | (MAPS - {"report.heat_maps"}) | {"compute.implementation"}

    def needs_model(self, study: Study) -> bool:
        return False

    def check(self, study: Study, before: Coordinates) -> set[Coordinate]:
        ioi_names(study.tokenizer)
        return {Coordinate("copy_score", "ioi_names", sign=sign) for sign in ("", SUPPRESSION)}

    def cost(self, study: Study, machine: Machine) -> Cost:
        """Of all that it holds: it does not need the model."""
        c, N, target = study.config, len(ioi_names(study.tokenizer)), machine.platform
        D, G, H, K, V = c.d_model, c.n_kv_heads, c.n_heads, c.d_head, study.vocab_size
        model, block, x = abstract_model(c), abstract_block(c), shape(N, D)
        reader = Reader(None, shape(D, G, K), shape(G, K), shape(H, K, D))
        given = (x, reader, Readout(model.ln_final, shape(V, D), shape(V)), shape(N, dtype=jnp.int32))
        first = trace(target, first_state, block, x)
        layer = trace(target, _layer_hits, *given, top_k=TOP_K, precision=study.compute.precision)
        n_bytes = n_bytes_of((model.embed, model.unembed, block, reader, reader)) + layer.n_bytes
        programs = frozenset({first.compiled, layer.compiled})
        return Cost(first.flops + c.n_layers * layer.flops, n_bytes, programs)

    def run(self, study: Study, work: Work) -> Result:
        """It takes seconds: a run remembers the whole, not its parts."""
        names = [word_tokens(study.tokenizer, word)[0] for word in ioi_names(study.tokenizer)]
        scores = copy_scores(
            copy_weights(study.parameters),
            names,
            vocab_size=study.vocab_size,
            precision=study.compute.precision,
            track=lambda layers: work.track(layers, study.config.n_layers, "copy scores"),
        )
        signs = (("", scores.plain), (SUPPRESSION, scores.suppression))
        grids = (study.grid("ioi_names", "copy_score", grid, len(names), sign=sign) for sign, grid in signs)
        return Result(GridSet(tuple(grids)))

    def draw(self, name: str, found: Result, report: Report, directory: Path) -> list[Path]:
        """Plain and negated, beside the relation scores of name copying where there are any."""
        files: list[Path] = []
        static = found.grids.select(relation="name_copying", measure="static")
        for model in found.grids.select(analysis=name).values("model"):
            chosen = found.grids.select(analysis=name, model=model) + static.select(model=model)
            marks = [circuit_for(grid.model, grid.relation, report, found) for grid in chosen]
            path = figure_path(directory, self.stem(name, "copy_score"), chosen.grids[:1])
            files += draw_maps(chosen.grids, path, report, marks)
        return files
