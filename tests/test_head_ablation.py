"""Head ablation: the sweep against full forward passes with the same edit, ours and torch's."""

import dataclasses
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from headjax.analyses.head_ablation import head_ablation, single_gains
from headjax.data.prompts import PromptBatch
from headjax.engine import mesh, variants
from headjax.engine.batches import prompt_chunks
from headjax.engine.metrics import METRICS, Metrics
from headjax.engine.prefill import prefill
from headjax.engine.replacement import find_replacement
from headjax.engine.variant_step import variant_step
from headjax.engine.variants import choose_variant_batch, run_variants
from headjax.errors import InputError
from headjax.model import Transformer, build_model, model_parameters
from headjax.model.edits import HeadEdit
from tests.helpers import torch_oracle
from tests.helpers.ablation_oracle import DTYPES, assert_same_metrics, deaf_model, metrics_of, prompts_for
from tests.helpers.models import CONFIGS, GPT2, informative_model
from tests.helpers.random_prompts import random_prompts
from tests.helpers.tolerances import assert_close
from tests.helpers.torch_or_skip import torch
from tests.helpers.twins import twins

POSITIONS = ("last", "all")
PAIRED_LENGTHS = (11, 7, 4, 11, 4, 7, 7)  # nobody is alone with their length


def slow_way(
    model: Transformer, prompts: PromptBatch, heads: list[tuple[int, int]], replacement, positions: str
) -> Metrics:
    """Metrics [B] of one full forward pass; `replacement` [L B|1 S|1 H K] or None."""
    edit = HeadEdit.ablate(
        model.config, heads, n_positions=prompts.tokens.shape[1], positions=positions, replacement=replacement
    )
    return metrics_of(model(prompts.tokens, mask=prompts.mask, edit=edit).logits[:, -1], prompts)


def full_replacement(model: Transformer, prompts: PromptBatch, ablation: str, positions: str, mean_over: str):
    """What takes z's place, from the z of whole forward passes: [L B|1 S|1 H K]."""
    z = np.asarray(model(prompts.tokens, mask=prompts.mask, return_z=True).z)
    mask = prompts.mask[None, :, :, None, None]
    if ablation == "zero":
        return None
    if ablation == "resample":
        return model(prompts.corrupted, mask=prompts.mask, return_z=True).z
    axes = 1 if mean_over == "prompts" else (1, 2)
    return jnp.asarray((z * mask).sum(axes, keepdims=True) / mask.sum(axes, keepdims=True), jnp.float32)


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize(
    ("family", "ablation", "mean_over"),
    [
        ("gpt2", "zero", "prompts"),
        ("gpt2", "mean", "prompts"),
        ("llama", "mean", "tokens"),
        ("llama", "resample", "prompts"),
        ("gpt_neox", "mean", "prompts"),
        ("gpt_neox", "resample", "prompts"),
    ],
)
def test_equals_one_forward_pass_for_each_head(family, ablation, mean_over, positions):
    model = informative_model(CONFIGS[family])
    prompts = prompts_for(model)
    result = head_ablation(model, prompts, ablation=ablation, mean_over=mean_over, positions=positions)
    L, H, B = model.config.n_layers, model.config.n_heads, len(prompts.tokens)
    clean = slow_way(model, prompts, [], None, positions)
    assert_same_metrics(result.clean, clean)
    assert 0 < clean.accuracy.mean() < 1
    replacement = full_replacement(model, prompts, ablation, positions, mean_over)
    for layer in range(L):
        for head in (0, 1, H - 1):
            expected = slow_way(model, prompts, [(layer, head)], replacement, positions)
            at_head = jax.tree.map(lambda values, at=(layer, head): values[at], result.ablated)
            assert_same_metrics(at_head, expected)
            for metric in METRICS:
                effect = getattr(clean, metric) - getattr(expected, metric)
                np.testing.assert_allclose(result.effect(metric)[layer, head], effect, rtol=0, atol=1e-4)
    for values in result.ablated:
        assert values.shape == (L, H, B)
    assert result.effect("accuracy").any()


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_changes_nothing_has_no_effect_to_the_last_bit(dtype: str, positions: str):
    """Wherever a variant begins, in whatever batch: the clean run is a variant of the same program."""
    model = deaf_model("llama", dtype)
    prompts = prompts_for(model)
    result = head_ablation(model, prompts, positions=positions, variant_batch=4)
    for metric in METRICS:
        np.testing.assert_array_equal(result.effect(metric)[:, 1], np.zeros((3, 7)))
    assert (result.effect("logprob")[:, [0, 2, 3, 4, 5]] != 0).any(axis=(1, 2)).all()
    assert_close(result.clean.logprob, slow_way(model, prompts, [], None, positions).logprob, dtype)

    gain = np.ones((5, 3, 6), np.float32)
    gain[1, :, 1], gain[2, 1:, 1], gain[3, 2, 1] = 0, 0.5, 0  # deaf heads of all layers, of later ones
    zeros = find_replacement(model, prompts, "zero", positions=positions)
    runs = run_variants(model, prompts, gain, zeros, positions=positions, variant_batch=2)
    for clean, edited in zip(runs.clean, runs.edited, strict=True):
        np.testing.assert_array_equal(edited, np.broadcast_to(clean, (5, 7)))


