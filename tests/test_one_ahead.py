"""The device is given the next batch before the host waits for this one."""

import jax
import numpy as np
import pytest

from headjax.analyses.dynamic_scores import dynamic_scores
from headjax.analyses.head_ablation import head_ablation
from headjax.engine import mesh, variants
from headjax.engine.mesh import one_ahead
from tests.helpers.ablation_oracle import prompts_for
from tests.helpers.models import CONFIGS, informative_model


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on an accelerator."""
    monkeypatch.setattr(mesh, "computes_here", lambda: False)


def test_the_following_one_is_begun_first_and_each_of_them_once(elsewhere):
    log: list[int] = []
    run = one_ahead(lambda i: log.append(i) or 10 * i, lambda i: i + 1 if i < 3 else None)
    assert run(0) == 0
    assert log == [0, 1]
    assert run(1) == 10
    assert log == [0, 1, 2]
    assert run(3) == 30  # 2 had been remembered
    assert log == [0, 1, 2, 3]


def test_what_cannot_be_begun_early_is_tried_in_its_turn_and_says_why_then(elsewhere):
    log: list[int] = []

    def begin(i: int) -> int:
        log.append(i)
        if i == 1:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
        return i

    run = one_ahead(begin, lambda i: i + 1)
    assert run(0) == 0
    with pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE_EXHAUSTED"):
        run(1)
    assert log == [0, 1, 1]


def test_on_a_cpu_nothing_is_begun_early():
    log: list[int] = []
    one_ahead(log.append, lambda i: i + 1)(0)
    assert log == [0]


def test_the_next_variants_are_with_the_device_before_the_host_waits(elsewhere, monkeypatch):
    model, log = informative_model(CONFIGS["llama"]), []
    prompts = prompts_for(model)
    for name in ("variant_step", "fetch"):
        own = getattr(variants, name)
        logged = lambda *args, own=own, name=name, **kwargs: log.append(name) or own(*args, **kwargs)  # noqa: E731
        monkeypatch.setattr(variants, name, logged)
    head_ablation(model, prompts, variant_batch=7)  # 18 heads and the clean run: three batches
    begins, waits = (np.flatnonzero(np.array(log) == name) for name in ("variant_step", "fetch"))
    assert len(begins) == 3
    assert (waits[-2:] > begins[-1]).all()  # of the last two batches, when all is begun


@pytest.mark.parametrize("positions", ["last", "all"])
def test_sweeps_find_the_same(monkeypatch: pytest.MonkeyPatch, positions: str):
    """Several batches of prompts and of variants, to the last bit."""
    model = informative_model(CONFIGS["llama"])
    prompts = prompts_for(model)
    top_k = np.full(len(prompts.tokens), 5, np.int32)

    def sweeps() -> tuple:
        ablated = head_ablation(model, prompts, positions=positions, batch_size=3, variant_batch=4)
        return ablated, dynamic_scores(model, prompts, top_k, batch_size=3).scores

    expected = sweeps()
    begun: list[int] = []
    monkeypatch.setattr(mesh, "computes_here", lambda: begun.append(1) is not None)
    jax.tree.map(np.testing.assert_array_equal, sweeps(), expected)
    assert begun
