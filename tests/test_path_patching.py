"""Path patching: its identities, against whole runs, and what it refuses."""

import dataclasses
from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest

from headjax.analyses.head_ablation import head_ablation
from headjax.analyses.path_patching import PatchedPaths, Receiver, direct_effects, path_patching
from headjax.axes import Head
from headjax.errors import InputError
from headjax.model import build_model, model_parameters
from tests.helpers.ablation_oracle import DTYPES, deaf_model
from tests.helpers.models import CONFIGS, GPT2, informative_model
from tests.helpers.path_prompts import prompts_for, receivers_of
from tests.helpers.tolerances import assert_close

POSITIONS = ("last", "all")


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox"])
def test_at_the_top_layer_all_paths_are_direct(family: str):
    """There a patched head is a resampled one, to the logits through the MLP and in no other way.

    Where the MLP runs beside attention it does not see the head: the direct effect is the whole effect.
    """
    model = informative_model(CONFIGS[family])
    prompts = prompts_for(model)
    resampled = head_ablation(model, prompts, ablation="resample").ablated.logit_diff[-1]
    assert_close(path_patching(model, prompts).patched[-1], resampled)
    direct = direct_effects(model, prompts).patched[-1]
    if model.config.parallel_residual:
        assert_close(direct, resampled)
    else:
        assert np.abs(direct - resampled).max() > 1e-2


def test_the_only_head_of_the_only_layer_is_all_there_is():
    """With the last token kept and the MLP beside attention, nothing else tells the prompts apart."""
    config = dataclasses.replace(CONFIGS["gpt_neox"], n_layers=1, n_heads=1, n_kv_heads=1)
    model = informative_model(config)
    prompts = prompts_for(model)
    corrupted = prompts.corrupted.copy()
    corrupted[:, -1] = prompts.tokens[:, -1]
    prompts = dataclasses.replace(prompts, corrupted=corrupted)
    result = direct_effects(model, prompts)
    assert_close(result.patched[0, 0], result.corrupted)
    assert result.gap != 0
    swapped = dataclasses.replace(prompts, answers=prompts.distractors, distractors=prompts.answers)
    percents = [direct_effects(model, which) for which in (prompts, swapped)]
    (does,) = [one for one in percents if one.gap > 0]
    assert_close(does.percent().mean(axis=2), [[-100.0]])


def test_a_prompt_that_is_its_own_partner_has_no_effects():
    model = informative_model(CONFIGS["gpt2"])
    prompts = prompts_for(model)
    prompts = dataclasses.replace(prompts, corrupted=prompts.tokens)
    receivers = receivers_of("L1H0.q", "L2H4.v")
    for result in (
        direct_effects(model, prompts),
        path_patching(model, prompts),
        *(path_patching(model, prompts, receivers, positions=positions) for positions in POSITIONS),
    ):
        np.testing.assert_array_equal(result.corrupted, result.clean)
        np.testing.assert_array_equal(result.patched, np.broadcast_to(result.clean, (3, 5, 3)))
        with pytest.raises(InputError, match="greater than their corrupted partners' on average"):
            result.percent()


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_changes_nothing_has_no_effect_to_the_last_bit(dtype: str):
    """A head whose output reaches nothing, and a prompt that is its own partner, in every dtype."""
    model = deaf_model("llama", dtype)
    prompts = prompts_for(model, (7, 5, 7))
    own = dataclasses.replace(prompts, corrupted=prompts.tokens)
    receivers = receivers_of("L1H3.k", "L2H0.q")
    for sweep in (
        direct_effects,
        path_patching,
        *(partial(path_patching, receivers=receivers, positions=positions) for positions in POSITIONS),
    ):
        options = {} if sweep is direct_effects else {"variant_batch": 5}
        result = sweep(model, prompts, **options)
        np.testing.assert_array_equal(result.patched[:, 1], np.broadcast_to(result.clean, (3, 3)))
        assert (result.patched[0, [0, 2, 3, 4, 5]] != result.clean).any()
        result = sweep(model, own, **options)
        np.testing.assert_array_equal(result.patched, np.broadcast_to(result.clean, (3, 6, 3)))
        assert result.gap == 0


