"""The config field `implementation`: it reaches every kernel of every sweep, and changes no result."""

import dataclasses
import importlib
import json
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path

import absl.logging
import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import pytest
from headjax.kernels.dispatch import Choice, recording
from headjax.kernels.head_attention import api as head_attention
from headjax.kernels.variant_decode import api as variant_decode
from headjax.kernels.vocab_rank import api as vocab_rank
from jax.extend.core.primitives import dot_general_p

from experiments.config import RunConfig
from experiments.run import run
from headjax.analyses.attention_patterns import attention_patterns
from headjax.analyses.copy_score import copy_scores, copy_weights
from headjax.analyses.dynamic_scores import dynamic_scores
from headjax.analyses.gradient_attribution import gradient_attribution
from headjax.analyses.head_ablation import head_ablation
from headjax.analyses.logit_attribution import logit_attribution
from headjax.analyses.path_patching import Receiver, direct_effects, path_patching
from headjax.analyses.relation_scores import relation_scores, relation_weights
from headjax.analyses.salient_operations import salient_operations
from headjax.config import ModelConfig
from headjax.data.prompts import PromptBatch
from headjax.engine.hits import relation_hits, screening_stages
from headjax.engine.metrics import next_token_metrics
from headjax.engine.prefill import prefill
from headjax.engine.replacement import find_replacement
from headjax.engine.variant_step import VariantEdit, variant_step
from headjax.errors import InputError
from headjax.grid import load_npz
from headjax.kernels import tpu
from headjax.model import Transformer
from headjax.model.edits import HeadEdit
from headjax.parameters import InMemory
from tests.helpers.kernel_checks import allowing
from tests.helpers.models import CONFIGS, TOKENS, informative_model
from tests.helpers.own_relations import write_relations
from tests.helpers.random_prompts import random_prompts
from tests.helpers.relation_oracle import RULE, some_relations
from tests.helpers.runs import altered, run_config
from tests.helpers.tiny_run import tiny_run
from tests.helpers.tolerances import assert_close
from tests.helpers.trained_prompts import MODEL

FORCED = ("pallas_mosaic_tpu", "reference")
SMALL = dataclasses.replace(CONFIGS["llama"], n_layers=2, n_heads=4)  # few steps: interpreting is slow


@cache
def model_with(implementation: str | None, config: ModelConfig = SMALL) -> Transformer:
    return informative_model(dataclasses.replace(config, implementation=implementation))


@cache
def prompts() -> PromptBatch:
    """Of the two answers one is right."""
    batch = random_prompts(53, lengths=(5, 3))
    logits = model_with(None)(batch.tokens, mask=batch.mask).logits[:, -1]
    batch.answers[0] = int(logits[0].argmax())
    return batch


def static(model: Transformer):
    pairs = some_relations(53)
    return relation_scores(
        relation_weights(InMemory(model)), pairs, RULE, implementation=model.config.implementation
    )._asdict()


def dynamic(model: Transformer):
    return dynamic_scores(model, prompts(), np.full(2, 10, np.int32)).scores


def ablated_last(model: Transformer):
    return head_ablation(model, prompts(), ablation="mean", positions="last", kv_groups=True)


def ablated_all(model: Transformer):
    return head_ablation(model, prompts(), ablation="mean", positions="all", kv_groups=True)


def attributed(model: Transformer):
    return logit_attribution(model, prompts(), metric="logit_diff")


def patterns(model: Transformer):
    return attention_patterns(model, np.asarray(TOKENS) % 5)._replace(n_tokens={})


def corrupted_prompts() -> PromptBatch:
    """The same prompts, each with a twin of shifted tokens."""
    return dataclasses.replace(prompts(), corrupted=np.roll(prompts().tokens, 1, axis=1) * prompts().mask)


def direct(model: Transformer):
    return direct_effects(model, corrupted_prompts())


def paths(model: Transformer):
    return path_patching(model, corrupted_prompts(), (Receiver.parse("L1H2.k"),), positions="all")


def paths_last(model: Transformer):
    return path_patching(model, corrupted_prompts(), (Receiver.parse("L1H2.q"),))


def copying(model: Transformer):
    return copy_scores(copy_weights(InMemory(model)), np.arange(7))


def salient(model: Transformer):
    return salient_operations(relation_weights(InMemory(model)), n_tokens=3, n_mapped=2)


def gradients(model: Transformer):
    replacement = find_replacement(model, prompts(), "mean", positions="all")
    return gradient_attribution(
        model, prompts(), metric="logit_diff", positions="all", replacement=replacement
    )


