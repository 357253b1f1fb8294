"""Benchmark of relation scores of a checkpoint that is never loaded: Llama-3.1-70B's widths, a few layers.

The checkpoint is made up on the spot: sharded safetensors that list every tensor. Tensors that relation
scores need are filled with random numbers, one head is made to implement a relation, and all others are
holes in the files, so that they cost no disk. It is then scored in a fresh process, which reports what it
read and the most memory it held; its numbers are compared with numpy's before any time is printed.
"""

import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import jax
import ml_dtypes
import numpy as np

from checkpoints_convert.engine import Source, open_source
from checkpoints_convert.reader import Tensor
from experiments.benchmarks.measure import (
    bytes_read,
    matmul_rate,
    measured_in_child,
    peak_resident,
    usable_cores,
)
from experiments.benchmarks.synthetic import llama_config, random_numbers, write_checkpoint, write_rows
from headjax.analyses.relation_scores import first_mlp_names, layer_names, relation_scores, relation_weights
from headjax.data.hit_rule import published_rule
from headjax.data.prompts import TokenPairs
from headjax.data.relations import Relation
from headjax.parameters.hugging_face import HuggingFace

LAYERS, H, G, K, D, F, V = 3, 64, 8, 128, 8192, 28672, 128_256
RELATIONS, PAIRS = 15, 100
PLANTED = (0, 5)  # the relation that this head of the first layer implements
PEAK_BYTES = 10 * 2**30
CHECKED_HEADS = (PLANTED[1], 11)
RULE = published_rule("llama-3.1-8b")  # with the first MLP, which the 70B's leaves out
TILE = 8192  # tokens whose logits numpy forms at a time

CONFIG = llama_config(layers=LAYERS, heads=H, kv_heads=G, d_head=K, d_model=D, d_mlp=F, vocabulary=V)


def token_pairs() -> list[TokenPairs]:
    """Random tokens, no target twice: the shape of 15 relations of 100 pairs."""
    tokens = np.random.default_rng(0).permutation(V)[: 2 * RELATIONS * PAIRS].astype(np.int32)
    names = [f"relation {r}" for r in range(RELATIONS)]
    return [
        TokenPairs(Relation(name, (), name, "Random"), *of_relation, ())
        for name, of_relation in zip(names, tokens.reshape(RELATIONS, 2, PAIRS), strict=True)
    ]


# --- the checkpoint -----------------------------------------------------------------------------------


def is_needed(name: str) -> bool:
    """Whether relation scores read a tensor whole."""
    if name.startswith("model.layers.0.") and (".mlp." in name or "post_attention" in name):
        return True
    return name.endswith(("v_proj.weight", "o_proj.weight")) or name == "lm_head.weight"


