"""Salient operations: the tokens that a head amplifies most, and what it maps them to (MAPS).

For head (l, h) every token s of the vocabulary has the amplification ``|x_s W_V W_O| / |x_s|``; those with
the largest are the head's salient tokens, and the largest entries of ``x_s W_V W_O U`` the tokens that s is
mapped to (Elhelo & Geva 2024). x_s is as in relation scores: W_E[s] in layer 0, where the paper's own run
took the first MLP too, and the first MLP's output later. No norm and no bias takes part.

The vocabulary goes by in tiles of tokens, once to be amplified and once to be mapped to, and each tile's best
are merged with the best so far: nothing of the size V x V, or V for every head, is ever held, and nothing is
sorted.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Bool, Float, Int

from headjax import costs
from headjax.analyses.base import WEIGHTS, Analysis, Coordinates
from headjax.analyses.relation_scores import Weights, relation_weights
from headjax.axes import Head
from headjax.costs import Cost, Machine
from headjax.data.prompts import token_text
from headjax.engine.batches import Work
from headjax.errors import InputError
from headjax.grid import Coordinate
from headjax.kernels import dispatch
from headjax.model.edits import check_head
from headjax.options import Words, option
from headjax.parameters import TokenRows
from headjax.report.markdown import markdown_code, markdown_text
from headjax.report.options import Report
from headjax.report.parts import HeadNotes, Part
from headjax.report.table import Page, Table
from headjax.result import Result
from headjax.study import Data, Study
from headjax.traced import n_bytes_of, shape, trace

TILE = 4096  # tokens at a time
ON_CARD = 8  # tokens of a head that its card on the page shows


class SalientTokens(NamedTuple):
    """One head's salient tokens, the most amplified first, and the tokens each is mapped to, best first."""

    tokens: Int[np.ndarray, " n"]
    amplification: Float[np.ndarray, " n"]
    mapped: Int[np.ndarray, "n m"]


def salient_operations(
    weights: Weights,
    *,
    heads: Sequence[Head] = (),
    n_tokens: int = 15,
    n_mapped: int = 5,
    first_mlp: bool = True,
    vocab_size: int | None = None,
    precision: str = "highest",
    track: Callable[[Iterable], Iterable] = iter,
) -> dict[Head, SalientTokens]:
    """Salient tokens of every head, or of the given ones, in (layer, head) order.

    Args:
      weights: as `relation_scores.relation_weights` reads them, a layer at a time.
      n_tokens, n_mapped: how many salient tokens a head, and how many tokens each is mapped to.
      first_mlp: whether x_s of later layers passes through the first MLP.
      vocab_size: rows of the embedding from here on are padding and stand for no token.
      track: wraps the layers as they are done, e.g. a progress bar.

    Raises InputError for a head that the model does not have.
    """
    n_rows = min(vocab_size or len(weights.embedding), len(weights.embedding))
    tiles = _tiles(weights.embedding, n_rows)
    unembed = _tiles(weights.unembed, n_rows)
    n_tokens, n_mapped = min(n_tokens, n_rows), min(n_mapped, n_rows)
    later = tiles._replace(rows=lax.map(weights.first_mlp, tiles.rows)) if first_mlp else tiles
    wanted = _by_layer(heads)
    found = {}
    for layer, (W_V, W_O) in enumerate(track(weights.layers)):
        if wanted is not None and layer > max(wanted):
            break
        if wanted is not None and layer not in wanted:
            continue
        x = tiles if layer == 0 else later
        best = jax.device_get(
            _layer_best(x, W_V, W_O, unembed, n_tokens=n_tokens, n_mapped=n_mapped, precision=precision)
        )
        for head in range(W_O.shape[0]) if wanted is None else wanted[layer]:
            if not 0 <= head < W_O.shape[0]:
                raise InputError(f"heads must exist: a layer has {W_O.shape[0]} heads; got L{layer}H{head}")
            found[Head(layer, head)] = SalientTokens(*(part[head] for part in best))
    if wanted is not None and (missing := [at for at in wanted if not 0 <= at <= layer]):
        raise InputError(f"heads must exist: the model has {layer + 1} layers; got layer {missing[0]}")
    return found


def _by_layer(heads: Sequence[Head]) -> Mapping[int, list[int]] | None:
    """Layer -> its wanted heads; None for all."""
    layers = sorted({layer for layer, _ in heads})
    return {at: sorted({head for layer, head in heads if layer == at}) for at in layers} or None


class _Tiles(NamedTuple):
    """Rows of a matrix, T at a time; the token of each, and whether it is there for the first time."""

    rows: Float[Array, "n T D"]
    tokens: Int[Array, "n T"]
    new: Bool[Array, "n T"]