def test_heads_that_no_receiver_is_above_have_no_effect():
    model = informative_model(CONFIGS["gpt2"])
    prompts = prompts_for(model)
    result = path_patching(model, prompts, receivers_of("L1H2.v"))
    np.testing.assert_array_equal(result.patched[1:], np.broadcast_to(result.clean, (2, 5, 3)))
    assert np.abs(result.patched[0] - result.clean).max() > 1e-3


@pytest.mark.parametrize("positions", POSITIONS)
def test_batch_sizes_change_no_result(positions: str):
    model = informative_model(CONFIGS["llama"])
    prompts = prompts_for(model, (11, 7, 9, 4, 11))
    receivers = receivers_of("L1H1.k", "L2H2.q", "L2H3.v")
    whole = path_patching(model, prompts, receivers, positions=positions)
    parts = path_patching(model, prompts, receivers, positions=positions, batch_size=2, variant_batch=7)
    for one, other in zip(parts, whole, strict=True):
        assert_close(one, other)
    for one, other in zip(
        direct_effects(model, prompts, batch_size=2), direct_effects(model, prompts), strict=True
    ):
        assert_close(one, other)


def test_a_sweep_compiles_once_whatever_the_depth_and_the_receivers(count_compiles):
    """One program for both kinds of prompt, one for all senders to the logits, one for all to receivers."""

    def compiled(n_layers: int) -> int:
        model = informative_model(dataclasses.replace(GPT2, n_layers=n_layers))
        prompts = prompts_for(model, (12, 7))
        with count_compiles() as programs:
            path_patching(model, prompts, variant_batch=5)
            path_patching(model, prompts, receivers_of("L1H0.q"), variant_batch=5)
            path_patching(model, prompts, receivers_of(f"L{n_layers - 1}H1.v", "L1H1.k"), variant_batch=5)
        return len(programs)

    assert [compiled(n_layers) for n_layers in (2, 7)] == [3, 3]


def test_percent_is_the_published_one():
    """-100 (patched - clean) / (corrupted - clean), averages first."""
    result = PatchedPaths(
        np.array([3.0, 5.0]), np.array([1.0, 0.0]), np.array([[[3.0, 5.0], [2.0, 1.5], [6.0, 9.0]]])
    )
    percent = result.percent().mean(axis=2)
    np.testing.assert_allclose(percent, [[0, -100 * (1.75 - 4) / (0.5 - 4), -100 * (7.5 - 4) / (0.5 - 4)]])
    assert percent[0, 1] < 0 < percent[0, 2]


def test_receivers_are_read_and_shown():
    expected = Receiver(Head(9, 6), "q")
    assert {Receiver.parse(label) for label in ("L9H6.q", "9.6.q", "(9, 6).q")} == {expected}
    assert str(expected) == "L9H6.q"
    for label in ("L9H6", "9.6", "L9H6.z", "q", ".q"):
        with pytest.raises(InputError, match="head"):
            Receiver.parse(label)


def test_input_at_fault_is_refused():
    model = informative_model(CONFIGS["gpt2"])
    prompts = prompts_for(model)
    with pytest.raises(InputError, match=r"needs prompts with distractors .* prompt 0 has no distractor"):
        path_patching(model, dataclasses.replace(prompts, distractors=None))
    with pytest.raises(InputError, match="corrupted partners; prompt 0 has no corrupted"):
        direct_effects(model, dataclasses.replace(prompts, corrupted=None))
    with pytest.raises(InputError, match="3 layers of 5 heads; got L3H0"):
        path_patching(model, prompts, receivers_of("L3H0.q"))
    with pytest.raises(InputError, match=r"above layer 0.*L0H3\.v"):
        path_patching(model, prompts, receivers_of("L0H3.v"))
    parameters = model_parameters(model)
    broken = parameters["embed.W_E"].at[prompts.corrupted[1, -1]].set(jnp.nan)
    broken = build_model(model.config, parameters | {"embed.W_E": broken})
    with pytest.raises(InputError, match="finite numbers; prompt"):
        direct_effects(broken, prompts)
