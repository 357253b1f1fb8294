"""The benchmark that takes a model finds what torch finds on a trained one, and ends where it does not."""

import numpy as np
import pytest

from tests.helpers.torch_or_skip import torch
from tests.helpers.trained_prompts import MODEL

real = pytest.importorskip("experiments.benchmarks.real") if torch else None


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