def _tiles(rows: TokenRows | Float[Array, "V D"], n_rows: int) -> _Tiles:
    size = min(TILE, n_rows)
    starts = np.arange(0, n_rows, size)[:, None]
    # The last tile begins early enough to be full; what it has in common with the one before is not new.
    tokens = np.minimum(starts, n_rows - size) + np.arange(size)
    new = jnp.asarray(tokens >= starts)
    return _Tiles(rows[tokens].astype(jnp.float32), jnp.asarray(tokens, jnp.int32), new)


class _Best(NamedTuple):
    """The largest values so far, best first, and their places among the rows of all tiles."""

    values: Float[Array, "rows n"]
    places: Int[Array, "rows n"]


def _stream(
    measure: Callable[[Float[Array, "T D"]], Float[Array, "rows T"]], tiles: _Tiles, n_rows: int, n: int
) -> _Best:
    """The n largest of `measure` over all tiles, for each of its rows; of equal ones the first."""

    def step(best: _Best, tile: tuple) -> tuple[_Best, None]:
        start, rows, new = tile
        # A tile's own best first, so that only few are compared with those before.
        top, at = lax.top_k(jnp.where(new[None], measure(rows), -jnp.inf), min(n, len(new)))
        values = jnp.concatenate([best.values, top], axis=1)
        places = jnp.concatenate([best.places, start + at], axis=1)
        top, at = lax.top_k(values, n)
        return _Best(top, jnp.take_along_axis(places, at, axis=1)), None

    blank = _Best(jnp.full((n_rows, n), -jnp.inf, jnp.float32), jnp.zeros((n_rows, n), jnp.int32))
    n_tiles, size = tiles.new.shape
    return lax.scan(step, blank, (size * jnp.arange(n_tiles, dtype=jnp.int32), tiles.rows, tiles.new))[0]


