"""Counting in traced programs: held against XLA's account of the compiled ones."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from headjax.analyses import attention_patterns, gradient_attribution, logit_attribution
from headjax.config import ModelConfig, Rotary
from headjax.engine import clean_run, metrics, variant_step
from headjax.engine.layer_sweep import whole_sweep
from headjax.engine.prefill import prefill
from headjax.model import Transformer, abstract_model
from headjax.traced import n_bytes_of, shape, trace
from tests.helpers.random_prompts import random_prompts

SMALL = ModelConfig(
    **{"family": "llama", "n_layers": 7, "n_heads": 6, "n_kv_heads": 2, "d_head": 16, "d_model": 61},
    **{"d_mlp": 131, "vocab_size": 601, "max_positions": 64, "norm": "rms", "norm_eps": 1e-5},
    **{"rotary": Rotary(8, 10000.0), "activation": "silu", "gated_mlp": True},
    **{"parallel_residual": False, "tied_embeddings": False},
)
PROMPTS = random_prompts(SMALL.vocab_size, lengths=(13, 11, 12))
ASKED = (PROMPTS.tokens, PROMPTS.mask, PROMPTS.answers)
ZEROS = np.zeros((SMALL.n_layers, 1, 1, 1, 1), np.float32)
N_VARIANTS = 29


def steps(model: Transformer) -> dict[str, Callable[[], tuple[Any, tuple, dict]]]:
    """Name -> a compiled step, its arguments, its static ones."""
    edit = variant_step.VariantEdit(np.ones((N_VARIANTS, SMALL.n_layers, SMALL.n_heads), np.float32), ZEROS)

    def variants(positions: str) -> tuple[Any, tuple, dict]:
        clean = jax.eval_shape(partial(prefill, keep=positions), model, *ASKED[:2])
        arguments = (model, clean, edit, np.int32(0), PROMPTS.answers, None)
        return variant_step.variant_step, arguments, {"positions": positions}

    gradient = (*ASKED, PROMPTS.distractors, ZEROS)
    how = {"metric": "logprob", "positions": "last"}
    swept = (model, None)
    return {
        "prefill": lambda: (prefill, (model, *ASKED[:2]), {"keep": "all"}),
        "clean run": lambda: (whole_sweep(clean_run.SWEEP), (swept, *ASKED), {}),
        "attribution": lambda: (whole_sweep(logit_attribution.SWEEP), (swept, *ASKED), {}),
        "patterns": lambda: (whole_sweep(attention_patterns.SWEEP), (swept, *ASKED[:2]), {}),
        "gradient": lambda: (gradient_attribution._gradient, (model, *gradient), how),
        "variants, last": lambda: variants("last"),
        "variants, all": lambda: variants("all"),
    }


@pytest.fixture(scope="module")
def model() -> Transformer:
    return Transformer(SMALL, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("name", steps(abstract_model(SMALL)))
def test_memory_is_what_xla_holds(model, name: str):
    """Beside the arguments, within a factor of two; XLA's own account is of whole buffers."""
    step, arguments, static = steps(model)[name]()
    account = step.lower(*arguments, **static).compile().memory_analysis()
    held = account.temp_size_in_bytes + account.output_size_in_bytes
    counted = trace("cpu", step, *arguments, **static)
    assert 0.5 * counted.n_bytes < held < 2 * counted.n_bytes
    assert n_bytes_of(counted.gives) == pytest.approx(account.output_size_in_bytes, abs=100)  # and pointers


@pytest.mark.parametrize("name", ["prefill", "clean run", "attribution", "gradient"])
def test_products_are_nearly_all_that_xla_computes(name: str):
    """Of one layer, as XLA counts the body of a loop once; the rest is norms, softmax and the like. What a
    gradient does below the lowest gain is counted, too: in a loop it is computed, here nobody needs it."""
    wide = {"n_layers": 1, "n_heads": 4, "n_kv_heads": 4, "d_head": 64, "d_model": 256, "d_mlp": 768}
    model = abstract_model(ModelConfig(**{**vars(SMALL), **wide}))
    step, (given, *arrays), static = steps(model)[name]()
    arrays[-1] = arrays[-1][:1] if arrays[-1].ndim == 5 else arrays[-1]
    compiled = step.lower(given, *arrays, **static).compile()
    counted = trace("cpu", step, given, *arrays, **static)
    assert not counted.loops
    least = 0.88 if name == "gradient" else 1
    assert least * counted.flops < compiled.cost_analysis()["flops"] < 1.15 * counted.flops


def test_loops_of_unknown_length_are_counted_by_themselves():
    def step(x: jax.Array, n: jax.Array) -> jax.Array:
        y = lax.fori_loop(0, n, lambda _, y: y @ x, x)
        y = lax.fori_loop(0, 3, lambda _, y: y @ x @ x, y)
        y = lax.cond(n > 1, lambda y: y @ x, lambda y: y, y)
        return jax.jit(lambda y: lax.fori_loop(0, n, lambda _, y: x @ y @ y, y))(y)

    one = 2 * 5**3
    counted = trace("cpu", step, shape(5, 5), shape(dtype=jnp.int32))
    assert counted.flops == (3 * 2 + 1) * one
    assert counted.loops == (one, 2 * one)
    assert counted.compiled.name == "step"


def test_memory_by_hand():
    """Two values of 40 bytes and one of 400; nobody needs the first any more when the last is computed."""

    def step(x: jax.Array) -> jax.Array:
        return lax.broadcast(x + 1, (10,)).sum(axis=0)

    assert trace("cpu", step, shape(10)).n_bytes == 400 + 40


def test_what_is_traced_for_another_platform_is_no_part_of_what_runs_here(model, monkeypatch):
    """Else a run after a plan would be cut into that platform's tiles."""
    step, arguments = whole_sweep(clean_run.SWEEP), ((model, None), *ASKED, PROMPTS.distractors)
    monkeypatch.setattr(metrics, "MIN_TILE", 16)
    monkeypatch.setitem(metrics.TILE_LOGITS, "cpu", 16)  # one row at a time
    there, here = (trace(name, step, *arguments) for name in ("gpu", "cpu"))
    assert there.flops < here.flops  # the last tile overlaps the one before
    assert "f32[16,61]" in str(jax.make_jaxpr(step)(*arguments))
