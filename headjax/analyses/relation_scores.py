"""Static relation scores: what each head's weights do to a relation's pairs (Elhelo & Geva 2024, "MAPS").

For head (l, h) and pair (s, t), ``x_s W_V W_O U`` ranks the vocabulary. The pair is a hit if fewer than k
logits are strictly greater than t's; the score is the share of hits, and suppression the same with the
sign turned. x_s is W_E[s] in layer 0 and MLP0(LN2_0(W_E[s])) in later layers: the first block's MLP with
its own norm, output only, without residual and position. No other norm and no bias takes part, with one
exception: where a norm follows the MLP, x_s has passed it, and where one follows attention, W_O has its gain.
That norm's scale, one positive number a position, changes no rank, and is left out.

Layers are read and scored one at a time, so a model need not fit in memory; all heads and relations of a
layer are one compiled call, the same for every layer. On a mesh the heads are dealt out to all devices, those
of several layers at once where the heads of one do not divide evenly, and no device waits for another.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import islice
from math import gcd
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Bool, Float, Int

from headjax import costs, figures
from headjax.analyses.base import (
    CATEGORIES,
    DEVICES,
    MAPS,
    RELATIONS,
    WEIGHTS,
    Analysis,
    Coordinates,
    check_top_k,
    hit_fields,
)
from headjax.circuits.tables import circuit_for, with_prediction
from headjax.config import ModelConfig
from headjax.costs import Cost, Machine
from headjax.data.hit_rule import HitRule
from headjax.data.prompts import TokenPairs
from headjax.engine.batches import Remember, Work, compute_anew
from headjax.engine.hits import Stages, relation_hits, screening_stages, token_rows
from headjax.engine.mesh import WHOLE, fetch, place
from headjax.errors import InputError
from headjax.grid import Coordinate, GridSet
from headjax.inputs import check_ids
from headjax.kernels import dispatch
from headjax.measures import SUPPRESSION
from headjax.model import Block, first_mlp, first_mlp_names, scaled_embedding, unit_W_O, write_names
from headjax.parameters import Parameters, TokenRows, each_layer, unembedding
from headjax.report.category_table import HeadCategories, category_table
from headjax.report.drawing import chosen_grids, figure_path
from headjax.report.options import Report
from headjax.report.parts import CategoryMap, Part
from headjax.report.table import Page, Table
from headjax.result import Result
from headjax.study import Data, Study

# W_V and W_O of one layer.
Layer = tuple[Float[Array | np.ndarray, "D G K"], Float[Array | np.ndarray, "H K D"]]


class Weights(NamedTuple):
    """All that static scores need of a model.

    Attributes:
      embedding: x_s of layer 0. It is only ever indexed with token ids, so it may be anything that reads
        rows, [N] ids for [N D].
      first_mlp: x_s of the later layers from that of layer 0.
      unembed: [V D], one row a token; as stored, or the bits of bfloat16 (`headjax.engine.hits.token_rows`).
      layers: W_V [D G K] and W_O [H K D] of every layer, in order; W_O with the gain of the norm after
        attention, where there is one.
    """

    embedding: TokenRows | Float[Array, "V D"]
    first_mlp: Callable[[Float[Array, "N D"]], Float[Array, "N D"]]
    unembed: Float[Array, "V D"]
    layers: Iterator[Layer]


class HitShares(NamedTuple):
    """Shares of hits between 0 and 1, in the order of the relations given."""

    plain: Float[np.ndarray, "R L H"]
    suppression: Float[np.ndarray, "R L H"]


def relation_weights(parameters: Parameters) -> Weights:
    """What static scores need of a model, read when it is needed: of everything else nothing is read.

    W_V and W_O of each layer come in the dtype they are stored in, a layer ahead; the first block's MLP with
    its norm only if it is asked for.
    """
    config = parameters.config
    unembed = token_rows(parameters.read((unembedding(config),))[unembedding(config)])

    def mlp_output(x: Float[Array, "N D"]) -> Float[Array, "N D"]:
        block = first_mlp(config, parameters.read(first_mlp_names(config), 0, jnp.float32))
        return _mlp_output(block, scaled_embedding(config, x))

    layers = (
        (own["blocks.attn.W_V"], unit_W_O(config, own)) for own in each_layer(parameters, layer_names(config))
    )
    return Weights(TokenRows(parameters, "embed.W_E"), mlp_output, unembed, layers)


@dispatch.jit
def _mlp_output(block: Block, x: Float[Array, "N D"]) -> Float[Array, "N D"]:
    return block.mlp_write(x)


def layer_names(config: ModelConfig) -> tuple[str, ...]:
    """The parameters of a layer that relation scores read."""
    return ("blocks.attn.W_V", *write_names(config))


def relation_scores(
    weights: Weights,
    pairs: Sequence[TokenPairs],
    rule: HitRule,
    *,
    precision: str = "highest",
    implementation: str | None = None,
    seed: int = 0,
    vocab_size: int | None = None,
    mesh: Mesh | None = None,
    track: Callable[[Iterable], Iterable] = iter,
    remember: Remember = compute_anew,
) -> HitShares:
    """Plain and suppression scores of every head for every relation.

    Args:
      pairs: one entry a relation, none of them empty.
      precision: of matrix products; hits are exact at "highest".
      implementation: of the kernel that ranks (see `relation_hits`); None: screening in XLA.
      seed: of the tokens that are screened first; changes no result.
      vocab_size: the tokenizer's. Rows of the unembedding from here on are padding, which no token has and
        training never met: they take no part in the ranking. The published code ranks them too. None: all
        rows are tokens.
      mesh: the devices to deal the heads to; JAX's default device where None.
      track: wraps the layers as they are scored, e.g. a progress bar; remember: asked for each, or, on a
        mesh, for as many as are scored together.

    Raises InputError for a relation without pairs, and for words whose tokens the vocabulary does not have.
    """
    if not pairs or not all(len(p.sources) for p in pairs):
        raise InputError("relation scores need pairs of words, at least one a relation; got none")
    check_ids(np.concatenate([p.sources for p in pairs]), "sources", len(weights.unembed))
    sources, source = np.unique(np.concatenate([p.sources for p in pairs]), return_inverse=True)
    targets = np.concatenate([p.targets for p in pairs])
    relation = np.repeat(np.arange(len(pairs)), [len(p.sources) for p in pairs])
    k = np.asarray([rule.k(p.relation.id) for p in pairs], np.int32)[relation]
    x = weights.embedding[sources].astype(jnp.float32)
    x_later = weights.first_mlp(x) if rule.first_mlp else x
    stages = screening_stages(weights.unembed, targets, seed=seed, vocab_size=vocab_size)

    shared = (jnp.stack([x, x_later]), stages, source.astype(np.int32), relation.astype(np.int32), k)
    if mesh is not None:
        shared = jax.tree.map(lambda values: place(values, mesh, WHOLE), shared)
    score = compile_scores(mesh, len(pairs), precision, implementation)

    def run(layers: list[Layer], first: int) -> Int[np.ndarray, "2 R heads"]:
        n_layers, n_heads = len(layers), len(layers[0][1])
        later = np.repeat(np.arange(first, first + n_layers) > 0, n_heads)
        return fetch(score(*deal_heads(layers, later, mesh), *shared))[:, :, : n_layers * n_heads]

    hits: list[Int[np.ndarray, "2 R H"]] = []
    for layers in _blocks(iter(track(weights.layers)), mesh):
        counts = remember(f"layers {len(hits)} + {len(layers)}", partial(run, layers, len(hits)))
        hits += np.split(counts, len(layers), axis=2)
    counts = np.bincount(relation, minlength=len(pairs))[None, :, None, None]
    shares = np.stack(hits, axis=2) / counts  # [plain or suppression, R, L, H]
    return HitShares(*shares.astype(np.float32))


def _blocks(layers: Iterator[Layer], mesh: Mesh | None) -> Iterator[list[Layer]]:
    """As many layers at a time as have a number of heads that the devices divide; fewer at the end."""
    for first in layers:
        n_devices, n_heads = mesh.size if mesh else 1, len(first[1])
        yield [first, *islice(layers, n_devices // gcd(n_heads, n_devices) - 1)]


class Dealt(NamedTuple):
    """Heads of one or several layers, C for each device; U neighbours of them read one key/value head.

    Attributes:
      W_V: [units D K], one for U heads.
      W_O: [heads K D].
      later: [units], False for those of layer 0.
    """

    W_V: Float[Array | np.ndarray, "units D K"]
    W_O: Float[Array | np.ndarray, "heads K D"]
    later: Bool[Array | np.ndarray, " units"]


def deal_heads(layers: Sequence[Layer], later: Bool[np.ndarray, " heads"], mesh: Mesh | None) -> Dealt:
    """The heads of these layers, in order, as many to each device."""
    n_groups, n_heads = layers[0][0].shape[1], len(layers[0][1])
    if mesh is None:
        ((W_V, W_O),) = layers
        return Dealt(jnp.moveaxis(W_V, 1, 0), W_O, later[:n_groups])
    W_V = np.concatenate([np.moveaxis(np.asarray(W_V), 1, 0) for W_V, _ in layers])
    W_O = np.concatenate([np.asarray(W_O) for _, W_O in layers])
    per_group, per_device = n_heads // n_groups, -(-len(W_O) // mesh.size)
    # Heads that are only there to give every device as many are the first ones again.
    head = np.arange(per_device * mesh.size) % len(W_O)
    # Where a device's heads do not end with a key/value head, that one goes to several devices.
    reader = head[:: gcd(per_group, per_device)]
    parts = W_V[reader // per_group], W_O[head], later[reader]
    return Dealt(*(place(part, mesh, P(mesh.axis_names)) for part in parts))


@lru_cache(maxsize=16)
def compile_scores(
    mesh: Mesh | None, n_relations: int, precision: str, implementation: str | None = None
) -> Callable[..., Int[Array, "2 R heads"]]:
    """The jitted `_hits_of_heads`, on every device of the mesh for the heads that it was dealt."""
    step = partial(
        _hits_of_heads, n_relations=n_relations, precision=precision, implementation=implementation
    )
    if mesh is not None:
        heads = P(mesh.axis_names)
        in_specs = (heads, heads, heads, WHOLE, WHOLE, WHOLE, WHOLE, WHOLE)
        out_specs = P(None, None, mesh.axis_names)
        step = jax.shard_map(step, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)
    return dispatch.jit(step)


def _hits_of_heads(
    W_V: Float[Array, "units D K"],
    W_O: Float[Array, "heads K D"],
    later: Bool[Array, " units"],
    x: Float[Array, "2 N_sources D"],
    stages: Stages,
    source: Int[Array, " N"],
    relation: Int[Array, " N"],
    k: Int[Array, " N"],
    *,
    n_relations: int,
    precision: str,
    implementation: str | None,
) -> Int[Array, "2 R heads"]:
    """Number of hits of each relation and head, plain and suppression; x in layer 0 and in later ones."""
    q = head_queries(x[1], W_V, len(W_O), source, precision)
    first = jnp.repeat(~later, len(W_O) // len(W_V))[:, None, None]
    q = lax.cond(
        later.all(),
        lambda: q,
        lambda: jnp.where(first, head_queries(x[0], W_V, len(W_O), source, precision), q),
    )
    hits = relation_hits(q, W_O, stages, k, precision, implementation)
    return jnp.stack([jax.ops.segment_sum(kind.T.astype(jnp.int32), relation, n_relations) for kind in hits])


def head_queries(
    x: Float[Array, "N_sources D"],
    W_V: Float[Array, "G D K"],
    n_heads: int,
    source: Int[Array, " N"],
    precision: str = "highest",
) -> Float[Array, "H N K"]:
    """x_s W_V of every head for every pair, whose x_s is row ``source[n]`` of x.

    Each distinct source is projected once, in rank d_head: never a D x D matrix.
    """
    values = jnp.einsum("nd,gdk->gnk", x, W_V.astype(jnp.float32), precision=precision)
    # Query head h reads key/value head h // (H / G).
    return jnp.repeat(values, n_heads // len(W_V), axis=0)[:, source]


@dataclass(frozen=True, kw_only=True)
class RelationScores(Analysis):
    """Static relation scores and suppression, read off the weights a layer at a time; no forward pass."""

    kind = "relation_scores"
    streams = True

    def reads(self, data: Data) -> frozenset[str]:
        shown = MAPS | CATEGORIES | {"report.count_suppression", "report.several"}
        return RELATIONS | hit_fields(data) | WEIGHTS | DEVICES | shown | {"data.first_mlp"}

    def needs_model(self, study: Study) -> bool:
        return False

    def check(self, study: Study, before: Coordinates) -> set[Coordinate]:
        check_top_k(study)
        return {
            Coordinate("static", pairs.relation.id, sign=sign)
            for sign in ("", SUPPRESSION)
            for pairs in study.pairs
        }

    def cost(self, study: Study, machine: Machine) -> Cost:
        sources, targets = (
            np.concatenate([getattr(pairs, side) for pairs in study.pairs]) for side in ("sources", "targets")
        )
        sizes = (len(targets), len(np.unique(sources)), len(np.unique(targets)))
        return costs.relation_scores(study.config, *sizes, study.rule.first_mlp, machine.platform)

    def run(self, study: Study, work: Work) -> Result:
        scores = relation_scores(
            relation_weights(study.parameters),
            study.pairs,
            study.rule,
            precision=study.compute.precision,
            implementation=study.compute.implementation,
            seed=study.seed,
            vocab_size=study.vocab_size,
            mesh=study.mesh,
            track=lambda layers: work.track(layers, study.config.n_layers, "relation scores"),
            remember=work.remember,
        )
        grids = (
            study.grid(pairs.relation.id, "static", of_sign[r], len(pairs.words), sign=sign)
            for sign, of_sign in (("", scores.plain), (SUPPRESSION, scores.suppression))
            for r, pairs in enumerate(study.pairs)
        )
        return Result(GridSet(tuple(grids)))

    def tables(self, name: str, found: Result, report: Report) -> list[Table | Page]:
        """Which categories each head has, where it has any."""
        grids = found.grids.select(analysis=name)
        rows = category_table(grids, report.threshold, report.count_suppression)
        return [Table(self.stem(name, "head_categories"), HeadCategories._fields, rows)] if rows else []

    def show(self, name: str, found: Result, report: Report) -> list[Part]:
        return [CategoryMap("Categories", name)]

    def draw(self, name: str, found: Result, report: Report, directory: Path) -> list[Path]:
        """The map of head categories over all models, and the chosen relations of each with marks."""
        grids = found.grids.select(analysis=name)
        files = [
            *figures.category_map(
                grids,
                directory / self.stem(name, "category_map"),
                threshold=report.threshold,
                count_suppression=report.count_suppression,
                origin=report.origin,
            )
        ]
        for model in grids.values("model"):
            chosen = chosen_grids(grids.select(model=model, measure="static", sign=""), report)
            circuits = [circuit_for(grid.model, grid.relation, report, found) for grid in chosen]
            marked = [
                circuit and with_prediction(circuit, grid)
                for circuit, grid in zip(circuits, chosen, strict=True)
            ]
            files += figures.relation_heat_map(
                chosen,
                figure_path(directory, self.stem(name, "relations"), chosen),
                circuits=marked if any(circuits) or report.circuits else None,
                orientation=report.orientation,
                origin=report.origin,
            )
        return files
