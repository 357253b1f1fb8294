"""Sweeps over a model that is read layer by layer: equal to those that hold it, and two layers at most."""

import dataclasses
import gc
from collections import Counter
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from checkpoints_convert.engine import open_source
from headjax.analyses import attention_patterns, dynamic_scores, head_ablation, logit_attribution
from headjax.analyses import gradient_attribution as gradient_attribution_module
from headjax.analyses.gradient_attribution import gradient_attribution
from headjax.analyses.path_patching import direct_effects, path_patching
from headjax.engine import layered_variants, variant_step
from headjax.engine.batches import compute_anew
from headjax.engine.clean_run import clean_metrics
from headjax.engine.curves import ablation_curves
from headjax.engine.mesh import make_mesh
from headjax.engine.metrics import METRICS
from headjax.engine.replacement import find_replacement
from headjax.errors import InputError
from headjax.model import Transformer, parameter_shapes
from headjax.parameters.converted import Converted
from headjax.parameters.hugging_face import HuggingFace
from headjax.parameters.layered import layered_model
from tests.helpers import torch_oracle
from tests.helpers.ablation_oracle import DTYPES, assert_same_metrics, deaf_model, prompts_for
from tests.helpers.meshes import assert_same
from tests.helpers.models import CONFIGS, informative_model
from tests.helpers.on_disk import OnDisk, from_memory
from tests.helpers.path_prompts import receivers_of
from tests.helpers.random_prompts import random_prompts
from tests.helpers.tolerances import assert_close
from tests.helpers.twins import twins

BATCHED = {"batch_size": 3}  # seven prompts: three chunks, the last one filled up


@pytest.mark.parametrize("name", torch_oracle.FAMILIES)
def test_every_sweep_equals_the_one_that_holds_the_model(name: str):
    model = twins(name)[0]
    prompts = prompts_for(model, groups=(("capitals", "<X> is"), ("plurals", "two <X>")))
    log: list = []
    read = from_memory(model, log)
    once = [*range(model.config.n_layers)]

    ours = head_ablation.head_ablation(read, prompts, **BATCHED, variant_batch=4)
    assert log == [None, *once]
    expected = head_ablation.head_ablation(model, prompts)
    assert_same_metrics(ours.clean, expected.clean)
    assert_same_metrics(ours.ablated, expected.ablated)

    top_k = np.arange(1, 8, dtype=np.int32) * 3
    ours = dynamic_scores.dynamic_scores(read, prompts, top_k, **BATCHED)
    expected = dynamic_scores.dynamic_scores(model, prompts, top_k)
    assert log == [None, *once, *once]
    assert ours.groups == expected.groups
    for kind, scores in expected.scores.items():
        np.testing.assert_array_equal(ours.scores[kind], scores)
    assert 0 < np.mean([scores.mean() for scores in expected.scores.values()]) < 1

    for metric in ("logit", "logit_diff"):
        ours = logit_attribution.logit_attribution(read, prompts, metric=metric, **BATCHED)
        expected = logit_attribution.logit_attribution(model, prompts, metric=metric)
        for one, other in zip(ours, expected, strict=True):
            if np.any(other):
                assert_close(one, other)
            else:
                np.testing.assert_array_equal(one, other)
    assert log == [None, *once * 4]

    ours = attention_patterns.attention_patterns(read, prompts.tokens, prompts.mask, **BATCHED)
    expected = attention_patterns.attention_patterns(model, prompts.tokens, prompts.mask)
    for pattern in attention_patterns.PATTERNS:
        np.testing.assert_allclose(getattr(ours, pattern), getattr(expected, pattern), atol=2e-6)
    assert ours.n_tokens == expected.n_tokens
    assert_same_metrics(clean_metrics(read, prompts, **BATCHED), clean_metrics(model, prompts))
    assert log == [None, *once * 6]


def test_layers_of_every_kind_are_one_program(count_compiles):
    """Windows and rotary embeddings that differ by layer are numbers of it, held or read one by one."""
    model = twins("gemma3-mqa-windows")[0]
    assert model.config.windows == (4, None, 4)
    prompts = prompts_for(model, seed=8)
    read = from_memory(model)
    for one in (model, read):
        jax.clear_caches()
        with count_compiles() as compiled:
            attention_patterns.attention_patterns(one, prompts.tokens, prompts.mask)
        ours = [name for name in compiled if "layer" in name or "attention_patterns" in name]
        assert len(ours) == 1, compiled


