"""Path patching against the paper's algorithm in torch."""

import numpy as np
import pytest

from headjax.analyses.path_patching import PatchedPaths, direct_effects, path_patching
from tests.helpers import path_oracle, torch_oracle
from tests.helpers.path_prompts import prompts_for, receivers_of
from tests.helpers.twins import twins

# Neighbours in a key/value group, one with two inputs, and heads in two layers; and a single one.
SEVERAL, SINGLE = ("L1H3.k", "L2H0.q", "L2H1.v", "L2H1.k"), ("L2H1.q",)
MORE = ("gpt_neox-sequential", "phi-mqa", "llama-mha", "llama-gqa-head-dim-biases")


@pytest.mark.parametrize("name", torch_oracle.FAMILIES + MORE)
def test_equals_the_papers_algorithm_in_torch(name: str):
    """Every sender, left-padded prompts of different lengths; every family, MHA, GQA and MQA."""
    model, theirs = twins(name)
    prompts = prompts_for(model)
    each = np.arange(len(prompts.tokens))
    clean, corrupted = (
        path_oracle.run(theirs, tokens, prompts.mask) for tokens in (prompts.tokens, prompts.corrupted)
    )

    def difference(logits: np.ndarray) -> np.ndarray:
        return logits[each, prompts.answers] - logits[each, prompts.distractors]

    def assert_equal(result: PatchedPaths, labels: tuple[str, ...], positions: str, **options) -> None:
        places = tuple((*receiver.head, receiver.input) for receiver in receivers_of(*labels))
        np.testing.assert_allclose(result.clean, difference(clean.logits.numpy()), rtol=0, atol=1e-4)
        np.testing.assert_allclose(result.corrupted, difference(corrupted.logits.numpy()), rtol=0, atol=1e-4)
        for sender in np.ndindex(*result.patched.shape[:2]):
            logits = path_oracle.patched_logits(
                *(theirs, clean, corrupted, prompts.tokens, prompts.mask, sender, places),
                positions=positions,
                **options,
            )
            np.testing.assert_allclose(result.patched[sender], difference(logits), rtol=0, atol=1e-4)
        n_below = max((layer for layer, _, _ in places), default=len(result.patched))
        assert (np.abs(result.patched[:n_below] - result.clean) > 1e-3).mean() > 0.5  # they do something

    assert_equal(path_patching(model, prompts, receivers_of(*SEVERAL), positions="all"), SEVERAL, "all")
    if name in torch_oracle.FAMILIES:
        assert_equal(direct_effects(model, prompts), (), "last", mlps_frozen=True)
        assert_equal(path_patching(model, prompts), (), "last")
        for labels in (SEVERAL, SINGLE):
            assert_equal(path_patching(model, prompts, receivers_of(*labels)), labels, "last")