ATTENTION, ABLATION = ("head_attention",), ("head_attention", "next_token_metrics")
# Every sweep, and what computes it. Where a kernel is named, it is `vocab_rank` in place of the `STAND_INS`.
SWEEPS = {
    static: ("relation_hits",),
    dynamic: (*ATTENTION, "relation_hits"),
    ablated_last: (*ABLATION, "variant_decode"),
    ablated_all: ABLATION,
    gradients: ATTENTION,
    attributed: ATTENTION,
    patterns: ATTENTION,
    direct: (*ATTENTION, "logit_difference"),
    paths: (*ATTENTION, "logit_difference"),
    paths_last: (*ATTENTION, "logit_difference", "variant_decode"),
    copying: (*ATTENTION, "copy_score"),
    salient: ("salient_operations",),
}
THROUGH_KERNELS = (static, dynamic, ablated_last, ablated_all, gradients)
STAND_INS = ("relation_hits", "next_token_metrics")
ALWAYS_XLA = ("logit_difference", "copy_score", "salient_operations")


@pytest.mark.slow
@pytest.mark.parametrize("sweep", THROUGH_KERNELS, ids=lambda sweep: sweep.__name__)
def test_a_whole_sweep_is_the_same_through_the_tpu_kernels(sweep):
    expected = sweep(model_with(None))
    with allowing("pallas_mosaic_tpu"):
        actual = sweep(model_with("pallas_mosaic_tpu"))
    for ours, theirs in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert_close(ours, theirs)


def kernels_in(traced) -> list[str]:
    """Names of the Pallas kernels in a traced program, however deep."""
    return sorted({part.split()[0].strip('"') for part in str(traced).split("name=")[1:]})


def test_the_named_kernels_are_what_runs():
    """Not XLA with the name recorded beside it."""
    model = model_with("pallas_mosaic_tpu")
    with allowing("pallas_mosaic_tpu"):
        tokens, mask, answers, distractors = (
            getattr(prompts(), name) for name in ("tokens", "mask", "answers", "distractors")
        )
        clean = jax.eval_shape(lambda *a: prefill(*a, keep="last"), model, tokens, mask)
        edit = VariantEdit(jnp.ones((3, 2, 4)), jnp.zeros((2, 1, 1, 1, 1)))
        for trace, kernels in (
            (jax.make_jaxpr(lambda m, t: m(t))(model, TOKENS), {"head_attention"}),
            (
                jax.make_jaxpr(lambda *a: variant_step(*a, positions="last"))(
                    model, clean, edit, np.int32(0), answers, distractors
                ),
                {"head_attention", "vocab_rank"},  # `variant_decode` is `head_attention`'s kernel
            ),
        ):
            assert kernels <= set(kernels_in(trace))


def test_hits_of_numbers_that_are_none():
    """NaN makes no hit through a kernel either."""
    rng = np.random.default_rng(0)
    q, W_O, unembed = (rng.normal(size=size).astype(np.float32) for size in ((3, 7, 5), (3, 5, 11), (53, 11)))
    q[1, 2] = np.nan
    unembed[17, 3] = np.nan  # one more above and below every other target
    targets = np.array([1, 2, 17, 4, 5, 6, 17])
    stages, k = screening_stages(jnp.asarray(unembed), targets), jnp.full(7, 30)
    arrays = jnp.asarray(q), jnp.asarray(W_O), stages, k
    expected = jax.jit(relation_hits)(*arrays)
    assert not expected.plain[1, 2]
    assert not expected.plain[:, 2].any()
    for implementation in FORCED:
        with allowing(implementation):
            hits = jax.jit(partial(relation_hits, implementation=implementation))(*arrays)
        np.testing.assert_array_equal(hits.plain, expected.plain)
        np.testing.assert_array_equal(hits.suppression, expected.suppression)


@pytest.mark.parametrize("implementation", FORCED)
def test_metrics_of_residuals(implementation: str):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(7, 5, 23)), jnp.float32).at[2, 1, 3].set(jnp.nan)
    answers, distractors = rng.integers(0, 53, (2, 5)).astype(np.int32)
    distractors[3] = answers[3]  # no difference at all
    compiled = jax.jit(next_token_metrics)
    expected = compiled(model_with(None), x, answers, distractors)
    with allowing(implementation):
        actual = compiled(model_with(implementation), x, answers, distractors)
        alone = jax.eval_shape(next_token_metrics, model_with(implementation), x, answers)
    sound = np.ones((7, 5), bool)
    sound[2, 1] = False
    for name in ("logprob", "logit_diff"):
        ours, theirs = np.asarray(getattr(actual, name)), np.asarray(getattr(expected, name))
        assert_close(ours[sound], theirs[sound])
        assert np.isnan(ours[2, 1])
    assert (np.asarray(actual.logit_diff)[sound[:, 3], 3] == 0).all()
    np.testing.assert_array_equal(actual.accuracy, expected.accuracy)
    assert alone.logit_diff is None


