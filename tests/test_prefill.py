"""The prefill holds what the model computes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from headjax.engine.prefill import prefill
from tests.helpers.models import CONFIGS, informative_model
from tests.helpers.tolerances import assert_close

TOKENS = np.random.default_rng(5).integers(0, 53, (3, 11)).astype(np.int32)
MASK = np.arange(11)[None, :] >= np.array([0, 2, 5])[:, None]


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("keep", ["last", "all"])
def test_holds_the_forward_pass(family: str, keep: str):
    model = informative_model(CONFIGS[family])
    output = model(TOKENS, mask=MASK, return_z=True)
    run = prefill(model, TOKENS, MASK, keep=keep)
    kept = slice(-1, None) if keep == "last" else slice(None)
    seen = MASK[:, kept]
    assert_close(np.asarray(model.logits(run.residual[-1]))[seen], np.asarray(output.logits)[:, kept][seen])
    assert_close(np.asarray(run.z)[:, seen], np.asarray(output.z)[:, :, kept][:, seen])
    assert_close(
        np.asarray(run.residual[0])[seen], model.embed(TOKENS, run.positions)[:, kept][jnp.asarray(seen)]
    )


def test_the_cache_gives_the_last_position_again():
    """One decode step from the stored residual and cache: the next layer's residual."""
    model = informative_model(CONFIGS["llama"])
    run = prefill(model, TOKENS, MASK, keep="last")
    for layer in range(model.config.n_layers):
        block = jax.tree.map(lambda leaf, layer=layer: leaf[layer], model.blocks)
        q, _, _ = block.attn.project(block.ln1(run.residual[layer]), run.positions[:, -1:])
        z = block.attn.attend(q, run.k[layer], run.v[layer], run.valid)
        assert_close(z, run.z[layer])
        assert_close(block.finish(run.residual[layer], z), run.residual[layer + 1])
