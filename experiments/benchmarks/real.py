"""Benchmark of every sweep on a model's own weights, against torch code, a head at a time.

    python -m experiments.bench real --model DIRECTORY

The usual way is timed for a sample (heads, or relations) and scaled to all; ours whole, its preparation
included. Both are float32 with as many threads, and torch makes the logits of the last position alone. What
both find is compared before a time is printed: numbers relative to the largest, and how many hits each head
has in each relation, but for ties within rounding. It also says how many pairs are hits and how many pass
each stage of relation scores: real weights have crowded heads, random ones have not.
"""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch

import headjax
from experiments.benchmarks.measure import matmul_rate, seconds, usable_cores
from experiments.benchmarks.static import Inside, look_inside
from experiments.torch_model import Edit, TorchModel, hugging_face_files, ranked, scaled, ties
from headjax.analyses.base import rows_by_relation
from headjax.analyses.dynamic_scores import SCORES, DynamicShares, dynamic_scores
from headjax.analyses.gradient_attribution import gradient_attribution
from headjax.analyses.head_ablation import head_ablation, single_gains
from headjax.analyses.path_patching import PatchedPaths, Receiver, direct_effects, path_patching
from headjax.analyses.relation_scores import head_queries, relation_scores, relation_weights
from headjax.axes import Head
from headjax.data.prompts import PromptBatch
from headjax.engine.curves import cumulative_gains, take_prompts
from headjax.engine.hits import screening_stages
from headjax.engine.replacement import find_replacement
from headjax.engine.variants import run_variants
from headjax.errors import InputError
from headjax.report.table import aligned
from headjax.study import Study

N_SAMPLED = 4  # heads of the usual way, the first of which warms up
N_PROMPTS = 24
N_PAIRS = 12  # of dynamic scores, of each relation
CURVE = 12  # heads that a curve removes
REPEATS = 3
ALLOWED = 2e-4  # of the largest number: float32 through tens of layers, in two orders of summation


class Race(NamedTuple):
    """One sweep both ways.

    Attributes:
      of: what it is a sweep over, in words.
      n_items: how many items the usual way takes one after the other: heads, as a rule.
      items: those of them that are timed.
      usual: what it finds for one item.
      ours: finds them all; `pick` takes an item's out of it.
      differ: how far an item's are apart, and what that may be.
    """

    name: str
    of: str
    n_items: float
    items: Sequence[Any]
    usual: Callable[[Any], Any]
    ours: Callable[[], Any]
    pick: Callable[[Any, Any], Any]
    differ: Callable[[Any, Any], tuple[float, float]]


class Times(NamedTuple):
    """Seconds of all items, and the largest difference found."""

    usual: float
    ours: float
    difference: float


def run_race(race: Race) -> Times:
    """Times and compares. Raises AssertionError where numbers differ by more than they may."""
    found = race.ours()  # compiles
    worst, usual, ours = 0.0, [], []
    for item in race.items:  # in turn, so that whatever else the machine does meets both
        theirs: list[Any] = []
        usual.append(seconds(lambda: theirs.append(race.usual(item))))  # noqa: B023
        ours.append(seconds(race.ours))
        difference, allowed = race.differ(race.pick(found, item), theirs[0])
        assert difference <= allowed, (
            f"{race.name}, {item}: differs by {difference:.1e}; allowed {allowed:.1e}"
        )
        worst = max(worst, difference)
    # The first of the usual way warms up.
    return Times(race.n_items * statistics.mean(usual[1:]), statistics.median(ours), worst)