@pytest.mark.parametrize("implementation", [None, *FORCED])
@pytest.mark.parametrize("family", CONFIGS)
def test_edits_in_the_epilogue_equal_edits_of_the_outputs(family: str, implementation: str | None):
    """`Attention.attend` with an edit, against z edited afterwards."""
    config = CONFIGS[family]
    model = model_with(implementation, config)
    rng = np.random.default_rng(2)
    z = model_with(None, config)(TOKENS, return_z=True).z[0]
    gain = jnp.asarray(rng.choice([0, 1, 0.3], (3, 2, 11, config.n_heads)), jnp.float32)
    other = jnp.asarray(rng.normal(size=(3, 1, 11, config.n_heads, config.d_head)), jnp.float32)
    with allowing(implementation or "xla"):
        edited = model(TOKENS, edit=HeadEdit(gain, other), return_z=True).z[0]
    assert_close(edited, gain[0, ..., None] * z + (1 - gain[0, ..., None]) * other[0])


def a_run(tmp: Path, **fields) -> RunConfig:
    (tmp / "relations").mkdir(exist_ok=True)
    return run_config(
        model=MODEL,
        relations_dir=write_relations("trained-llama", tmp / "relations"),
        min_pairs=3,
        checkpoint_dir=str(tmp / "checkpoints"),
        **fields,
    )


def settings() -> dict[str, object]:
    """What a process has only one of and a library may change."""
    return {
        "jax": dict(jax.config.values),
        "matplotlib": dict(matplotlib.rcParams),
        "numpy": (np.geterr(), np.get_printoptions()),
        "random numbers": repr(np.random.get_state()),
        "environment": dict(os.environ),
        "logging": (logging.getLogger().level, logging.getLogger().handlers[:], absl.logging.get_verbosity()),
        "warnings": warnings.filters[:],
        "directory": os.getcwd(),
    }


def test_runs_of_one_process_record_what_ran_and_leave_no_setting_behind(tmp_path: Path):
    """By the reference, which all devices of a mesh can run: interpreting is for one or two."""
    importlib.import_module("scipy.stats")  # which a run imports late; scipy leaves a filter of warnings
    config = altered(tiny_run(tmp_path), analyses=("relation_scores", "dynamic_scores"))
    usual = {"head_attention": "xla", "relation_hits": "xla"}
    forced = {"head_attention": "reference", "vocab_rank": "reference"}
    before = settings()
    for out, implementation, ran in (("a", None, usual), ("b", "reference", forced), ("c", None, usual)):
        run(
            altered(config, out=str(tmp_path / out), implementation=implementation),
            progress=False,
        )
        described = json.loads((tmp_path / out / "run.json").read_text())
        assert described["implementations"] == ran
        assert described["precision"] == "highest"
    assert settings() == before
    for ours, theirs in zip(*(load_npz(tmp_path / out / "scores.npz") for out in "ba"), strict=True):
        np.testing.assert_array_equal(ours.scores, theirs.scores)


def test_a_run_that_goes_on_records_what_its_finished_part_ran(tmp_path: Path, monkeypatch):
    """Killed when the scores were there and nothing else was."""
    config = altered(tiny_run(tmp_path), analyses=("dynamic_scores",))
    with monkeypatch.context() as killed:
        killed.setattr("experiments.run.report_tables", lambda *_: sys.exit("killed"))
        with pytest.raises(SystemExit, match="killed"):
            run(config, progress=False)
    for op in (head_attention, variant_decode, vocab_rank):
        monkeypatch.setitem(op.IMPLEMENTATIONS, "xla", None)
    run(config, progress=False)
    described = json.loads((Path(config.out) / "run.json").read_text())
    assert described["units_found"] > 0
    assert described["implementations"] == {"head_attention": "xla", "relation_hits": "xla"}