ALL_POSITIONS = (*torch_oracle.FAMILIES, "gpt_neox-sequential")


@pytest.mark.parametrize(
    ("name", "positions"),
    [(name, "last") for name in torch_oracle.CONFIGS] + [(name, "all") for name in ALL_POSITIONS],
)
def test_equals_torch_with_hooks(name: str, positions: str):
    """Every family and kind of attention, every head, left-padded prompts of different lengths."""
    model, theirs = twins(name)
    config = model.config
    prompts = random_prompts(config.vocab_size, lengths=(11, 7, 4))
    result = head_ablation(model, prompts, positions=positions)

    def without(layer: int, head: int) -> np.ndarray:
        def edit(at: int, z: torch.Tensor) -> torch.Tensor:
            if at == layer:
                z[:, -1 if positions == "last" else slice(None), head] = 0
            return z

        return torch_oracle.run(theirs, prompts.tokens, prompts.mask, edit)[0][:, -1]

    for layer in range(config.n_layers):
        for head in range(config.n_heads):
            expected = metrics_of(without(layer, head), prompts)
            for metric in METRICS:
                actual = getattr(result.ablated, metric)[layer, head]
                np.testing.assert_allclose(actual, getattr(expected, metric), rtol=0, atol=1e-4)


@pytest.mark.parametrize("positions", POSITIONS)
def test_key_value_groups(positions: str):
    """All query heads of a key/value head together."""
    model = informative_model(CONFIGS["llama"])
    prompts = prompts_for(model)
    result = head_ablation(model, prompts, positions=positions, kv_groups=True)
    assert result.ablated.logprob.shape == (3, 2, 7)
    for layer in range(3):
        for group in range(2):
            heads = [(layer, 3 * group + i) for i in range(3)]
            at_group = jax.tree.map(lambda values, at=(layer, group): values[at], result.ablated)
            assert_same_metrics(at_group, slow_way(model, prompts, heads, None, positions))


@pytest.mark.parametrize("positions", POSITIONS)
def test_variants_of_any_heads_and_gains(positions: str):
    """Not only single heads at gain 0: any gains in any layers, in any order; no edit is the clean run."""
    model = informative_model(CONFIGS["gpt_neox"])
    prompts = prompts_for(model)
    S, rng = prompts.tokens.shape[1], np.random.default_rng(0)
    gain = np.where(rng.random((11, 3, 5)) < 0.3, rng.random((11, 3, 5)), 1).astype(np.float32)
    gain[4], gain[5, :2] = 1, 1
    instead = find_replacement(model, prompts, "resample", positions=positions)
    runs = run_variants(model, prompts, gain, instead, positions=positions, variant_batch=4)
    assert_close(runs.edited.logprob[4], runs.clean.logprob)
    replacement = model(prompts.corrupted, mask=prompts.mask, return_z=True).z
    for variant, own in enumerate(gain):
        everywhere = np.ones((3, 1, S, 5), np.float32)
        everywhere[:, 0, -1 if positions == "last" else slice(None)] = (
            own[:, None] if positions == "all" else own
        )
        edit = HeadEdit(jnp.asarray(everywhere), replacement)
        logits = model(prompts.tokens, mask=prompts.mask, edit=edit).logits[:, -1]
        assert_close(runs.edited.logprob[variant], metrics_of(logits, prompts).logprob)