def relative(ours: Any, theirs: Any, least: float = 0.0) -> tuple[float, float]:
    """The largest difference of numbers, relative to the largest of them, or to `least`."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    return float(np.abs(ours - theirs).max() / max(least, np.abs(theirs).max())), ALLOWED


# --- relation scores --------------------------------------------------------------------------------


def relation_race(study: Study, theirs: TorchModel) -> Race:
    """All relations of a head: W_V W_O, the sources through it, their logits, and their first and last k."""
    pairs, rule = study.pairs, study.rule
    unembed = theirs.model.get_output_embeddings().weight[: study.vocab_size].T.contiguous()
    embed = theirs.model.get_input_embeddings()
    targets = [torch.tensor(np.asarray(one.targets)).long() for one in pairs]
    x = [embed(torch.tensor(np.asarray(one.sources)).long()) for one in pairs]
    later = list(map(theirs.first_mlp, x)) if rule.first_mlp else x

    def logits(head: Head, r: int) -> torch.Tensor:
        of_head = theirs.W_V(head) @ theirs.written(head, torch.eye(theirs.W_V(head).shape[1]))
        return (x if head.layer == 0 else later)[r] @ of_head @ unembed

    def usual(head: Head) -> list[torch.Tensor]:
        return [ranked(logits(head, r), targets[r], rule.k(one.relation.id)) for r, one in enumerate(pairs)]

    def ours() -> np.ndarray:
        weights = relation_weights(study.parameters)
        return np.stack(relation_scores(weights, pairs, rule, vocab_size=study.vocab_size, seed=study.seed))

    def pick(shares: np.ndarray, head: Head) -> tuple[Head, np.ndarray]:
        return head, shares[:, :, head.layer, head.head]

    def differ(found: tuple[Head, np.ndarray], hits: list[torch.Tensor]) -> tuple[float, float]:
        """Hits in each relation that no tie explains."""
        head, shares = found
        beyond = 0
        for r, one in enumerate(pairs):
            n_hits = np.rint(shares[:, r] * len(one.sources))
            apart = np.abs(n_hits - hits[r].sum(1).numpy())
            if apart.any():
                tied = ties(logits(head, r), targets[r], rule.k(one.relation.id)).sum(1).numpy()
                beyond += int(np.maximum(apart - tied, 0).sum())
        return float(beyond), 0.0

    n_pairs = sum(len(one.sources) for one in pairs)
    return Race(
        "relation scores",
        f"{n_pairs} pairs of {len(pairs)} relations",
        *sampled(study),
        usual,
        ours,
        pick,
        differ,
    )


def look_at_layers(study: Study) -> list[Inside]:
    """What relation scores find and do in every layer."""
    weights, pairs, rule = relation_weights(study.parameters), study.pairs, study.rule
    targets = np.concatenate([one.targets for one in pairs])
    stages = screening_stages(weights.unembed, targets, seed=study.seed, vocab_size=study.vocab_size)
    k = np.concatenate([np.full(len(one.sources), rule.k(one.relation.id), np.int32) for one in pairs])
    sources = np.concatenate([one.sources for one in pairs])
    x, n_sources = weights.embedding[sources].astype(jnp.float32), len(np.unique(sources))
    later = weights.first_mlp(x) if rule.first_mlp else x
    found = []
    for layer, (W_V, W_O) in enumerate(weights.layers):
        W_V = jnp.moveaxis(jnp.asarray(W_V, jnp.float32), 1, 0)
        q = head_queries(later if layer else x, W_V, len(W_O), jnp.arange(len(k)))
        found.append(look_inside(q, jnp.asarray(W_O, jnp.float32), stages, jnp.asarray(k), n_sources))
    return found


# --- prompts ----------------------------------------------------------------------------------------


def some(rows: np.ndarray, n: int) -> np.ndarray:
    """At most n of the rows, from the first to the last."""
    return rows[np.unique(np.linspace(0, len(rows) - 1, n).astype(int))]


def dynamic_race(study: Study, theirs: TorchModel) -> Race:
    """A relation at a time, its sources in all templates: two forwards, and for every head z and the source's
    value to logits, whose first and last k are sorted out.

    In the second forward every head attends to the source alone, so that its z is the source's value; that is
    read off a usual forward pass, which takes as long.
    """
    whole = study.template_batch()
    n = N_PAIRS * len({prompt.template for prompt in whole.prompts})
    batch = take_prompts(whole, np.concatenate([some(rows, n) for rows in rows_by_relation(whole).values()]))
    of_relation = rows_by_relation(batch)
    top_k = np.array([study.rule.k(prompt.relation) for prompt in batch.prompts], np.int32)
    unembed = theirs.model.get_output_embeddings().weight[: study.vocab_size].T.contiguous()

    def judge(relation: str, judged: Callable[..., torch.Tensor]) -> np.ndarray:
        """What is said of every prompt [4 B L H]: with and without context, plain and suppression."""
        part, k = take_prompts(batch, of_relation[relation]), study.rule.k(relation)
        targets, sources = (torch.tensor(array).long() for array in (part.answers, part.sources))
        free, forced = (theirs.run(part, logits_to_keep=1) for _ in range(2))
        found = np.zeros((4, len(targets), len(theirs.layers), theirs.n_heads), bool)
        for layer in range(len(theirs.layers)):
            of_source = forced.values[layer][torch.arange(len(targets)), sources]
            for head in range(theirs.n_heads):
                for i, z in enumerate((free.z[layer][:, -1, head], of_source[:, head])):
                    logits = theirs.written(Head(layer, head), z) @ unembed
                    found[2 * i : 2 * i + 2, :, layer, head] = judged(logits, targets, k)
        return found

    def pick(found: DynamicShares, relation: str) -> tuple[str, np.ndarray]:
        """Its hits [4 L H], of all templates."""
        own = [i for i, (of, _) in enumerate(found.groups) if of == relation]
        return relation, sum(
            np.stack([found.scores[score][i] for score in SCORES]) * found.n_prompts[i] for i in own
        )

    def differ(found: tuple[str, np.ndarray], hits: np.ndarray) -> tuple[float, float]:
        relation, n_hits = found
        apart = np.abs(np.rint(n_hits) - hits.sum(axis=1))
        tied = judge(relation, ties).sum(axis=1) if apart.any() else 0
        return float(np.maximum(apart - tied, 0).sum()), 0.0

    full = [relation for relation, rows in of_relation.items() if len(rows) == n]
    return Race(
        "dynamic scores",
        f"{len(top_k)} prompts",
        len(top_k) / n,
        full[:: -(-len(full) // REPEATS)],
        lambda relation: judge(relation, ranked),
        lambda: dynamic_scores(study.model, batch, top_k, vocab_size=study.vocab_size),
        pick,
        differ,
    )


def ablation_race(study: Study, theirs: TorchModel, prompts: PromptBatch) -> Race:
    """One forward a head, without it at the last position."""
    largest = float(theirs.logprob(prompts).abs().max())  # effects are differences of numbers of this size

    def usual(head: Head) -> torch.Tensor:
        gains = torch.ones(len(theirs.layers), len(prompts.tokens), theirs.n_heads)
        gains[head.layer, :, head.head] = 0
        return theirs.logprob(prompts, scaled(gains))

    return Race(
        "head ablation, last position",
        shape_of(prompts),
        *sampled(study),
        usual,
        lambda: head_ablation(study.model, prompts).ablated.logprob,
        lambda found, head: found[head],
        partial(relative, least=largest),
    )


def gradient_race(study: Study, theirs: TorchModel, prompts: PromptBatch) -> Race:
    """One forward and one backward for all heads."""

    def usual(_: None) -> torch.Tensor:
        with torch.enable_grad():
            shape = (len(theirs.layers), len(prompts.tokens), theirs.n_heads)
            gains = torch.ones(shape, requires_grad=True)
            (found,) = torch.autograd.grad(theirs.logprob(prompts, scaled(gains)).sum(), gains)
        return found.permute(1, 0, 2)

    return Race(
        "gradient attribution",
        shape_of(prompts),
        1,
        [None] * REPEATS,
        usual,
        lambda: gradient_attribution(study.model, prompts).effects,
        lambda found, _: found,
        relative,
    )


def path_races(study: Study, theirs: TorchModel) -> list[Race]:
    """Wang et al. 2022, appendix B: one forward a sender to the logits, two into a receiver's queries."""
    try:
        (batch,) = study.twin_batches("ioi").values()
    except InputError as error:  # a tokenizer without the names
        print(f"no path patching: {error}")
        return []
    batch = take_prompts(batch, np.arange(min(N_PROMPTS, len(batch.tokens))))
    clean, corrupted = (
        theirs.run(one, logits_to_keep=1) for one in (batch, replace(batch, tokens=batch.corrupted))
    )
    at = torch.arange(len(batch.tokens))
    asked = tuple(torch.tensor(tokens).long() for tokens in (batch.answers, batch.distractors))

    def difference(logits: torch.Tensor) -> torch.Tensor:
        return logits[at, asked[0]] - logits[at, asked[1]]

    largest = float(difference(clean.logits[:, -1]).abs().max())

    def send(sender: Head) -> Edit:
        """Every head writes what it does in the clean run, but for the sender."""

        def edit(layer: int, _: torch.Tensor) -> torch.Tensor:
            z = clean.z[layer]
            if layer == sender.layer:
                z = z.clone()
                z[:, -1, sender.head] = corrupted.z[layer][:, -1, sender.head]
            return z

        return edit

    def direct(sender: Head) -> torch.Tensor:
        z = (run.z[sender.layer][:, -1] for run in (corrupted, clean))
        written = [theirs.written(sender, one[:, sender.head], one) for one in z]
        final = theirs.final_norm(clean.final + written[0] - written[1])
        return difference(theirs.model.get_output_embeddings()(final))

    def race(
        name: str, usual: Callable[[Head], torch.Tensor], ours: Callable[[], PatchedPaths], top: int
    ) -> Race:
        how = (usual, ours, lambda found, head: found.patched[head], partial(relative, least=largest))
        return Race(name, shape_of(batch), *sampled(study, top), *how)

    L = study.config.n_layers
    races = [
        race("direct effects", direct, lambda: direct_effects(study.model, batch), L),
        race(
            "path patching to the logits",
            lambda sender: difference(theirs.logits(batch, send(sender))),
            lambda: path_patching(study.model, batch),
            L,
        ),
    ]
    if theirs.queries is None:
        return races
    layer = 2 * L // 3
    into = tuple(Receiver(Head(layer, head), "q") for head in range(min(2, study.config.n_heads)))

    def two_runs(sender: Head) -> torch.Tensor:
        """The receivers' queries with the sender patched, and the clean run with those."""
        kept = theirs.run_queries(batch, layer, send(sender))[0]

        def receive(queries: torch.Tensor) -> torch.Tensor:
            queries = queries.clone()
            for receiver in into:
                queries[:, :, receiver.head.head] = kept[:, :, receiver.head.head]
            return queries

        return difference(theirs.run_queries(batch, layer, None, receive)[1])

    label = "path patching into " + ", ".join(map(str, into))
    return [*races, race(label, two_runs, lambda: path_patching(study.model, batch, into), layer)]