def make_checkpoint(directory: Path, pairs: list[TokenPairs]) -> None:
    """Fills what is needed; what the planted head makes of a source is its target's unembedding."""
    places = write_checkpoint(directory, CONFIG, is_needed)
    sources = np.concatenate([p.sources for p in pairs])
    rows = random_numbers(np.random.default_rng(2), (len(sources), D), 1.0)
    write_rows(places["model.embed_tokens.weight"], sources, rows)
    relation, head = PLANTED
    x, W_V, W_O, _ = first_layer(open_source(directory), pairs[relation])
    written = x @ W_V[:, head // (H // G)] @ W_O[head]
    written /= np.linalg.norm(written, axis=1, keepdims=True)
    write_rows(places["lm_head.weight"], pairs[relation].targets, written.astype(ml_dtypes.bfloat16))


def first_layer(source: Source, pairs: TokenPairs) -> tuple[np.ndarray, np.ndarray, np.ndarray, Tensor]:
    """x_s [N D], W_V [D G K] and W_O [H K D] of the first layer in float32, and the unembedding."""
    embedding, unembed = (source.fillings[name, None].tensor for name in ("embed.W_E", "unembed.rows"))
    x = np.concatenate([embedding.rows(i, i + 1) for i in pairs.sources.tolist()])
    names = layer_names(source.config)
    of_layer = source.read(names, 0)
    return *(array.astype(np.float32) for array in (x, *(of_layer[name] for name in names))), unembed


# --- what is measured ---------------------------------------------------------------------------------


def score(directory: Path) -> dict:
    """Scores the checkpoint in this process, and what that cost."""
    start, read_before = time.perf_counter(), bytes_read()
    parameters, pairs = HuggingFace(open_source(directory)), token_pairs()
    ends, worked, bytes_at = [], [], []

    def timed(layers: Iterable) -> Iterator:
        for layer in layers:
            yield layer
            ends.append(time.perf_counter())
            worked.append(time.process_time())
            bytes_at.append(bytes_read())

    scores = relation_scores(relation_weights(parameters), pairs, RULE, precision="highest", track=timed)
    relation, _ = PLANTED
    return {
        "first": ends[0] - start,  # with the unembedding, the first block's MLP, and compilation
        "layers": np.diff(ends).tolist(),
        "worked": np.diff(worked).tolist(),
        "bytes": bytes_read() - read_before,
        "layer_bytes": (bytes_at[1] - bytes_at[0]),
        "peak": peak_resident(),
        "checked": [[float(kind[relation, 0, head]) for head in CHECKED_HEADS] for kind in scores],
        "hits": float(np.mean(scores)),
        "device": f"{jax.devices()[0].platform}, {jax.devices()[0].device_kind}",
        "jax": jax.__version__,
    }


def slow_shares(source: Source, pairs: TokenPairs, heads: tuple[int, ...], k: int) -> list[list[float]]:
    """Plain and suppression share of hits of heads of the first layer, from all logits."""
    x, W_V, W_O, unembed = first_layer(source, pairs)
    rows = np.concatenate([x @ W_V[:, head // (H // G)] @ W_O[head] for head in heads])
    logits = np.concatenate(
        [rows @ unembed.rows(i, min(i + TILE, V)).astype(np.float32).T for i in range(0, V, TILE)],
        axis=1,
    ).reshape(len(heads), len(pairs.targets), V)
    own = np.take_along_axis(logits, np.tile(pairs.targets, (len(heads), 1))[:, :, None].astype(int), axis=2)
    return [(count.sum(axis=2) < k).mean(axis=1).tolist() for count in (logits > own, logits < own)]


def bench_stream() -> None:
    """Prints seconds a layer, bytes read and peak memory."""
    pairs = token_pairs()
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        start = time.perf_counter()
        make_checkpoint(directory, pairs)
        total = sum(file.stat().st_size for file in directory.iterdir())
        print(f"checkpoint of {total / 1e9:.1f} GB made in {time.perf_counter() - start:.0f} s", flush=True)
        measured = measured_in_child("experiments.benchmarks.stream", folder)
        source = open_source(directory)
        needed = [
            source.fillings[name, layer] for layer in range(LAYERS) for name in layer_names(source.config)
        ]
        needed += [
            source.fillings[name, 0]
            for name in first_mlp_names(source.config)
            if (name, 0) in source.fillings
        ]
        needed += [source.fillings["unembed.rows", None]]
        expected = sum(2 * math.prod(filling.tensor.shape) for filling in needed) + 2 * D * RELATIONS * PAIRS
        k = RULE.k(pairs[PLANTED[0]].relation.id)
        shares = slow_shares(source, pairs[PLANTED[0]], CHECKED_HEADS, k)

    np.testing.assert_allclose(measured["checked"], shares, atol=1.5 / PAIRS)
    assert shares[0][0] == 1, "the planted head implements its relation"
    # What else is read are headers, and Python's own files on first import.
    assert expected <= measured["bytes"] < expected + 2**26, (measured["bytes"], expected)
    assert measured["peak"] < PEAK_BYTES, measured["peak"]

    rate = matmul_rate()
    print(f"device: {measured['device']}, {usable_cores()} cores; jax {measured['jax']}; products in float32")
    print(
        f"{H} query and {G} key/value heads of {K}, d_model {D}, vocabulary {V:,}, {RELATIONS * PAIRS} pairs"
    )
    print(f"{measured['hits']:.2%} of all (head, pair) are hits; those looked at agree with numpy's")
    print(
        f"read {measured['bytes'] / 1e9:.2f} GB, {measured['layer_bytes'] / 1e9:.3f} GB a layer; rest never"
    )
    print(f"peak resident memory {measured['peak'] / 2**30:.2f} GiB")
    print(f"first layer {measured['first']:.1f} s, with embeddings, first MLP and compilation")
    each = statistics.median(measured["layers"])
    print(
        f"{each:.2f} s a layer after that, median of {len(measured['layers'])}; a 4096 x 4096 product, at "
        f"{rate / 1e9:.0f} GFLOP/s, would do {each * rate / 1e12:.2f} TFLOP in that time"
    )
    # What other work on the machine changes least: the processors' own time, of which two give two a second.
    print(f"{statistics.median(measured['worked']):.1f} processor seconds a layer")


if __name__ == "__main__":
    print(json.dumps(score(Path(sys.argv[1]))))