@pytest.mark.parametrize(
    ("ablation", "mean_over", "positions"),
    [("mean", "tokens", "last"), ("mean", "prompts", "all"), ("resample", "prompts", "all")],
)
def test_batch_sizes_change_no_result(ablation: str, mean_over: str, positions: str):
    model = informative_model(CONFIGS["llama"])
    prompts = dataclasses.replace(prompts_for(model, lengths=PAIRED_LENGTHS), corrupted=None)
    options = {"ablation": ablation, "mean_over": mean_over, "positions": positions}
    whole = head_ablation(model, prompts, **options)
    for batch_size, variant_batch in ((64, 5), (3, 7)):
        parts = head_ablation(model, prompts, **options, batch_size=batch_size, variant_batch=variant_batch)
        assert_same_metrics(parts.clean, whole.clean)
        assert_same_metrics(parts.ablated, whole.ablated)


def test_a_sweep_compiles_once_whatever_the_depth(count_compiles):
    """One program for the clean run, one for all variants of all layers."""

    def compiled(n_layers: int, positions: str) -> int:
        model = informative_model(dataclasses.replace(GPT2, n_layers=n_layers))
        prompts = random_prompts(53, lengths=(12, 7))
        with count_compiles() as programs:
            head_ablation(model, prompts, positions=positions, variant_batch=5)
        return len(programs)

    for positions in POSITIONS:
        assert [compiled(n_layers, positions) for n_layers in (2, 7)] == [2, 2]


def test_the_program_does_not_grow_with_the_depth():
    def size(n_layers: int) -> int:
        config = dataclasses.replace(GPT2, n_layers=n_layers)
        model = informative_model(config)
        prompts = random_prompts(53)
        clean = prefill(model, prompts.tokens, prompts.mask, keep="last")
        edit = variants.VariantEdit(single_gains(config, 5)[:5], np.zeros((n_layers, 1, 1, 1, 1), np.float32))
        step = variant_step.lower(model, clean, edit, np.int32(0), prompts.answers, None, positions="last")
        return step.as_text().count("\n")

    assert size(3) == size(11)


def test_resampling_never_takes_a_prompts_own_output():
    """From another prompt, drawn by the seed; at all positions from one of the same length."""
    model = informative_model(CONFIGS["gpt2"])
    prompts = random_prompts(53, lengths=PAIRED_LENGTHS)
    rows = np.arange(len(PAIRED_LENGTHS))
    for positions in POSITIONS:
        own = np.asarray(find_own(model, prompts, positions))
        found = set()
        for seed in range(5):
            donated = np.asarray(
                find_replacement(model, prompts, "resample", positions=positions, seed=seed)(rows)
            )
            distance = np.abs(donated[:, :, None] - own[:, None]).max(axis=(0, 3, 4, 5))
            donor = distance.argmin(axis=1)
            assert (distance.min(axis=1) < 1e-5).all()
            assert (donor != rows).all()
            if positions == "all":
                lengths = np.array(PAIRED_LENGTHS)
                np.testing.assert_array_equal(lengths[donor], lengths)
            found.add(tuple(donor.tolist()))
        assert len(found) > 1


def find_own(model: Transformer, prompts: PromptBatch, positions: str):
    partners = dataclasses.replace(prompts, corrupted=prompts.tokens)
    return find_replacement(model, partners, "resample", positions=positions)(np.arange(len(prompts.tokens)))


def test_nobody_to_resample_from_is_refused():
    model = informative_model(CONFIGS["gpt2"])
    with pytest.raises(InputError, match="or another prompt of its relation; prompt 0 has none"):
        head_ablation(model, random_prompts(53, lengths=(5,)), ablation="resample")
    alone = random_prompts(53, lengths=(7, 5, 7))
    find_replacement(model, alone, "resample", positions="last")
    with pytest.raises(InputError, match="another prompt of its relation and length; prompt 1 has none"):
        head_ablation(model, alone, ablation="resample", positions="all")
    with pytest.raises(InputError, match="must be one of zero, mean, resample; got 'noise'"):
        head_ablation(model, alone, ablation="noise")