def variant_rates(study: Study, prompts: PromptBatch) -> tuple[float, float]:
    """Variants a second of the ablation sweep, and of a curve that removes more and more heads."""
    config, zeros = study.config, find_replacement(study.model, prompts, "zero", positions="last")
    rng, n_heads = np.random.default_rng(0), config.n_layers * config.n_heads
    drawn = [
        [Head(*divmod(int(i), config.n_heads)) for i in rng.permutation(n_heads)[:CURVE]]
        for _ in range(n_heads // CURVE)
    ]
    curves = np.concatenate([cumulative_gains(config, heads) for heads in drawn])

    def rate(gains: np.ndarray) -> float:
        sweep = partial(run_variants, study.model, prompts, gains, zeros, positions="last")
        return len(gains) / statistics.median([seconds(sweep) for _ in range(REPEATS + 1)][1:])

    return rate(single_gains(config, config.n_heads)), rate(curves)


def shape_of(prompts: PromptBatch) -> str:
    return "{} prompts x {} tokens".format(*prompts.tokens.shape)


def sampled(study: Study, top: int | None = None) -> tuple[int, list[Head]]:
    """The number of heads below this layer, and some of them."""
    H = study.config.n_heads
    n_heads = (study.config.n_layers if top is None else top) * H
    return n_heads, [Head(*divmod(int(i), H)) for i in np.linspace(0, n_heads - 1, N_SAMPLED)]


@torch.no_grad()
def bench_real(model: str) -> dict[str, float]:
    """Prints the comparisons for the model of this directory, and returns their ratios."""
    torch.set_num_threads(usable_cores())
    study = headjax.open(model)
    theirs = TorchModel(hugging_face_files(study))
    rate = matmul_rate()
    print(f"{study.display_name}: {study.config.n_layers} layers of {study.config.n_heads} heads, float32")
    rated = f"{rate / 1e9:.0f} GFLOP/s in a product of 4096 x 4096"
    print(f"device: {jax.devices()[0].device_kind}, {usable_cores()} cores, {rated}")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; jax {jax.__version__}")
    print_density(study, rate)
    prompts = study.task_batch()
    prompts = take_prompts(prompts, some(np.arange(len(prompts.tokens)), N_PROMPTS))
    races = [
        relation_race(study, theirs),
        dynamic_race(study, theirs),
        ablation_race(study, theirs, prompts),
        gradient_race(study, theirs, prompts),
        *path_races(study, theirs),
    ]
    lines, ratios = [("sweep", "of", "torch", "headjax", "ratio", "largest difference")], {}
    for race in races:
        times = run_race(race)
        ratios[race.name] = times.usual / times.ours
        seconds_each = (f"{times.usual:.2f} s", f"{times.ours:.3f} s")
        lines.append(
            (race.name, race.of, *seconds_each, f"{ratios[race.name]:.1f}x", f"{times.difference:.1e}")
        )
        print(aligned([lines[-1]]), flush=True)
    print(aligned(lines, numbers=(2, 3, 4, 5)))
    single, curves = variant_rates(study, prompts)
    print(f"variants a second: {single:.1f} of single heads, {curves:.1f} of curves of {CURVE} heads")
    print(f"ratio {min(ratios.values()):.1f}x")
    return ratios


def print_density(study: Study, rate: float) -> None:
    """How many pairs of each layer are hits, and enter each stage of relation scores."""
    inside = look_at_layers(study)
    lines = [("layer", "hits", "enter each stage", "GFLOP", "floor")]
    for layer, one in enumerate(inside):
        hits = (one.hits.plain | one.hits.suppression).mean()
        enter = " ".join(f"{share:.1%}" for share in one.shares)
        lines.append(
            (
                str(layer),
                f"{hits:.1%}",
                enter,
                f"{one.operations / 1e9:.1f}",
                f"{one.operations / rate:.3f} s",
            )
        )
    print(aligned(lines, numbers=(0, 1, 3, 4)))
    print(
        f"relation scores count {sum(one.operations for one in inside) / rate:.2f} s of products at this rate"
    )
