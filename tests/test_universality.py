"""Category shares by depth, relations per head and groups of heads, on grids with known answers."""

import numpy as np
import pytest

from headjax.grid import GridSet, HeadGrid
from headjax.universality import (
    category_shares,
    group_similarity,
    head_correlations,
    relation_counts,
    relations_per_head,
)
from tests.helpers.grids import spelled

L, H, G = 3, 6, 2


def grid(scores: np.ndarray, relation: str, category: str, kind: str = "static", model: str = "M"):
    return HeadGrid(scores, model, relation, category, **spelled(kind), n_pairs=40)


def at(*heads: tuple[int, int], shape: tuple[int, int] = (L, H)) -> np.ndarray:
    """A grid that is 1 at these heads."""
    scores = np.zeros(shape)
    scores[tuple(zip(*heads, strict=True))] = 1
    return scores


@pytest.fixture
def grids() -> GridSet:
    """L2H5 has three relations of two categories, one of them both plain and by suppression."""
    return GridSet(
        (
            grid(at((2, 5), (0, 0)), "capitals", "Knowledge"),
            grid(at((2, 5)), "capitals", "Knowledge", "static_suppression"),
            grid(at((2, 5), (2, 4), (2, 3)), "copying", "Algorithmic"),
            grid(at((1, 1), (2, 5)), "letters", "Algorithmic", "static_suppression"),
            grid(np.full((L, H), 0.15), "letters", "Algorithmic"),  # not above the threshold
        )
    )


def test_shares_of_every_layer_and_category(grids):
    shares = {(row.category, row.layer): row.share for row in category_shares(grids)}
    assert shares == {
        **{("Knowledge", 0): 1 / 6, ("Knowledge", 1): 0, ("Knowledge", 2): 1 / 6},
        **{("Algorithmic", 0): 0, ("Algorithmic", 1): 1 / 6, ("Algorithmic", 2): 3 / 6},
    }
    assert [row.depth for row in category_shares(grids)][:3] == [0, 0.5, 1]
    plain = {(row.category, row.layer): row.share for row in category_shares(grids, count_suppression=False)}
    assert plain["Algorithmic", 1] == 0


def test_relations_are_counted_once_each(grids):
    expected = at((2, 5), (0, 0), (1, 1), (2, 4), (2, 3))
    expected[2, 5] = 3
    np.testing.assert_array_equal(relations_per_head(grids), expected)
    rows = relation_counts(grids)
    assert [(row.n_relations, row.heads) for row in rows] == [(0, L * H - 5), (1, 4), (2, 0), (3, 1)]
    assert {row.n_scored for row in rows} == {3}
    assert sum(row.share for row in rows) == pytest.approx(1)


def test_models_are_kept_apart(grids):
    other = GridSet((grid(np.zeros((1, 2)), "copying", "Algorithmic", model="N"),))
    assert {row.model for row in category_shares(grids + other)} == {"M", "N"}
    assert relation_counts(grids + other)[-1][:4] == ("N", 0, 1, 2)
    assert [row.depth for row in category_shares(other)] == [0]  # a single layer


def test_heads_of_a_group_are_compared_with_each_other_and_with_the_rest():
    """Two groups of three heads, each its own pattern over relations with some noise."""
    rng = np.random.default_rng(0)
    R = 23
    patterns = rng.random((R, L, G))
    scores = np.repeat(patterns, H // G, axis=2) + 0.1 * rng.random((R, L, H))
    grids = GridSet(tuple(grid(scores[r], f"relation {r}", "Custom") for r in range(R)))
    rows = group_similarity(grids, {"M": G})
    assert [(row.layer, row.n_within, row.n_across) for row in rows] == [(at, 6, 9) for at in range(L)]
    for row in rows:
        expected = np.corrcoef(scores[:, row.layer].T)
        np.testing.assert_allclose(head_correlations(scores[:, row.layer]), expected, atol=1e-12)
        pairs = [(a, b) for a in range(H) for b in range(a)]
        assert row.within == pytest.approx(
            np.mean([expected[p] for p in pairs if p[0] // 3 == p[1] // 3]), abs=1e-6
        )
        assert row.across == pytest.approx(
            np.mean([expected[p] for p in pairs if p[0] // 3 != p[1] // 3]), abs=1e-6
        )
        assert row.within > 0.8 > 0.5 > row.across


def test_groups_of_two_models_are_compared_each_by_its_own_scores():
    rng = np.random.default_rng(2)
    models = {
        name: GridSet(
            tuple(grid(rng.random((L, H)), f"relation {r}", "Custom", model=name) for r in range(n))
        )
        for name, n in (("M", 7), ("N", 5))
    }
    alone = [row for name, grids in models.items() for row in group_similarity(grids, {name: G})]
    assert group_similarity(models["M"] + models["N"], {"M": G, "N": G}) == alone


def test_heads_without_differences_and_models_without_groups_are_left_out():
    scores = np.random.default_rng(1).random((7, 1, 4))
    scores[:, 0, :2] = 0  # one of each group cannot be compared: no pair within is left
    scores[:, 0, 2] = 0
    grids = GridSet(tuple(grid(one, f"r{i}", "Custom") for i, one in enumerate(scores)))
    (row,) = group_similarity(grids, {"M": 2})
    assert np.isnan(row.within)
    assert np.isnan(row.across)
    assert (row.n_within, row.n_across) == (0, 0)
    assert group_similarity(grids, {"M": 4}) == group_similarity(grids, {"M": 1}) == []


def test_every_measure_takes_the_threshold_and_the_signs_that_are_asked_for(grids):
    """At 0.1 a relation that every head scores 0.15 in counts too; without suppression one head has none."""
    low = at((2, 5), (0, 0), (2, 4), (2, 3)) + 1
    low[2, 5] = 3
    np.testing.assert_array_equal(relations_per_head(grids, 0.1), low)
    counts = {row.n_relations: row.heads for row in relation_counts(grids, 0.1)}
    assert counts == {0: 0, 1: L * H - 4, 2: 3, 3: 1}
    plain = {row.n_relations: row.heads for row in relation_counts(grids, count_suppression=False)}
    assert plain == {0: L * H - 4, 1: 3, 2: 1}
    shares = {(row.category, row.layer): row.share for row in category_shares(grids, 0.1)}
    assert shares["Algorithmic", 0] == 1
    nothing = category_shares(grids, 1.0)
    assert {row.share for row in nothing} == {0}


def test_the_share_of_a_count_is_of_all_heads(grids):
    assert [row.share for row in relation_counts(grids)] == pytest.approx(
        [(L * H - 5) / (L * H), 4 / (L * H), 0, 1 / (L * H)]
    )


def test_only_static_scores_count():
    """Other kinds of the same model, and a model that has only those, change nothing."""
    rng = np.random.default_rng(0)
    static = GridSet(tuple(grid(rng.random((L, H)), f"r{i}", "Custom") for i in range(7)))
    dynamic = grid(np.ones((L, H)), "r0", "Custom", "dynamic_context")
    other = grid(np.ones((L, H)), "r0", "Custom", "dynamic_context", model="N")
    more = static + GridSet((dynamic, other))
    np.testing.assert_array_equal(
        relations_per_head(static + GridSet((dynamic,))), relations_per_head(static)
    )
    assert relation_counts(more) == relation_counts(static)
    assert category_shares(more) == category_shares(static)
    assert group_similarity(more, {"M": G, "N": G}) == group_similarity(static, {"M": G})