@pytest.mark.parametrize("name", torch_oracle.FAMILIES)
def test_paths_and_gradients_equal_those_of_a_model_that_is_held(name: str):
    """Receivers of all inputs, in two layers: below them, among them and above them."""
    model = twins(name)[0]
    prompts, log = prompts_for(model), []
    read, once = from_memory(model, log), [*range(model.config.n_layers)]
    assert_same(direct_effects(read, prompts, **BATCHED), direct_effects(model, prompts))
    for receivers in ((), receivers_of("L1H0.q", "L1H1.v"), receivers_of("L1H1.k", "L2H0.q", "L2H1.v")):
        ours = path_patching(read, prompts, receivers, **BATCHED, variant_batch=4)
        expected = path_patching(model, prompts, receivers)
        assert_same(ours, expected)
        assert (ours.patched != ours.clean).any()
    assert log == [None, *once * 4]
    for metric, positions in (("logprob", "last"), ("logit_diff", "all")):
        how = {"metric": metric, "positions": positions}
        ours = gradient_attribution(read, prompts, **how, **BATCHED)
        assert_same(ours, gradient_attribution(model, prompts, **how))
    assert log == [None, *once * 4, *(once + once[::-1]) * 2]


def test_curves_equal_those_of_a_model_that_is_held():
    model = informative_model(CONFIGS["llama"])
    prompts = prompts_for(model, groups=(("capitals", "<X> is"), ("plurals", "two <X>")))
    rng = np.random.default_rng(0)
    rankings = {name: rng.random((3, model.config.n_heads)) for name in ("capitals", "plurals")}
    how = {"max_heads": 4, "n_random_draws": 2, "ablation": "mean"}
    ours = ablation_curves(from_memory(model), prompts, rankings, **how, **BATCHED)
    for one, other in zip(ours, ablation_curves(model, prompts, rankings, **how), strict=True):
        assert one[:2] == other[:2]
        assert one.not_controls == other.not_controls
        assert_same((one.own, one.draws, one.controls), (other.own, other.draws, other.controls))


@pytest.mark.parametrize("shape", [{"data": 8}, {"data": 2, "model": 4}])
def test_every_device_has_its_share(shape: dict[str, int]):
    """Of prompts or of variants, or of the layer at hand: as on a single device."""
    model = informative_model(CONFIGS["llama"])
    prompts = prompts_for(model)
    read = layered_model(OnDisk(model), mesh=make_mesh(shape))
    assert len(next(read.layers()).attn.W_O[...].sharding.device_set) == 8
    top_k = np.full(7, 9, np.int32)
    receivers = receivers_of("L1H0.q", "L2H1.v")
    for sweep in (
        lambda model, **how: head_ablation.head_ablation(model, prompts, ablation="resample", **how),
        lambda model, **how: dynamic_scores.dynamic_scores(model, prompts, top_k, **how).scores,
        lambda model, **how: logit_attribution.logit_attribution(model, prompts, **how),
        lambda model, **how: attention_patterns.attention_patterns(
            model, prompts.tokens, prompts.mask, **how
        ),
        lambda model, **how: clean_metrics(model, prompts, **how),
        lambda model, **how: gradient_attribution(model, prompts, **how),
        lambda model, **how: direct_effects(model, prompts, **how),
        lambda model, **how: path_patching(model, prompts, receivers, **how),
    ):
        assert_same(sweep(read, batch_size=3), sweep(model))


def test_prompts_go_in_groups_that_fit_and_a_group_is_remembered(monkeypatch):
    """Three groups read the model three times and give the same bits; those that are through are not run
    again when a killed run goes on."""
    model = informative_model(CONFIGS["gpt2"])
    prompts, log, memory = prompts_for(model), [], {}
    read, once = from_memory(model, log), [*range(3)]

    def killed(name: str, compute):
        if len(memory) == 3:
            raise KeyboardInterrupt
        return memory.setdefault(name, memory[name] if name in memory else compute())

    def again(name: str, compute):
        return memory[name] if name in memory else compute()

    for sweep, passes in (
        (lambda remember: head_ablation.head_ablation(read, prompts, **BATCHED, remember=remember), once),
        (lambda remember: path_patching(read, prompts, **BATCHED, remember=remember), once),
        (
            lambda remember: gradient_attribution(read, prompts, **BATCHED, remember=remember),
            once + once[::-1],
        ),
    ):
        memory.clear()
        log.clear()
        whole = sweep(compute_anew)
        assert log == passes
        for module in (layered_variants, gradient_attribution_module):
            monkeypatch.setattr(module, "free_host_memory", lambda: 1)
        log.clear()
        with pytest.raises(KeyboardInterrupt):
            sweep(killed)  # after the size of a group, and two groups
        assert log == passes * 2
        found = sweep(again)
        assert log == passes * 3
        monkeypatch.undo()
        for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(whole), strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("ablation", "mean_over", "paired"),
    [
        ("mean", "prompts", False),
        ("mean", "tokens", False),
        ("resample", "prompts", True),
        ("resample", "prompts", False),
    ],
)
def test_replacements_are_found_before(ablation: str, mean_over: str, paired: bool):
    model = informative_model(CONFIGS["llama"])
    prompts = prompts_for(model, groups=(("capitals", "<X> is"), ("plurals", "two <X>")))
    if not paired:
        prompts = dataclasses.replace(prompts, corrupted=None)
    how = {"ablation": ablation, "mean_over": mean_over, "kv_groups": not paired, "seed": 5}
    ours = head_ablation.head_ablation(from_memory(model), prompts, **how, **BATCHED)
    expected = head_ablation.head_ablation(model, prompts, **how)
    assert_same_metrics(ours.clean, expected.clean)
    assert_same_metrics(ours.ablated, expected.ablated)