def test_metrics_that_are_not_there_are_refused():
    result = head_ablation(informative_model(CONFIGS["gpt2"]), random_prompts(53, distractors=False))
    assert result.ablated.logit_diff is None
    with pytest.raises(InputError, match="'logit_diff' needs prompts with distractors"):
        result.effect("logit_diff")
    with pytest.raises(InputError, match="logprob, logit_diff, accuracy; got 'loss'"):
        result.effect("loss")


def test_nan_logits_are_one_clear_line():
    model = informative_model(CONFIGS["gpt2"])
    prompts = random_prompts(53)
    parameters = model_parameters(model)
    parameters["embed.W_E"] = parameters["embed.W_E"].at[prompts.tokens[3, -1]].set(jnp.nan)
    with pytest.raises(InputError, match=r"logits must be numbers; prompt . gives NaN"):
        head_ablation(build_model(model.config, parameters), prompts)


@pytest.mark.parametrize("on_host", [True, False])
def test_out_of_memory_is_answered_by_halving(monkeypatch, caplog, on_host: bool):
    """Also where the next batch is begun early."""
    monkeypatch.setattr(mesh, "computes_here", lambda: on_host)
    model = informative_model(CONFIGS["gpt2"])
    prompts = random_prompts(53)
    expected = head_ablation(model, prompts, variant_batch=12)
    tried = []

    def device_with_room_for(n: int):
        def step(model, clean, edit, *args, **kwargs):
            tried.append(len(edit.gain))
            if len(edit.gain) > n:
                raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes.")
            return variant_step(model, clean, edit, *args, **kwargs)

        return step

    monkeypatch.setattr(variants, "variant_step", device_with_room_for(4))
    with caplog.at_level(logging.WARNING):
        result = head_ablation(model, prompts, variant_batch=12)
    assert_same_metrics(result.ablated, expected.ablated)
    assert tried == [12, 6] + [3] * 6  # 15 heads and the clean run; 12 of them at once, then the other 4
    assert [record.getMessage() for record in caplog.records] == [
        "out of memory with 12 variants at a time; going on with 6",
        "out of memory with 6 variants at a time; going on with 3",
    ]

    monkeypatch.setattr(variants, "variant_step", device_with_room_for(0))
    with pytest.raises(InputError, match=r"must hold one variant .* lower batch_size"):
        head_ablation(model, prompts)

    def broken(*args, **kwargs):
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")

    monkeypatch.setattr(variants, "variant_step", broken)
    with pytest.raises(jax.errors.JaxRuntimeError, match="something else"):
        head_ablation(model, prompts)


def test_the_variants_of_a_batch_fit_the_free_memory(monkeypatch):
    model = informative_model(GPT2)
    monkeypatch.setitem(variants.ENOUGH_ROWS, "cpu", 10**9)
    row = variants.numbers_per_row(GPT2, 11) * 4
    for prompts, room, expected in ((7, 2 * 7, 1), (7, 2 * 7 * 3, 3), (7, 2 * 7 * 4, 3), (7, 2 * 7 * 16, 15)):
        monkeypatch.setattr(variants, "HOST_BYTES", room * row)
        assert choose_variant_batch(model, (prompts, 11), "last") == expected
    monkeypatch.setattr(variants, "HOST_BYTES", 0)
    assert choose_variant_batch(model, (7, 11), "all") == 1
    monkeypatch.setattr(variants, "HOST_BYTES", 10**12)
    monkeypatch.setitem(variants.ENOUGH_ROWS, "cpu", 70)
    assert choose_variant_batch(model, (7, 11), "last") == 10
    assert choose_variant_batch(model, (7, 11), "all") == 1


def test_progress_is_shown_for_every_batch():
    seen = []

    def track(items, total, label):
        for item in items:
            seen.append((item, total, label))
            yield item

    head_ablation(
        informative_model(CONFIGS["gpt2"]), random_prompts(53), variant_batch=6, batch_size=4, track=track
    )
    places = [(0, 6), (6, 12), (12, 16)]  # of 15 heads and the clean run
    assert seen == [(at, 3, "head ablation (zero, last)") for at in places] * 2
    assert len(prompt_chunks(7, 4)) == 2