@pytest.mark.parametrize("sweep", SWEEPS, ids=lambda sweep: sweep.__name__)
def test_what_ran_is_recorded_at_every_call(sweep, monkeypatch):
    """Also of programs that an earlier sweep has compiled; and nothing is called but what is recorded."""
    usual = {Choice(op, "xla", "highest") for op in SWEEPS[sweep]}
    for _ in range(2):
        with recording() as ran:
            sweep(model_with(None))
        assert ran == usual
    named = {op if op in ALWAYS_XLA else "vocab_rank" if op in STAND_INS else op for op in SWEEPS[sweep]}
    for op in (head_attention, variant_decode, vocab_rank):
        monkeypatch.setitem(op.IMPLEMENTATIONS, "xla", None)
    with recording() as ran:
        sweep(model_with("reference"))
    assert ran == {Choice(op, "xla" if op in ALWAYS_XLA else "reference", "highest") for op in named}
    with recording() as ran:
        sweep(model_with(None))
    assert ran == usual


@pytest.mark.parametrize("sweep", SWEEPS, ids=lambda sweep: sweep.__name__)
def test_every_product_names_its_precision(sweep, monkeypatch):
    """So no setting of JAX's is needed, nor can one change a number."""
    products, bind = [], dot_general_p.bind

    def watched(*operands, **how):
        products.append(how["precision"])
        return bind(*operands, **how)

    monkeypatch.setattr(dot_general_p, "bind", watched)
    with jax.default_matmul_precision("bfloat16"):  # everything is traced anew
        sweep(model_with(None))
    assert set(products) == {(jax.lax.Precision.HIGHEST,) * 2}


@pytest.fixture
def x64() -> Iterator[None]:
    """As JAX_ENABLE_X64=1 has it."""
    jax.config.update("jax_enable_x64", True)
    try:
        yield
    finally:
        jax.config.update("jax_enable_x64", False)


@pytest.mark.parametrize("sweep", SWEEPS, ids=lambda sweep: sweep.__name__)
def test_numbers_are_float32_where_64_bits_are_allowed(sweep, x64):
    with jax.enable_x64(False):
        expected = sweep(model_with(None))
    actual = sweep(model_with(None))
    for ours, theirs in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert ours.dtype == theirs.dtype
        assert_close(ours, theirs)


@pytest.mark.parametrize("implementation", [None, "reference"])
def test_tokens_of_64_bits(implementation, x64):
    tokens = np.asarray(TOKENS, np.int64)
    output = model_with(implementation)(tokens, return_z=True)
    with jax.enable_x64(False):
        expected = model_with(None)(TOKENS, return_z=True)
    assert output.logits.dtype == output.z.dtype == np.float32
    assert_close(output.logits, expected.logits)
    assert_close(output.z, expected.z)


def test_one_that_cannot_run_here_is_refused_before_anything_is_loaded(tmp_path: Path):
    config = run_config(model="no such model", out=str(tmp_path), implementation="pallas_mosaic_tpu")
    rule = "field 'implementation' must name one that can run here; pallas_mosaic_tpu runs on a TPU; this"
    with pytest.raises(InputError, match=rule):
        run(config, progress=False)


def test_what_a_kernel_cannot_do_is_one_line(tmp_path: Path):
    """Here known only once the model is there: its forward passes would be spread over all devices."""
    (tmp_path / "prompts.jsonl").write_text(
        json.dumps({"prompt": "The capital of France is", "answer": "Paris"})
    )
    config = a_run(
        tmp_path,
        out=str(tmp_path / "out"),
        analyses=("logit_attribution",),
        prompts=str(tmp_path / "prompts.jsonl"),
        implementation="pallas_mosaic_tpu",
    )
    rule = "must name one that can run here; forward passes .* need a mesh of one device; this one has 8"
    with allowing("pallas_mosaic_tpu"), pytest.raises(InputError, match=rule):
        run(config, progress=False)


def test_an_unknown_one_is_refused():
    with pytest.raises(InputError, match=r"'implementation' must be one of .*, pallas_mosaic_gpu; got 'cud'"):
        run_config(model="gpt2", implementation="cud")


def test_a_name_that_no_implementation_has_is_refused():
    numbers = jnp.ones((1, 2, 3, 4))
    with pytest.raises(ValueError, match=r"implementation must be one of \['pallas_mosaic_gpu', .*; got 'x'"):
        head_attention.head_attention(numbers, numbers, numbers, implementation="x")


def test_a_kernel_for_tpus_takes_arrays_of_one_type(monkeypatch):
    monkeypatch.setattr(tpu.platform, "require", lambda name: None)
    wide, narrow, half = (jnp.ones(3, dtype) for dtype in ("float32", "bfloat16", "float16"))
    tpu.check("highest", wide, wide)
    for operands in ((wide, narrow), (half, half)):
        with pytest.raises(NotImplementedError, match="takes float32 or bfloat16, one for all operands; got"):
            tpu.check("highest", *operands)
