"""The published numbers: every table parses, covers what it claims, and is what the authors released."""

import csv
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from experiments.published import (
    COMPARISONS,
    TABLES,
    citation,
    load_direct_effects,
    load_published,
)
from headjax.data.relations import RELATION_IDS
from headjax.errors import InputError
from headjax.zoo import MODELS

MAPS_MODELS = {
    "gpt2-xl": "gpt2-xl",
    "pythia-6.9b": "EleutherAI/pythia-6.9b",
    "pythia-12b": "EleutherAI/pythia-12b",
    "llama-3.1-8b": "meta-llama/Meta-Llama-3.1-8B",
    "llama-3.1-70b": "meta-llama/Meta-Llama-3.1-70B",
}
MEASURES = {  # ours -> the released column
    "max_score": "max_score_over_heads",
    "r_no_context": "pearson_without_context",
    "r_context": "pearson_with_context",
}
CAUSAL = {
    "heads_removed": "heads_removed",
    "base": "base",
    "relation_removed": "minus_relation_heads",
    "n_controls": "n_control_tasks",
}
SPREAD = {
    "random_removed": "minus_random_heads",
    "control_base": "control_base",
    "control_removed": "control_minus_relation_heads",
}


def released(shared_data: Path, name: str) -> list[dict[str, str]]:
    with open(shared_data / "published" / name, newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("table", TABLES)
def test_every_number_is_of_a_known_model_and_relation_and_stands_once(table: str):
    rows = load_published(table)
    assert {row.model for row in rows} <= set(MODELS)
    assert {row.relation for row in rows} <= {*RELATION_IDS, "ioi_names"}
    assert {row.kind for row in rows} <= {"plain", "suppression"}
    assert {row.bound for row in rows} <= {"", "<", ">"}
    assert all(np.isfinite(row.value) for row in rows)
    assert max(Counter(row[:4] for row in rows).values()) == 1
    assert "arXiv:" in citation(table)


@pytest.mark.parametrize(
    ("table", "file", "measures"),
    [
        ("maps_scores", "maps_correlations_and_max_scores.csv", ("max_score",)),
        ("maps_correlations", "maps_correlations_and_max_scores.csv", ("r_no_context", "r_context")),
        ("maps_multi_token", "maps_multi_token.csv", ("r_no_context", "r_context")),
    ],
)
def test_scores_and_correlations_are_the_released_ones(table, file, measures, shared_data: Path):
    ours = {row[:4]: row.value for row in load_published(table)}
    aliases = {name: alias for alias, name in MAPS_MODELS.items()}
    theirs = {
        (aliases[row["model"]], row["relation"], row["kind"], measure): float(row[MEASURES[measure]])
        for row in released(shared_data, file)
        for measure in measures
    }
    assert ours == theirs


def test_five_models_plain_and_by_suppression_over_the_relations_each_was_scored_on():
    for table, n_measures in (("maps_scores", 1), ("maps_correlations", 2)):
        rows = load_published(table)
        per_model = Counter(row.model for row in rows)
        assert set(per_model) == set(MAPS_MODELS)
        assert min(per_model.values()) >= 2 * 15 * n_measures
        assert {row.relation for row in rows} == set(RELATION_IDS)
        assert len([row for row in rows if row.kind == "suppression"]) * 2 == len(rows)
    # Llama 3 has no single tokens for years.
    assert per_model["llama-3.1-8b"] == per_model["llama-3.1-70b"] == 2 * 19 * 2


def test_causal_rows_are_the_released_ones(shared_data: Path):
    ours = {row[:4]: row.value for row in load_published("maps_causal")}
    theirs = {}
    for row in released(shared_data, "maps_causal.csv"):
        alias = next(alias for alias, name in MAPS_MODELS.items() if name == row["model"])
        for measure, column in CAUSAL.items():
            theirs[alias, row["relation"], "plain", measure] = float(row[column])
        for measure, column in SPREAD.items():
            if row[column]:
                mean, deviation = map(float, row[column].split(" +- "))
                theirs[alias, row["relation"], "plain", measure] = mean
                theirs[alias, row["relation"], "plain", f"{measure}_std"] = deviation
    assert ours == theirs
    assert {key[0] for key in ours} == set(MAPS_MODELS) - {"llama-3.1-70b"}


def test_copy_scores_are_those_of_the_paper():
    rows = {(row.kind, row.measure): (row.bound, row.value) for row in load_published("ioi_copy_scores")}
    assert rows == {
        ("plain", "least_circuit_head"): (">", 0.95),
        ("plain", "mean_head"): ("<", 0.2),
        ("suppression", "mean_circuit_head"): ("", 0.98),
        ("suppression", "mean_head"): ("", 0.12),
    }


def test_direct_effects_are_the_released_ones_and_name_the_name_movers(shared_data: Path):
    effects = load_direct_effects()
    with np.load(shared_data / "published" / "copy_suppression_scores.npz") as file:
        for model, grid in effects.items():
            assert model in MODELS
            theirs = file["gpt2-small" if model == "gpt2" else model][0]
            np.testing.assert_allclose(grid, theirs, rtol=5.1e-3, atol=1e-12)
    best = {divmod(int(head), 12) for head in np.argsort(-effects["gpt2"].ravel())[:3]}
    assert best == {(9, 9), (9, 6), (10, 0)}  # Wang et al.'s name movers
    assert "Copy Suppression" in citation("ioi_direct_effects")


def test_another_table_is_refused():
    assert len(set(COMPARISONS)) == len(TABLES) + 1
    with pytest.raises(InputError, match=r"maps_scores.*got 'nothing'"):
        load_published("nothing")
