"""Ablation curves: where they start, what they remove, whom they are compared with, and their tables."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from headjax.analyses.head_ablation import head_ablation
from headjax.axes import Head
from headjax.data.prompts import PromptBatch
from headjax.engine.curves import (
    Curve,
    RelationCurves,
    ablation_curves,
    choose_controls,
    control_faults,
    rank_heads,
)
from headjax.errors import InputError
from headjax.model import Transformer
from headjax.model.edits import HeadEdit
from headjax.report.curve_tables import curve_rows, summary_row
from headjax.stats import draws_band, wilson
from tests.helpers.models import CONFIGS, informative_model
from tests.helpers.random_prompts import random_prompts
from tests.helpers.tolerances import assert_close

RELATIONS = ("capitals", "colours", "animals")
LENGTHS = (11, 7, 9, 4, 11, 5, 8, 8, 6, 10)  # dealt out: 4, 3 and 3 prompts
N_HEADS = 4


def known_prompts(model: Transformer) -> PromptBatch:
    """Prompts of three relations; the model knows all answers but one of each."""
    groups = tuple((relation, "<X> is") for relation in RELATIONS)
    prompts = random_prompts(model.config.vocab_size, LENGTHS, groups)
    best = np.asarray(model(prompts.tokens, mask=prompts.mask).logits[:, -1]).argmax(axis=1)
    best[:3] = (best[:3] + 1) % 53
    return dataclasses.replace(prompts, answers=best.astype(np.int32))


def rankings_of(*orders) -> dict[str, np.ndarray]:
    """Grids that rank these heads in this order; all others have score 0."""
    grids = {relation: np.zeros((3, 5), np.float32) for relation in RELATIONS}
    for grid, heads in zip(grids.values(), orders, strict=True):
        for place, head in enumerate(heads):
            grid[head] = 1 - place / 10
    return grids


ORDERS = (
    [(2, 1), (0, 3), (1, 0), (0, 0)],
    [(1, 4), (1, 3), (2, 2), (2, 0)],
    [(2, 1), (0, 3), (1, 1), (0, 2)],  # too much of the first
)


@pytest.fixture(scope="module")
def model() -> Transformer:
    return informative_model(CONFIGS["gpt_neox"])


@pytest.fixture(scope="module")
def prompts(model: Transformer) -> PromptBatch:
    return known_prompts(model)


@pytest.fixture(scope="module")
def curves(model: Transformer, prompts: PromptBatch) -> tuple[RelationCurves, ...]:
    return ablation_curves(model, prompts, rankings_of(*ORDERS), variant_batch=4, batch_size=3)


def without(model: Transformer, prompts: PromptBatch, heads) -> tuple[np.ndarray, np.ndarray]:
    """Accuracy and log-probability [B] of one full forward pass."""
    edit = HeadEdit.ablate(model.config, heads, n_positions=prompts.tokens.shape[1], positions="last")
    logits = np.asarray(model(prompts.tokens, mask=prompts.mask, edit=edit).logits[:, -1], np.float64)
    own = logits[np.arange(len(logits)), prompts.answers]
    return own >= logits.max(axis=1), own - np.log(np.exp(logits).sum(axis=1))


def test_every_point_is_a_forward_pass_without_those_heads(model, prompts, curves):
    for r, relation in enumerate(curves):
        own = slice(r, None, 3)
        assert relation.relation == RELATIONS[r]
        assert relation.heads == tuple(Head(*head) for head in ORDERS[r])
        assert relation.own.accuracy.shape == (N_HEADS + 1, len(LENGTHS[own]))
        for n in range(N_HEADS + 1):
            accuracy, logprob = without(model, prompts, relation.heads[:n])
            np.testing.assert_array_equal(relation.own.accuracy[n], accuracy[own])
            assert_close(relation.own.logprob[n], logprob[own])


def test_begins_with_the_clean_run_and_the_single_head_grid(model, prompts, curves):
    single = head_ablation(model, prompts, variant_batch=4)
    for r, relation in enumerate(curves):
        own = slice(r, None, 3)
        assert_close(relation.own.logprob[0], single.clean.logprob[own])
        np.testing.assert_array_equal(relation.own.accuracy[0], single.clean.accuracy[own])
        assert_close(relation.own.logprob[1], single.ablated.logprob[relation.heads[0]][own])


def test_random_draws_are_other_heads_and_the_seed_repeats_them(model, prompts, curves):
    again = ablation_curves(model, prompts, rankings_of(*ORDERS), variant_batch=4, batch_size=3)
    other = ablation_curves(
        model, prompts, rankings_of(*ORDERS), variant_batch=4, batch_size=3, seed=1, n_controls=0
    )
    for relation, same, different in zip(curves, again, other, strict=True):
        assert len(relation.draws) == 5
        for draw in relation.draws:
            assert draw.logprob.shape == relation.own.logprob.shape
            assert_close(draw.logprob[0], relation.own.logprob[0])
        for one, two in zip(relation.draws, same.draws, strict=True):
            np.testing.assert_array_equal(one.logprob, two.logprob)
        assert any(
            (one.logprob != two.logprob).any()
            for one, two in zip(relation.draws, different.draws, strict=True)
        )
        assert len({draw.logprob[-1].tobytes() for draw in relation.draws}) == 5
        assert different.controls == {}


def test_controls_lose_the_same_heads(model, prompts, curves):
    """The third relation shares half its heads with the first: neither controls the other."""
    assert [relation.not_controls for relation in curves] == [
        {"animals": "shares 2 of 4 heads"},
        {},
        {"capitals": "shares 2 of 4 heads"},
    ]
    assert [tuple(relation.controls) for relation in curves] == [
        ("colours",),
        ("animals", "capitals"),  # equal accuracy comes before a near one
        ("colours",),
    ]
    for relation in curves:
        for name, curve in relation.controls.items():
            own = slice(RELATIONS.index(name), None, 3)
            for n in range(N_HEADS + 1):
                _, logprob = without(model, prompts, relation.heads[:n])
                assert_close(curve.logprob[n], logprob[own])


def test_controls_are_relations_of_other_heads_and_like_accuracy():
    heads = {name: tuple(Head(0, i) for i in range(10)) for name in "abcdefgh"}
    apart = tuple(Head(1, i) for i in range(20))
    heads |= {
        "b": apart,
        "c": apart,
        "d": apart[:18] + heads["a"][:2],
        "e": apart,
        "f": heads["a"][:1] + apart,
    }
    accuracy = {"a": 0.5, "b": 0.69, "c": 0.29, "d": 0.5, "e": 0.45, "f": 0.6, "g": 0.5, "h": 0.5}
    assert choose_controls("a", heads, accuracy, 5) == ("e", "f", "b")
    assert choose_controls("a", heads, accuracy, 1) == ("e",)
    assert choose_controls("a", heads | {"a": ()}, accuracy, 9)[:3] == ("d", "g", "h")


def test_ranking():
    scores = np.array([[0, 0.5, np.nan, 0.25], [0.75, -0.5, 0.5, 0]], np.float32)
    ranked = [Head(1, 0), Head(0, 1), Head(1, 2), Head(0, 3), Head(1, 1)]
    assert rank_heads(scores) == tuple(ranked)
    assert rank_heads(jnp.asarray(scores), 3) == tuple(ranked[:3])
    assert rank_heads(np.zeros((3, 5))) == ()
    sizes = {(12, 12): 30, (12, 24): 30, (20, 15): 50, (24, 16): 50, (25, 20): 100, (32, 31): 100}
    sizes |= {(40, 25): 150, (48, 25): 150, (50, 30): 250, (80, 64): 250}
    assert {shape: len(rank_heads(np.ones(shape))) for shape in sizes} == sizes


def test_a_small_model_has_fewer_other_heads_and_a_relation_may_have_none(model, prompts):
    rankings = rankings_of(*ORDERS)
    rankings["capitals"] = np.ones((3, 5), np.float32)
    rankings["capitals"][2] = 0
    rankings["colours"] = np.zeros((3, 5), np.float32)
    first, none, _ = ablation_curves(model, prompts, rankings, n_random_draws=2)
    assert len(first.own.accuracy) == 11
    assert [len(draw.accuracy) for draw in first.draws] == [6, 6]
    assert none.heads == ()
    assert len(none.own.accuracy) == len(none.draws[0].accuracy) == 1
    assert len(curve_rows(first, "M")) == 11 + 6 + 11 * len(first.controls)
    assert summary_row(none, "M").n_heads == 0


def test_relations_with_any_numbers_of_heads_and_controls_share_one_program(model, prompts, count_compiles):
    rankings = rankings_of(ORDERS[0], ORDERS[1][:2], ORDERS[2][:1])
    jax.clear_caches()
    with count_compiles() as compiled:
        curves = ablation_curves(model, prompts, rankings, n_random_draws=2)
    assert {len(one.heads) for one in curves} == {4, 2, 1}
    assert compiled.count("jit(variant_step)") == 1


def test_a_relation_without_a_ranking_is_refused(model, prompts):
    with pytest.raises(InputError, match="grid that ranks heads; 'animals' has none"):
        ablation_curves(model, prompts, {name: np.ones((3, 5)) for name in RELATIONS[:2]})


def curve(accuracy) -> Curve:
    accuracy = np.asarray(accuracy, np.float32)
    return Curve(accuracy, accuracy - 2)


TABLED = RelationCurves(
    "capitals",
    (Head(2, 1), Head(0, 3)),
    own=curve([[1, 1, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0]]),
    draws=(curve([[1, 1, 1, 0]] * 3), curve([[1, 1, 1, 0], [1, 1, 0, 0], [1, 0, 0, 0]])),
    controls={"colours": curve([[1, 1], [1, 1], [1, 0]]), "animals": curve([[1, 0], [1, 0], [0, 0]])},
    not_controls={"plants": "shares 1 of 2 heads", "tools": "clean accuracy differs by 0.75"},
)


def test_summary():
    summary = summary_row(TABLED, "M")
    assert summary._replace(controls=()) == (
        *("M", "capitals", 4, 2),
        *(0.75, *wilson(0.75, 4).tolist(), 0.0, *wilson(0.0, 4).tolist(), 0.5, 0.25),
        *((), 0.75, 0.25, 0.25, 2, ""),
    )
    assert summary.controls == ("colours", "animals")
    alone = summary_row(TABLED._replace(draws=(), controls={}, own=curve([[1, 0], [1, 0], [1, 1]])), "M")
    assert alone.first_zero is None
    assert alone.removed == 1
    assert np.isnan([alone.random, alone.random_std, alone.control_base, alone.control_removed]).all()
    assert alone.no_controls == "plants: shares 1 of 2 heads; tools: clean accuracy differs by 0.75"
    assert summary_row(TABLED._replace(controls={}, not_controls={}), "M").no_controls == "no other relation"


def test_rows_of_the_table():
    rows = curve_rows(TABLED, "M")
    assert [(row.curve, row.prompts, row.n_heads, row.head) for row in rows] == [
        (curve, prompts, n, "" if curve == "random" else head)
        for curve, prompts in (
            ("relation", "capitals"),
            ("random", "capitals"),
            ("control", "colours"),
            ("control", "animals"),
        )
        for n, head in enumerate(("", "L2H1", "L0H3"))
    ]
    assert [row.accuracy for row in rows[:6]] == [0.75, 0.25, 0, 0.75, 0.625, 0.5]
    for row in rows:
        assert row.relation == "capitals"
        assert row.accuracy_low <= row.accuracy <= row.accuracy_high
        assert row.logprob == row.accuracy - 2
        assert row.logprob_low <= row.logprob <= row.logprob_high
    own, random, colours, animals = (rows[i : i + 3] for i in (0, 3, 6, 9))
    for line, n_prompts in ((own, 4), (colours, 2), (animals, 2)):
        for row in line:
            limits = (row.accuracy_low, row.accuracy_high)
            assert limits == pytest.approx(wilson(row.accuracy, n_prompts), abs=1e-6)
    accuracy = np.stack([draw.accuracy for draw in TABLED.draws])
    logprob = np.stack([draw.logprob for draw in TABLED.draws])
    for found, expected in (
        ([(row.accuracy_low, row.accuracy_high) for row in random], draws_band(accuracy, True)),
        ([(row.logprob_low, row.logprob_high) for row in random], draws_band(logprob, False)),
    ):
        np.testing.assert_allclose(found, expected.T)
    assert rows == curve_rows(TABLED, "M")
    assert len(curve_rows(TABLED._replace(draws=()), "M")) == 9


def test_a_certain_curve_has_a_band_of_some_width():
    """12 of 12 prompts, in every draw: [0.76, 1], not [1, 1]."""
    right = curve(np.ones((3, 12)))
    for row in curve_rows(TABLED._replace(own=right, draws=(right, right), controls={"colours": right}), "M"):
        assert (row.accuracy, row.accuracy_high) == (1, 1)
        assert row.accuracy_low == pytest.approx(0.7575, abs=1e-4)


def test_controls_that_fail_say_why():
    heads = {
        name: tuple(Head(0, i) for i in range(n)) for name, n in (("a", 7), ("b", 7), ("c", 0), ("d", 2))
    }
    accuracy = {"a": 0.5, "b": 0.5, "c": 0.9, "d": 0.9}
    assert control_faults("a", heads, accuracy) == {
        "b": "shares 7 of 7 heads",
        "c": "clean accuracy differs by 0.40",
        "d": "shares 2 of 7 heads",
    }
    assert choose_controls("a", heads, accuracy, 5) == ()
