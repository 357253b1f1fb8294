"""What replaces a head's output belongs to the prompt's own relation, whatever else is in the batch."""

import dataclasses

import numpy as np
import pytest

from headjax.engine.curves import take_prompts
from headjax.engine.replacement import find_replacement
from tests.helpers.models import CONFIGS, informative_model
from tests.helpers.random_prompts import random_prompts
from tests.helpers.tolerances import assert_close


@pytest.mark.parametrize("positions", ["last", "all"])
@pytest.mark.parametrize(
    ("ablation", "mean_over"), [("mean", "prompts"), ("mean", "tokens"), ("resample", "prompts")]
)
def test_other_relations_change_nothing(ablation: str, mean_over: str, positions: str):
    model = informative_model(CONFIGS["llama"])
    both = random_prompts(model.config.vocab_size, lengths=(11, 7, 11, 7, 11, 11, 7, 7))
    relations = np.array(["a", "a", "b", "b", "a", "b", "a", "b"])
    named = [dataclasses.replace(p, relation=r) for p, r in zip(both.prompts, relations, strict=True)]
    both = dataclasses.replace(both, prompts=tuple(named), corrupted=None)
    options = {"positions": positions, "mean_over": mean_over, "batch_size": 3}
    together = find_replacement(model, both, ablation, **options)
    for relation in ("a", "b"):
        rows = np.flatnonzero(relations == relation)
        alone = find_replacement(model, take_prompts(both, rows), ablation, **options)
        if ablation == "mean":
            at_end = slice(-7, None)  # where prompts of both lengths have tokens
            expected = np.broadcast_to(alone(np.arange(4)), together(rows).shape)
            assert_close(together(rows)[:, :, at_end], expected[:, :, at_end])
        else:
            z = np.asarray(together(rows))
            own = np.asarray(find_replacement(model, both, "resample", **options)(rows))
            np.testing.assert_array_equal(z, own)  # the seed decides
            everybody = np.asarray(alone(np.arange(4)))
            for prompt in z[:, :, -1].swapaxes(0, 1):
                assert any(
                    np.allclose(prompt, other, atol=1e-5) for other in everybody[:, :, -1].swapaxes(0, 1)
                )
