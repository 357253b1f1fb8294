"""Benchmarks that take a model find what torch finds on a trained one, and end where they do not."""

import dataclasses
import importlib
import inspect

import numpy as np
import pytest
from flax import nnx

from experiments import bench
from experiments.benchmarks import peers, scaling
from headjax.engine import hits, metrics
from headjax.model import Transformer
from tests.helpers.torch_or_skip import torch
from tests.helpers.trained_prompts import MODEL

real = pytest.importorskip("experiments.benchmarks.real", reason="needs torch, whose models are the oracle")


@pytest.fixture
def small(monkeypatch):
    for name, value in {"N_SAMPLED": 2, "N_PROMPTS": 4, "N_PAIRS": 2, "CURVE": 3}.items():
        monkeypatch.setattr(real, name, value)
    monkeypatch.setattr(real, "matmul_rate", lambda: 1e11)


def test_every_sweep_is_compared_and_timed(small, capsys):
    ratios = real.bench_real(MODEL)
    assert set(ratios) >= {
        *("relation scores", "dynamic scores", "head ablation, last position", "gradient attribution")
    }
    assert all(ratio > 0 for ratio in ratios.values())
    printed = capsys.readouterr().out
    assert printed.splitlines()[-1] == f"ratio {min(ratios.values()):.1f}x"
    assert printed.count("100.0%") >= 3  # all pairs of each layer enter the first stage


def test_a_wrong_number_ends_it(small, monkeypatch):
    ours = real.head_ablation

    def wrong(*arguments):
        found = ours(*arguments)
        return found._replace(
            ablated=found.ablated._replace(logprob=np.asarray(found.ablated.logprob) * 1.01)
        )

    monkeypatch.setattr(real, "head_ablation", wrong)
    monkeypatch.setattr(real, "look_at_layers", lambda _: [])
    with pytest.raises(AssertionError, match="head ablation, last position, L0H0: differs by"):
        real.bench_real(MODEL)


def test_peers_that_are_not_installed_are_left_out_in_a_sentence(monkeypatch, capsys):
    monkeypatch.setattr(peers, "find_spec", lambda _: None)
    assert bench.main(["peers", "--model", MODEL]) == 0
    assert capsys.readouterr().out == "left out, because not installed: transformer_lens and nnsight\n"


def plain_torch(directory, tokens, answers, layer, _):
    """A peer: transformers alone."""
    (theirs, _), ids = peers.in_torch(directory), torch.tensor(np.asarray(tokens)).long()

    def run(head):
        def zero(_, inputs):
            z = inputs[0].unflatten(-1, (theirs.config.num_attention_heads, -1)).clone()
            z[:, -1, [] if head is None else head] = 0
            return (z.flatten(-2),)

        handle = theirs.model.layers[layer].self_attn.o_proj.register_forward_pre_hook(zero)
        found = peers.logprobs(theirs(ids).logits[:, -1], answers)
        handle.remove()
        return found

    return run


def test_peers_are_compared_then_timed(monkeypatch, capsys):
    monkeypatch.setattr(peers, "PEERS", {"transformers": plain_torch, "absent_module": None})
    ratio = peers.bench_peers(MODEL)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "left out, because not installed: absent_module"
    assert lines[1].startswith("transformers: effects of layer 1 are at most")
    assert lines[2].startswith("12 heads, ")
    assert lines[-1] == f"ratio {ratio:.1f}x"
    monkeypatch.setattr(peers, "TOLERANCE", 0.0)
    with pytest.raises(AssertionError, match=r"transformers: effects are .* apart; allowed"):
        peers.bench_peers(MODEL)


@pytest.mark.parametrize("name", bench.BENCHMARKS)
def test_every_benchmark_is_there_and_takes_what_it_is_given(name: str):
    """Most take too long to be run here."""
    module, function, options = bench.BENCHMARKS[name]
    options = {"model": MODEL} if name in bench.OF_A_MODEL else options
    found = getattr(importlib.import_module(f"experiments.benchmarks.{module}"), function)
    inspect.signature(found).bind(**options)


def test_ablation_is_compared_with_torch_then_timed(monkeypatch, capsys):
    ablation = importlib.import_module("experiments.benchmarks.ablation")
    tiny = dataclasses.replace(ablation.SHAPES["GPT-2 small"], n_layers=2, n_heads=3, d_head=4, d_model=12)
    monkeypatch.setitem(ablation.SHAPES, "tiny", dataclasses.replace(tiny, d_mlp=16, vocab_size=50))
    for name, value in {"N_PROMPTS": 2, "N_TOKENS": 4, "REPEATS": 1}.items():
        monkeypatch.setattr(ablation, name, value)
    assert ablation.compare("tiny", 1e9) > 0
    assert "sweep, all positions (all heads timed)" in capsys.readouterr().out
    monkeypatch.setattr(ablation, "TOLERANCE", -1.0)
    with pytest.raises(AssertionError, match="tiny: log-probabilities differ from torch's"):
        ablation.compare("tiny", 1e9)


@pytest.mark.parametrize("way", scaling.WAYS)
def test_eight_devices_find_what_one_finds_for_an_eighth_of_its_work(way: str, monkeypatch):
    monkeypatch.setitem(metrics.TILE_LOGITS, "cpu", 2**40)
    monkeypatch.setitem(hits.CHUNKS, "cpu", hits.Chunk(rows=2**20, logits=2**40))
    (measure, mesh), model = scaling.WAYS[way], Transformer(scaling.CONFIG, rngs=nnx.Rngs(0))
    (one, expected), (each, found) = (measure(model, mesh(n)) for n in (1, 8))
    assert np.abs(expected).max() > 0
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    assert one.flop / each.flop == pytest.approx(8, rel=0.02)
    assert (each.received > 0) == ("model over model" in way)


@pytest.mark.parametrize("name", bench.OF_A_MODEL)
def test_a_benchmark_of_a_model_needs_one_and_no_other_takes_one(name: str, capsys):
    for arguments, message in (
        ([name], f"{name} needs --model"),
        (["static", "--model", MODEL], "and all"),
    ):
        with pytest.raises(SystemExit) as ended:
            bench.main(arguments)
        assert ended.value.code == 2
        assert capsys.readouterr().err.rstrip().endswith(message)