@cache
def checkpoint() -> tuple[Path, Path, Transformer]:
    """A Hugging Face directory, its conversion, and the model."""
    from headjax import load_model
    from headjax.parameters.cache import ensure_converted

    directory = Path(mkdtemp())
    torch_oracle.save_model("llama-gqa-llama3-rope", directory / "hf")
    converted = ensure_converted(directory / "hf", directory / "ours")
    return directory / "hf", converted, load_model(converted)


def test_layers_come_from_either_kind_of_directory():
    source, converted, model = checkpoint()
    prompts = random_prompts(model.config.vocab_size)
    expected = logit_attribution.logit_attribution(model, prompts)
    for parameters in (Converted(converted), HuggingFace(open_source(source))):
        read = layered_model(parameters, jnp.float32)
        assert read.config == model.config
        for one, other in zip(logit_attribution.logit_attribution(read, prompts), expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=0, atol=2e-5 * np.abs(other).max())


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_changes_nothing_has_no_effect_to_the_last_bit(dtype: str):
    model = deaf_model("llama", dtype)
    prompts = prompts_for(model)
    result = head_ablation.head_ablation(from_memory(model), prompts, variant_batch=4, **BATCHED)
    held = head_ablation.head_ablation(model, prompts, variant_batch=4, **BATCHED)
    for metric in METRICS:
        np.testing.assert_array_equal(result.effect(metric)[:, 1], np.zeros((3, 7)))
    assert (result.effect("logprob")[:, [0, 2, 3, 4, 5]] != 0).any(axis=(1, 2)).all()
    assert_close(result.ablated.logprob, held.ablated.logprob, dtype)


def test_the_device_holds_two_layers_and_the_rows(monkeypatch):
    """A model whose layers weigh much more than everything else; what is alive is looked at."""
    config = dataclasses.replace(CONFIGS["llama"], n_layers=5, d_mlp=4001)
    model = informative_model(config)
    read = from_memory(model)
    shapes = parameter_shapes(config)
    layer_bytes = 4 * sum(np.prod(s[1:]) for name, s in shapes.items() if name.startswith("blocks."))
    outer_bytes = 4 * sum(np.prod(s) for name, s in shapes.items() if not name.startswith("blocks."))
    prompts = random_prompts(config.vocab_size, lengths=(5, 4))
    rows_bytes = 4 * 2 * config.d_model * (config.n_layers * config.n_heads + 5)
    del model
    head_ablation.head_ablation(read, prompts)  # compiles, and leaves its constants behind
    gc.collect()
    before = sum(array.nbytes for array in jax.live_arrays())
    seen = Counter()

    def looking(*arguments):
        seen["most"] = max(seen["most"], sum(array.nbytes for array in jax.live_arrays()))
        seen["times"] += 1
        return decode(*arguments)

    run = layered_variants._compiled(variant_step.LAYERED)
    decode = run.move
    monkeypatch.setattr(layered_variants, "_compiled", lambda steps: run._replace(move=looking))
    gc.disable()  # no layer may wait for Python's next search for cycles
    try:
        head_ablation.head_ablation(read, prompts, variant_batch=3)
    finally:
        gc.enable()
    assert seen["times"] > config.n_layers
    assert seen["most"] - before < 2 * layer_bytes + outer_bytes + rows_bytes
    assert seen["most"] - before > 0.9 * layer_bytes


def test_what_cannot_be_streamed_is_refused():
    model = informative_model(CONFIGS["gpt2"])
    prompts, read = random_prompts(model.config.vocab_size), from_memory(model)
    with pytest.raises(InputError, match="last position; got 'all'"):
        head_ablation.head_ablation(read, prompts, positions="all")
    with pytest.raises(InputError, match="last position; got 'all'"):
        path_patching(read, prompts_for(model), receivers_of("L1H0.q"), positions="all")
    with pytest.raises(InputError, match="'all' positions and ablation 'mean'"):
        find_replacement(read, prompts, "mean", positions="all")
    with pytest.raises(InputError, match="field 'ablation'"):
        head_ablation.head_ablation(read, prompts, ablation="none")


def test_a_run_is_named_whose_numbers_are_none():
    model = informative_model(CONFIGS["gpt2"])
    parameters = OnDisk(model)
    prompts = random_prompts(model.config.vocab_size)
    parameters.values["embed.W_E"][prompts.tokens[4, -1]] = np.nan
    broken = layered_model(parameters)
    with pytest.raises(InputError, match=r"prompt 4 gives NaN|gives NaN"):
        head_ablation.head_ablation(broken, prompts)
    with pytest.raises(InputError, match="gives NaN"):
        logit_attribution.logit_attribution(broken, prompts)
