"""Static relation scores: what each head's weights do to a relation's pairs (Elhelo & Geva 2024, "MAPS").

For head (l, h) and pair (s, t), ``x_s W_V W_O U`` ranks the vocabulary. The pair is a hit if fewer than k
logits are strictly greater than t's; the score is the share of hits, and suppression the same with the
sign turned. x_s is W_E[s] in layer 0 and MLP0(LN2_0(W_E[s])) in later layers: the first block's MLP with
its own norm, output only, without residual and position. No other norm and no bias takes part.

Layers are read and scored one at a time, so a model need not fit in memory; all heads and relations of a
layer are one compiled call, the same for every layer.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from headjax import checkpoint
from headjax.config import ModelConfig
from headjax.model import Transformer, first_mlp
from headjax.prompts import TokenPairs
from headjax.scores import Stage, relation_hits, screening_stages

COPYING = ("copying", "name_copying")
LAYER = ("blocks.attn.W_V", "blocks.attn.W_O")
FIRST_MLP = (
    *("blocks.ln2.scale", "blocks.ln2.bias", "blocks.mlp.W_in", "blocks.mlp.b_in"),
    *("blocks.mlp.W_gate", "blocks.mlp.b_gate", "blocks.mlp.W_out", "blocks.mlp.b_out"),
)


class HitRule(NamedTuple):
    """What counts as a hit: the k of ordinary relations and of copying ones, and where x_s comes from."""

    top_k: int
    top_k_copying: int
    first_mlp: bool

    def k(self, relation: str) -> int:
        """The k of a relation, by its id."""
        return self.top_k_copying if relation in COPYING else self.top_k


def published_rule(config: ModelConfig) -> HitRule:
    """The rule that the published scores of this model were made with.

    Llama 3 has larger k for its larger vocabulary; its 70B takes W_E[s] itself in every layer.
    """
    if config.family == "llama" and config.vocab_size >= 128_000:
        return HitRule(top_k=25, top_k_copying=3, first_mlp=config.n_layers < 80)
    return HitRule(top_k=10, top_k_copying=1, first_mlp=True)


class Weights(NamedTuple):
    """All that static scores need of a model.

    Attributes:
      embedding: x_s of layer 0 for token ids [N]: [N D].
      first_mlp: x_s of the later layers from that of layer 0.
      unembed: [V D], one row a token.
      layers: W_V [D G K] and W_O [H K D] of every layer, in order.
    """

    embedding: Float[Array, "V D"]
    first_mlp: Callable[[Float[Array, "N D"]], Float[Array, "N D"]]
    unembed: Float[Array, "V D"]
    layers: Iterator[tuple[Float[Array, "D G K"], Float[Array, "H K D"]]]


class RelationScores(NamedTuple):
    """Shares of hits between 0 and 1, in the order of the relations given."""

    plain: Float[np.ndarray, "R L H"]
    suppression: Float[np.ndarray, "R L H"]


def model_weights(model: Transformer) -> Weights:
    """The weights of a model in memory."""
    attn, config = model.blocks.attn, model.config
    block = jax.tree.map(lambda leaf: leaf[0], model.blocks)
    layers = ((attn.W_V[layer], attn.W_O[layer]) for layer in range(config.n_layers))
    return Weights(model.W_E, lambda x: block.mlp(block.ln2(x)), model.unembed_rows, layers)


def checkpoint_weights(directory: Path, config: ModelConfig) -> Weights:
    """The weights of a converted checkpoint, read when they are needed; all others stay on disk."""
    read = partial(checkpoint.read_layer, directory, dtype=jnp.float32)
    outer = ("embed.W_E",) if config.tied_embeddings else ("embed.W_E", "unembed.rows")
    outer = checkpoint.read_parameters(directory, outer, dtype=jnp.float32)

    def mlp_output(x: Float[Array, "N D"]) -> Float[Array, "N D"]:
        names = [name for name in FIRST_MLP if config.gated_mlp or not name.endswith("_gate")]
        norm, mlp = first_mlp(config, read(0, names))
        return mlp(norm(x))

    layers = (itemgetter(*LAYER)(read(layer, LAYER)) for layer in range(config.n_layers))
    return Weights(outer["embed.W_E"], mlp_output, outer.get("unembed.rows", outer["embed.W_E"]), layers)


def relation_scores(
    weights: Weights,
    pairs: Sequence[TokenPairs],
    rule: HitRule,
    *,
    precision: str = "highest",
    seed: int = 0,
    track: Callable[[Iterable], Iterable] = iter,
) -> RelationScores:
    """Plain and suppression scores of every head for every relation.

    Args:
      pairs: one entry a relation, none of them empty.
      precision: of matrix products; hits are exact at "highest".
      seed: of the tokens that are screened first; changes no result.
      track: wraps the layers as they are scored, e.g. a progress bar.
    """
    sources, source = np.unique(np.concatenate([p.sources for p in pairs]), return_inverse=True)
    targets = np.concatenate([p.targets for p in pairs])
    relation = np.repeat(np.arange(len(pairs)), [len(p.sources) for p in pairs])
    k = jnp.asarray([rule.k(p.relation.id) for p in pairs], jnp.int32)[relation]
    stages = screening_stages(weights.unembed, targets, seed=seed)
    x = weights.embedding[sources].astype(jnp.float32)
    x_later = weights.first_mlp(x) if rule.first_mlp else x

    score = partial(_layer_hits, n_relations=len(pairs), precision=precision)
    hits = []
    for W_V, W_O in track(weights.layers):
        hits.append(score(x, W_V, W_O, stages, jnp.asarray(source), jnp.asarray(relation), k))
        x = x_later
    counts = np.bincount(relation, minlength=len(pairs))[None, :, None, None]
    shares = np.moveaxis(np.asarray(hits), 0, 2) / counts  # [plain or suppression, R, L, H]
    return RelationScores(*shares.astype(np.float32))


@partial(jax.jit, static_argnames=("n_relations", "precision"))
def _layer_hits(
    x: Float[Array, "N_sources D"],
    W_V: Float[Array, "D G K"],
    W_O: Float[Array, "H K D"],
    stages: tuple[Stage, ...],
    source: Int[Array, "N"],
    relation: Int[Array, "N"],
    k: Int[Array, "N"],
    *,
    n_relations: int,
    precision: str,
) -> Int[Array, "2 R H"]:
    """Number of hits of each relation and head of one layer, plain and suppression."""
    q = head_queries(x, W_V, W_O.shape[0], source, precision)
    hits = relation_hits(q, W_O, stages, k, precision)
    return jnp.stack([jax.ops.segment_sum(kind.T.astype(jnp.int32), relation, n_relations) for kind in hits])


def head_queries(
    x: Float[Array, "N_sources D"],
    W_V: Float[Array, "D G K"],
    n_heads: int,
    source: Int[Array, "N"],
    precision: str = "highest",
) -> Float[Array, "H N K"]:
    """x_s W_V of every head for every pair, whose x_s is row ``source[n]`` of x.

    Each distinct source is projected once, in rank d_head: never a D x D matrix.
    """
    values = jnp.einsum("nd,dgk->gnk", x, W_V.astype(jnp.float32), precision=precision)
    # Query head h reads key/value head h // (H / G).
    return jnp.repeat(values, n_heads // W_V.shape[1], axis=0)[:, source]