@partial(dispatch.jit, static_argnames=("n_tokens", "n_mapped", "precision"))
def _layer_best(
    x: _Tiles,
    W_V: Float[Array, "D G K"],
    W_O: Float[Array, "H K D"],
    unembed: _Tiles,
    *,
    n_tokens: int,
    n_mapped: int,
    precision: str,
) -> tuple[Int[Array, "H n"], Float[Array, "H n"], Int[Array, "H n m"]]:
    """Every head's salient tokens, their amplification and what they are mapped to."""
    dispatch.note("salient_operations", "xla", precision)
    n_heads, _, d_model = W_O.shape
    # Query head h reads key/value head h // (H / G).
    W_V = jnp.repeat(W_V.astype(jnp.float32), n_heads // W_V.shape[1], axis=1)
    W_O = W_O.astype(jnp.float32)
    product = partial(jnp.einsum, precision=precision)
    # |q W_O| = |q R^T| where W_O^T = Q R: K x K numbers a head in place of K x D.
    R = jnp.linalg.qr(jnp.swapaxes(W_O, 1, 2), mode="r")

    def amplification(rows: Float[Array, "T D"]) -> Float[Array, "H T"]:
        written = product("htk,hjk->htj", product("td,dhk->htk", rows, W_V), R)
        before, after = jnp.linalg.norm(rows, axis=1)[None], jnp.linalg.norm(written, axis=2)
        # A row of zeros (a token that was never trained) is amplified by nothing.
        return jnp.where(before > 0, after / jnp.where(before > 0, before, 1.0), 0.0)

    salient = _stream(amplification, x, n_heads, n_tokens)
    rows = x.rows.reshape(-1, d_model)[salient.places]
    written = product("hnk,hkd->hnd", product("hnd,dhk->hnk", rows, W_V), W_O).reshape(-1, d_model)
    mapped = _stream(lambda rows: product("rd,td->rt", written, rows), unembed, len(written), n_mapped)
    tokens, mapped_tokens = x.tokens.ravel()[salient.places], unembed.tokens.ravel()[mapped.places]
    return tokens, salient.values, mapped_tokens.reshape(n_heads, n_tokens, n_mapped)


class SalientRow(NamedTuple):
    """A head, one of its salient tokens, its amplification, and the tokens it is mapped to, best first."""

    model: str
    head: str
    token: str
    amplification: float
    mapped: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class SalientOperations(Analysis):
    """The tokens that each head amplifies most, and what it maps them to.

    Attributes:
      heads: of which heads (`L9H6,L10H0`); empty means all.
      n_tokens: how many tokens of each; n_mapped: how many tokens each is mapped to.
    """

    kind = "salient_operations"
    streams = True
    heads: Words = ()
    n_tokens: int = option(15, least=1)
    n_mapped: int = option(5, least=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        for label in self.heads:
            Head.parse(label)

    def reads(self, data: Data) -> frozenset[str]:
        return WEIGHTS | {"data.first_mlp"}

    def needs_model(self, study: Study) -> bool:
        return False

    def check(self, study: Study, before: Coordinates) -> set[Coordinate]:
        for label in self.heads:
            check_head(Head.parse(label), study.config)
        return set()

    def cost(self, study: Study, machine: Machine) -> Cost:
        layers = {Head.parse(label).layer for label in self.heads} or set(range(study.config.n_layers))
        c, n_rows = study.config, study.vocab_size
        n_tiles, T = -(-n_rows // TILE), min(TILE, n_rows)
        tokens = shape(n_tiles, T, dtype=jnp.int32)
        tiles = _Tiles(shape(n_tiles, T, c.d_model), tokens, shape(n_tiles, T, dtype=bool))
        layer = shape(c.d_model, c.n_kv_heads, c.d_head), shape(c.n_heads, c.d_head, c.d_model)
        how = {"n_tokens": min(self.n_tokens, n_rows), "n_mapped": min(self.n_mapped, n_rows)}
        how["precision"] = study.compute.precision
        best = trace(machine.platform, _layer_best, tiles, *layer, tiles, **how)
        flops, n_bytes = len(layers) * best.flops, best.n_bytes + n_bytes_of((tiles, tiles, layer, layer))
        if study.rule.first_mlp:  # of all tokens, once
            flops += n_tiles * costs.block_mlp(c, T).flops
            n_bytes += n_bytes_of(tiles)
        return Cost(flops, n_bytes, frozenset({best.compiled}))

    def run(self, study: Study, work: Work) -> Result:
        found = salient_operations(
            relation_weights(study.parameters),
            heads=[Head.parse(label) for label in self.heads],
            n_tokens=self.n_tokens,
            n_mapped=self.n_mapped,
            first_mlp=study.rule.first_mlp,
            vocab_size=study.vocab_size,
            precision=study.compute.precision,
            track=lambda layers: work.track(layers, study.config.n_layers, "salient operations"),
        )

        def text(token: np.integer) -> str:
            return token_text(study.tokenizer, int(token))

        rows = (
            SalientRow(
                study.display_name, str(head), text(token), float(amplification), tuple(map(text, mapped))
            )
            for head, salient in found.items()
            for token, amplification, mapped in zip(*salient, strict=True)
        )
        return Result(tables={"salient_operations": tuple(rows)})

    def tables(self, name: str, found: Result, report: Report) -> list[Table | Page]:
        """As JSON, and as a page to read."""
        stem, models = self.stem(name, "salient_operations"), {}
        for row in found.tables.get(stem, ()):
            tokens = models.setdefault(row.model, {}).setdefault(row.head, [])
            tokens.append({"token": row.token, "amplification": row.amplification, "mapped": row.mapped})
        content = json.dumps(models, indent=1, ensure_ascii=False)
        return [Page(f"{stem}.json", content), Page(f"{stem}.md", salient_page(models))] if models else []

    def show(self, name: str, found: Result, report: Report) -> list[Part]:
        """On every head's card its salient tokens."""
        models: dict[str, dict[str, list[tuple]]] = {}
        for row in found.tables.get(self.stem(name, "salient_operations"), ()):
            rows = models.setdefault(row.model, {}).setdefault(row.head, [])
            if len(rows) < ON_CARD:
                rows.append((row.token, row.amplification, row.mapped))
        columns = ("token", "amplified", "mapped to")
        return [
            HeadNotes("Salient tokens", model, columns, {head: tuple(rows) for head, rows in heads.items()})
            for model, heads in models.items()
        ]


def salient_page(models: Mapping[str, Mapping[str, list[dict]]]) -> str:
    """Model -> head -> its tokens as a Markdown page: a table a head."""
    lines = ["# Salient operations", ""]
    lines.append("The tokens whose norm a head's W_V W_O amplifies most, and what each is mapped to.")
    for model, heads in models.items():
        lines += ["", f"## {markdown_text(model)}"]
        for head, tokens in heads.items():
            lines += ["", f"### {head}", "", "| token | amplified | mapped to |", "|---|---|---|"]
            for one in tokens:
                mapped = ", ".join(map(markdown_code, one["mapped"]))
                lines.append(f"| {markdown_code(one['token'])} | {one['amplification']:.3g} | {mapped} |")
    return "\n".join(lines) + "\n"
