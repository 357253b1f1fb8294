"""`vocab_rank` in plain jax.numpy, left to XLA: tiles that stay in the cache, one after the other."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float, Int

# (queries, tokens) of one tile of logits; tokens >= queries. CPU: 2 MiB of logits, which the cores' second
# level caches hold; measured. The others are not measured yet.
TILE = {"cpu": (512, 1024), "gpu": (4096, 16384), "tpu": (4096, 8192)}


class Rows(NamedTuple):
    """C queries of one head and what is known of each so far."""

    x: Float[Array, "*n C K"]
    target: Int[Array, "*n C"]
    cap: Int[Array, "*n C"]
    logit: Float[Array, "*n C"]  # the target's
    above: Int[Array, "*n C"]
    below: Int[Array, "*n C"]
    top: Float[Array, "*n C"]  # greatest logit so far
    total: Float[Array, "*n C"]  # and the sum of exp(logit - top)


def vocab_rank(
    q: Float[Array, "H N K"],
    unembed: Float[Array, "V D"],
    target: Int[Array, " N"],
    *,
    W_O: Float[Array, "H K D"] | None,
    bias: Float[Array, " V"] | None,
    cap: Int[Array, " N"] | None,
    with_lse: bool,
    precision: str | None,
) -> tuple[Array, Array, Array, Array | None]:
    """See `kernels.vocab_rank.api.vocab_rank`."""
    H, N, _ = q.shape
    V = unembed.shape[0]
    n_rows, n_tokens = TILE[jax.default_backend()]
    n_rows, n_tokens = min(n_rows, N, V), min(n_tokens, V)
    n_chunks = -(-N // n_rows)

    def columns(rows: Float[Array, "t D"]) -> Float[Array, "H t K"]:
        """What a query of each head is multiplied with to give the logits of these rows' tokens."""
        if W_O is None:
            return rows[None]
        return _dot("td,hkd->htk", rows, W_O, precision).astype(q.dtype)

    def logits_of(x: Float[Array, "C K"], columns: Float[Array, "t K"], tokens: Int[Array, " t"]) -> Array:
        logits = _dot("ck,tk->ct", x, columns, precision)
        return logits if bias is None else logits + bias[tokens].astype(jnp.float32)[None]

    def per_head_and_chunk(function, rows: Rows, columns: Array) -> Rows:
        """function(rows of one head and chunk, that head's columns), for all of them in turn."""

        def one_head(rows_and_columns):
            rows, columns = rows_and_columns
            return lax.map(lambda rows: function(rows, columns), rows)

        return lax.map(one_head, (rows, columns))

    rows = _chunked(q, target, cap, n_chunks, n_rows)

    def find_own(chunk: Rows) -> Rows:
        """The targets' logits, off the diagonal of a tile like every other."""
        tokens = jnp.pad(chunk.target[0], (0, n_tokens - n_rows))

        def one_head(rows_and_columns):
            rows, columns = rows_and_columns
            return rows._replace(logit=jnp.diagonal(logits_of(rows.x, columns, tokens)))

        return lax.map(one_head, (chunk, columns(unembed[tokens])))

    rows = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), rows)  # chunks first: they share their targets
    rows = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), lax.map(find_own, rows))

    def step(state: tuple[Array, Rows]) -> tuple[Array, Rows]:
        tile, rows = state
        first = jnp.minimum(tile * n_tokens, V - n_tokens)
        tokens = first + jnp.arange(n_tokens, dtype=jnp.int32)
        fresh = tokens >= tile * n_tokens  # the last tile overlaps the one before it
        tile_columns = columns(lax.dynamic_slice_in_dim(unembed, first, n_tokens))

        def count(rows: Rows, columns: Array) -> Rows:
            def counted() -> Rows:
                return _count(rows, logits_of(rows.x, columns, tokens), tokens, fresh, with_lse)

            return counted() if cap is None else lax.cond(_undecided(rows).any(), counted, lambda: rows)

        return tile + 1, per_head_and_chunk(count, rows, tile_columns)

    def unfinished(state: tuple[Array, Rows]) -> Bool[Array, ""]:
        tile, rows = state
        more = tile * n_tokens < V
        return more if cap is None else more & _undecided(rows).any()

    _, rows = lax.while_loop(unfinished, step, (jnp.zeros((), jnp.int32), rows))

    def flat(x: Array) -> Array:
        return x.reshape(H, n_chunks * n_rows)[:, :N]

    lse = flat(rows.top + jnp.log(rows.total)) if with_lse else None
    return flat(rows.above), flat(rows.below), flat(rows.logit), lse


def _chunked(q: Array, target: Array, cap: Array | None, n_chunks: int, n_rows: int) -> Rows:
    """Rows [H chunks C]; the padding of the last chunk is decided from the start."""
    H, N, K = q.shape
    padding = n_chunks * n_rows - N
    shape = (H, n_chunks, n_rows)

    def per_query(x: Array) -> Array:
        return jnp.broadcast_to(jnp.pad(x, (0, padding)).reshape(1, n_chunks, n_rows), shape)

    zeros, counts = jnp.zeros(shape, jnp.float32), jnp.zeros(shape, jnp.int32)
    return Rows(
        x=jnp.pad(q, ((0, 0), (0, padding), (0, 0))).reshape(*shape, K),
        target=per_query(target.astype(jnp.int32)),
        cap=per_query(jnp.zeros(N, jnp.int32) if cap is None else cap.astype(jnp.int32)),
        logit=zeros,
        above=counts,
        below=counts,
        top=jnp.full_like(zeros, -jnp.inf),
        total=zeros,
    )


def _undecided(rows: Rows) -> Bool[Array, "*n C"]:
    return (rows.above < rows.cap) | (rows.below < rows.cap)


def _count(
    rows: Rows,
    logits: Float[Array, "C t"],
    tokens: Int[Array, " t"],
    fresh: Bool[Array, " t"],
    with_lse: bool,
) -> Rows:
    """The rows after one more tile, of which the fresh tokens count."""
    others = fresh[None] & (tokens[None] != rows.target[:, None])
    own = rows.logit[:, None]
    rows = rows._replace(
        above=rows.above + jnp.sum(others & ~(logits <= own), axis=1, dtype=jnp.int32),
        below=rows.below + jnp.sum(others & ~(logits >= own), axis=1, dtype=jnp.int32),
    )
    if with_lse:
        logits = jnp.where(fresh[None], logits, -jnp.inf)
        top = jnp.maximum(rows.top, jnp.max(logits, axis=1))
        total = rows.total * jnp.exp(rows.top - top) + jnp.sum(jnp.exp(logits - top[:, None]), axis=1)
        rows = rows._replace(top=top, total=total)
    return rows


def _dot(equation: str, x: Array, y: Array, precision: str | None) -> Array:
    return jnp.einsum(equation, x, y, precision=precision, preferred_element_type=jnp.float32)
