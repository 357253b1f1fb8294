"""Score grids: saved and read back exactly, selected, ranked, classified and summarised."""

import csv
import dataclasses
import os
import stat
from types import SimpleNamespace

import numpy as np
import pytest

from headjax.axes import Head
from headjax.engine.clean_run import clean_row
from headjax.engine.metrics import Metrics
from headjax.errors import InputError
from headjax.grid import GridSet, HeadGrid, category_counts, head_categories, load_npz, save_csv, save_npz
from headjax.io import atomic_write
from headjax.report.summary import (
    SummaryRow,
    category_rows,
    clean_table,
    score_rows,
    skipped_row,
    summary_table,
)
from headjax.report.table import Table
from headjax.stats import wilson
from tests.helpers.grids import spelled


def grid(scores, relation="copying", category="Algorithmic", kind="static", model="Tiny", **more) -> HeadGrid:
    more = {"n_pairs": 41, **spelled(kind), **more}
    return HeadGrid(np.asarray(scores), model, relation, category, **more)


@pytest.fixture
def mixed() -> GridSet:
    """Two models of different size; static, signed with errors and per-prompt values; awkward texts."""
    draw = np.random.default_rng(0)
    return GridSet(
        (
            grid(draw.random((3, 5)), kind="static"),
            grid(draw.random((3, 5)), "country_to_capital", "Knowledge", "static", name="Country to capital"),
            grid(draw.random((7, 2)), kind="static", model='A "quoted", model', n_pairs=150),
            grid(
                *(draw.normal(size=(3, 5)) * 1e-9, "copying", "Algorithmic", "ablation_logprob"),
                template="No <X> means no",
                metric="logprob",
                stderr=draw.random((3, 5)),
                samples=draw.normal(size=(11, 3, 5)),
                clean=-0.75,
                clean_stderr=0.1,
            ),
            grid(
                draw.normal(size=(7, 2)), kind="ablation_logprob", model='A "quoted", model', metric="logprob"
            ),
        )
    )


def test_arrays_become_float32_and_a_display_name_is_made():
    made = grid([[1.0, 0.0], [0.0, 0.0]], relation="adj_to_comparative")
    assert made.scores.dtype == np.float32
    assert made.name == "Adj to comparative"


def test_select_takes_values_and_collections(mixed):
    assert len(mixed.select(kind="static")) == 3
    assert len(mixed.select(kind=("static", "ablation_logprob"), model="Tiny")) == 3
    assert len(mixed.select(relation="nothing")) == 0
    assert mixed.values("model") == ("Tiny", 'A "quoted", model')
    assert len(mixed + mixed) == 2 * len(mixed)


def test_wrong_questions_to_grids_are_refused():
    with pytest.raises(InputError, match=r"grids have the fields scores, model, .*; got 'relations'"):
        hand_made().select(relations="capitals")
    for k in (0, -1, True, 1.5, "a"):
        with pytest.raises(InputError, match="'k' must be a whole number of at least 1; got"):
            next(iter(hand_made())).top(k)


def test_top_is_best_first_with_ties_in_head_order_and_nan_last():
    scores = np.zeros((3, 4))
    scores[2, 1], scores[0, 3], scores[1, 0] = 0.9, 0.5, np.nan
    top = grid(scores).top(12)
    assert top[:3] == [(Head(2, 1), pytest.approx(0.9)), (Head(0, 3), 0.5), (Head(0, 0), 0.0)]
    assert top[-1][0] == Head(1, 0)
    assert str(top[0][0]) == "L2H1"


def test_csv_has_the_columns_every_head_and_exact_numbers(mixed, tmp_path):
    save_csv(mixed, tmp_path / "scores.csv")
    with open(tmp_path / "scores.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    header = (
        "model,relation,category,kind,layer,head,score,n_pairs,template,metric,stderr,clean,clean_stderr,"
    )
    assert ",".join(rows[0]) == header + "analysis,replacement,positions,measure,part,sign"
    assert len(rows) == 3 * 15 + 2 * 14
    rows = iter(rows)
    for saved in mixed:
        for (layer, head), score in np.ndenumerate(saved.scores):
            row = next(rows)
            assert (row["model"], row["relation"], row["kind"]) == (saved.model, saved.relation, saved.kind)
            assert (int(row["layer"]), int(row["head"]), int(row["n_pairs"])) == (layer, head, saved.n_pairs)
            assert np.float32(row["score"]) == score
            assert (row["template"], row["metric"]) == (saved.template, saved.metric)
            expected = "" if saved.stderr is None else saved.stderr[layer, head]
            assert (np.float32(row["stderr"]) if row["stderr"] else "") == expected
            for column in ("analysis", "replacement", "positions", "measure", "part", "sign"):
                assert row[column] == getattr(saved, column)
            for column in ("clean", "clean_stderr"):
                assert (float(row[column]) if row[column] else None) == getattr(saved, column)


def test_npz_gives_everything_back(mixed, tmp_path):
    save_npz(mixed, tmp_path / "scores.npz")
    loaded = load_npz(tmp_path / "scores.npz")
    texts = ("model", "relation", "name", "category", "measure", "part", "sign", "template", "metric")
    texts += ("n_pairs", "clean", "clean_stderr")
    assert len(loaded) == len(mixed)
    for before, after in zip(mixed, loaded, strict=True):
        assert [getattr(before, field) for field in texts] == [getattr(after, field) for field in texts]
        for field in ("scores", "stderr", "samples"):
            np.testing.assert_array_equal(getattr(before, field), getattr(after, field))


def test_npz_is_an_array_per_kind_with_a_coordinate_per_row(mixed, tmp_path):
    save_npz(mixed.select(model="Tiny"), tmp_path / "scores.npz")
    with np.load(tmp_path / "scores.npz") as file:
        assert file["static"].shape == (2, 3, 5)
        row = file["static.relation"].tolist().index("country_to_capital")
        np.testing.assert_array_equal(file["static"][row], mixed.grids[1].scores)
        assert file["static.name"][row] == "Country to capital"
        assert file["static.category"].tolist() == ["Algorithmic", "Knowledge"]
        assert file["static.n_pairs"].tolist() == [41, 41]
        assert file["static.model"].tolist() == ["Tiny", "Tiny"]
        assert "static.stderr" not in file
        assert file["ablation_logprob.stderr"].shape == (1, 3, 5)


def test_grids_become_one_labelled_array(mixed, monkeypatch):
    """As xarray takes it, which need not be installed."""
    made = SimpleNamespace(DataArray=lambda *arguments, **named: (*arguments, named))
    monkeypatch.setattr("headjax.grid.import_extra", lambda name: {"xarray": made}[name])
    own = mixed.select(model="Tiny")
    scores, named = own.to_xarray()
    np.testing.assert_array_equal(scores, np.stack([one.scores for one in own]))
    assert named["dims"] == ("grid", "layer", "head")
    assert named["coords"]["measure"] == ("grid", [one.measure for one in own])
    assert GridSet(()).to_xarray()[0].shape == (0, 0, 0)
    with pytest.raises(InputError, match="grids of one array are of one size"):
        mixed.to_xarray()


def test_an_empty_set_is_saved_and_loaded(tmp_path):
    save_npz(GridSet(), tmp_path / "scores.npz")
    assert len(load_npz(tmp_path / "scores.npz")) == 0


def test_a_file_that_is_no_scores_npz_is_named(mixed, tmp_path):
    path = tmp_path / "scores.npz"
    with pytest.raises(InputError, match=r"scores\.npz.*No such file"):
        load_npz(path)
    path.write_text("layer,head\n")
    with pytest.raises(InputError, match=r"scores\.npz.*zip"):
        load_npz(path)
    np.savez(path, other=np.zeros(3))
    with pytest.raises(InputError, match=r"scores\.npz.*lacks.*other\.relation"):
        load_npz(path)
    save_npz(mixed, path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(InputError, match=r"scores\.npz"):
        load_npz(path)
    save_npz(mixed, path)
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"scores\.npz"):
        load_npz(path)


def hand_made() -> GridSet:
    """A 2 x 3 model. Head by head: nothing, one category twice, just at the threshold; two, three, four."""
    categories = {
        "Algorithmic": "copying",
        "Knowledge": "country_to_capital",
        "Linguistic": "word_to_antonym",
    }
    above, below = 0.16, 0.15
    scores = {
        ("Algorithmic", "static"): [[0, above, below], [above, above, above]],
        ("Knowledge", "static"): [[0, 0, 0], [1, 0, 0.2]],
        ("Knowledge", "static_suppression"): [[0, 0, below], [0, 0.5, 0]],
        ("Linguistic", "static"): [[0, 0, 0], [0, 0.3, 0.3]],
        ("Translation", "static_suppression"): [[0, 0, 0], [0, 0, 0.9]],
    }
    made = [
        grid(values, categories.get(category, "english_to_french"), category, kind)
        for (category, kind), values in scores.items()
    ]
    made.append(grid([[0, 0.9, 0], [0, 0, 0]], "name_copying"))  # the same category by another relation
    made.append(grid(np.ones((2, 3)), kind="dynamic_context"))  # another kind does not count
    return GridSet(tuple(made))


def test_an_archive_whose_directory_hides_an_array_is_refused(mixed, tmp_path):
    """One entry of the directory is taken to be the comment of the one before it; zipfile does not mind."""
    save_npz(mixed, tmp_path / "scores.npz")
    content = bytearray((tmp_path / "scores.npz").read_bytes())
    start = int.from_bytes(content[-6:-2], "little")
    sizes = []  # of the directory's entries
    while start + sum(sizes) < len(content) - 22:
        at = start + sum(sizes)
        sizes.append(46 + sum(int.from_bytes(content[at + i : at + i + 2], "little") for i in (28, 30, 32)))
    hidden = sizes[-1]
    at = start + sum(sizes[:-2])
    content[at + 32 : at + 34] = hidden.to_bytes(2, "little")
    (tmp_path / "scores.npz").write_bytes(content)
    with pytest.raises(InputError, match="its directory hides an array"):
        load_npz(tmp_path / "scores.npz")


def test_a_category_counts_strictly_above_the_threshold():
    masks = head_categories(hand_made())
    got = [[{c for c in masks if masks[c][layer, head]} for head in range(3)] for layer in range(2)]
    assert got == [
        [set(), {"Algorithmic"}, set()],
        [
            {"Algorithmic", "Knowledge"},
            {"Algorithmic", "Knowledge", "Linguistic"},
            {"Algorithmic", "Knowledge", "Linguistic", "Translation"},
        ],
    ]
    assert category_counts(masks) == (2, 1, 1, 1, 1)


def test_without_suppression_only_plain_scores_count():
    assert category_counts(head_categories(hand_made(), count_suppression=False)) == (2, 1, 2, 1, 0)


def test_six_hits_of_forty_are_not_above_the_threshold_in_any_precision():
    hits = np.float32(6) / np.float32(40)
    for threshold in (0.15, np.float64(0.15), np.float32(0.15)):
        assert category_counts(head_categories(GridSet((grid([[hits]]),)), float(threshold))) == (
            1,
            0,
            0,
            0,
            0,
        )


def test_another_threshold_and_another_measure():
    assert category_counts(head_categories(hand_made(), threshold=0.85))[0] == 3
    assert category_counts(head_categories(hand_made(), measure="dynamic", part="context")) == (0, 6, 0, 0, 0)


def test_heads_are_classified_one_model_at_a_time(mixed):
    with pytest.raises(InputError, match=r"one model.*Tiny"):
        head_categories(mixed)
    with pytest.raises(InputError, match="dynamic context"):
        head_categories(mixed, measure="dynamic", part="context")


def test_summary_rows_name_the_best_heads_and_what_was_skipped(tmp_path):
    grids = hand_made().select(kind="static", category="Knowledge")
    rows = [*score_rows(grids), skipped_row("Tiny", "product_to_company", "Knowledge", "7 of 30 pairs")]
    assert rows[0].best_heads == "L1H0 1.00, L1H2 0.20"  # and no head of score 0
    assert (rows[0].maximum, rows[0].heads, rows[0].n_pairs) == (1.0, 2, 41)
    assert rows[0].certain_heads == 1  # 0.20 of 41 pairs may well be 0.15
    assert (rows[0].low, rows[0].high) == pytest.approx(tuple(wilson(1.0, 41)))
    Table("summary", SummaryRow._fields, rows).write(tmp_path)
    with open(tmp_path / "summary.csv", newline="") as file:
        saved = list(csv.DictReader(file))
    assert saved[0]["best_heads"].startswith("L1H0 1.00")
    assert (saved[1]["relation"], saved[1]["n_pairs"]) == ("product_to_company", "")
    assert saved[1]["skipped"] == "7 of 30 pairs"
    assert [row.heads for row in score_rows(grids, threshold=0.5)] == [1]
    assert float(saved[0]["low"]) == rows[0].low


def test_summary_of_a_share_near_the_threshold():
    """0.21 of 80 pairs: above 0.15, but not for certain."""
    (row,) = score_rows(GridSet((grid([[17 / 80, 0.1]], n_pairs=80),)))
    assert (row.heads, row.certain_heads) == (1, 0)
    assert row.low < 0.15 < row.high


def effects(kind: str, metric: str) -> HeadGrid:
    """Effects of both signs, one of 0 and one that is no number, each with an error."""
    scores = [[0.5, -4.0, 0.0], [2.0, np.nan, -0.004]]
    stderr = [[0.1, 0.25, 0.0], [0.5, 0.1, 0.001]]
    errors = {"stderr": np.array(stderr), "clean": 3.25, "clean_stderr": 0.5}
    return grid(scores, "ioi", "Prompts", kind, metric=metric, **errors)


def test_signed_measures_show_both_ends_with_errors():
    (row,) = score_rows(GridSet((effects("ablation_logit_diff", "logit_diff"),)))
    assert row.best_heads == "L1H0 +2.00 +- 0.5, L0H0 +0.50 +- 0.1"
    assert row.opposing_heads == "L0H1 -4.00 +- 0.25, L1H2 -4e-03 +- 0.001"
    assert (row.maximum, row.clean, row.clean_stderr) == (2.0, 3.25, 0.5)
    # No threshold of relation scores, and no interval of shares.
    assert (row.heads, row.certain_heads, row.low, row.high) == ("", "", "", "")
    assert "3.25 +- 0.5" in summary_table([row])
    certain = dataclasses.replace(effects("ablation_accuracy", "accuracy"), clean=1.0, clean_stderr=0.0)
    (row,) = score_rows(GridSet((certain,)))
    assert "1.00 [0.91, 1.00]" in summary_table([row])  # 41 of 41 prompts, and no error of 0


@pytest.mark.parametrize("kind", ["path_direct", "path_query", "circuit_2_key"])
def test_of_path_patching_the_heads_that_help_are_below_0(kind: str):
    """The percent is what the answer loses: the head at -4 helps most, that at 2 works against it most."""
    (row,) = score_rows(GridSet((effects(kind, "percent_of_gap"),)))
    assert row.best_heads == "L0H1 -4.00 +- 0.25, L1H2 -4e-03 +- 0.001"
    assert row.opposing_heads == "L1H0 +2.00 +- 0.5, L0H0 +0.50 +- 0.1"
    assert row.maximum == -4.0


def test_scores_that_are_no_relation_scores_have_no_threshold():
    high = [[0.9, 0.0], [np.nan, 0.4]]
    copy, attention, nothing = score_rows(
        GridSet(
            (
                grid(high, kind="copy_score_suppression", n_pairs=61),
                grid(high, kind="attention_induction"),
                grid(np.full((2, 2), np.nan), kind="attention_duplicate"),
            )
        )
    )
    assert copy.best_heads == attention.best_heads == "L0H0 0.90, L1H1 0.40"
    assert (copy.low, copy.high) == pytest.approx(tuple(wilson(0.9, 61)), abs=1e-6)
    assert attention.low == ""  # a mean over tokens is no share of them
    assert (nothing.maximum, nothing.best_heads) == ("", "")
    for row in (copy, attention, nothing):
        assert (row.heads, row.certain_heads, row.opposing_heads) == ("", "", "")
    assert "nan" not in summary_table([copy, attention, nothing])


def test_clean_rows_have_errors_where_there_can_be_any():
    metrics = Metrics(np.array([-1.0, -3.0]), np.array([2.0, 1.0]), np.array([1.0, 0.0]))
    row = clean_row("M", "ioi", "task", metrics)
    assert row[:4] == ("M", "ioi", "task", 2)
    assert (row.accuracy, row.accuracy_low, row.accuracy_high) == (0.5, *wilson(0.5, 2))
    assert (row.logprob, row.logprob_stderr, row.logit_diff, row.logit_diff_stderr) == (-2, 1, 1.5, 0.5)
    one = clean_row("M", "other", "task", Metrics(np.array([-1.0]), None, np.array([1.0])))
    assert (one.logprob, one.logprob_stderr, one.logit_diff, one.logit_diff_stderr) == (-1, None, None, None)
    lines = clean_table([row, one]).splitlines()
    assert "0.50 [0.09, 0.91]  -2.00 +- 1" in lines[1]
    assert lines[2].split()[-2:] == ["-1.00", "-"]


def test_category_rows_count_the_heads_of_each_model():
    rows = category_rows(hand_made() + GridSet((grid(np.zeros((3, 5)), model="Other"),)))
    assert [(row.category, row.heads) for row in rows[:5]] == [
        ("Unclassified", 2),
        ("1 category", 1),
        ("2 categories", 1),
        ("3 categories", 1),
        ("4 categories", 1),
    ]
    assert [(row.model, row.heads) for row in rows[5:]] == [("Other", n) for n in (15, 0, 0, 0, 0)]


def test_the_table_is_aligned_and_leaves_out_columns_that_say_nothing():
    lines = summary_table(score_rows(hand_made().select(kind="static"))).splitlines()
    assert lines[0].split() == [
        *("relation", "category", "maximum", "low", "high", "heads", "certain", "heads", "best", "heads")
    ]
    assert len(lines) == 5
    assert len({line.index("L") for line in (line[50:] for line in lines[1:])}) <= 1
    assert "0.90" in lines[-1]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "new" / "scores.csv"
    with atomic_write(path) as file:
        file.write("old")

    def fail_midway():
        with atomic_write(path) as file:
            file.write("half")
            raise RuntimeError("midway")

    with pytest.raises(RuntimeError, match="midway"):
        fail_midway()
    assert path.read_text() == "old"
    assert os.listdir(path.parent) == ["scores.csv"]
    assert stat.S_IMODE(path.stat().st_mode) & 0o444  # readable as any other file, not private


def test_a_disk_that_refuses_is_one_clear_error(tmp_path, mixed):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"scores\.csv must be writable; "):
        save_csv(mixed, tmp_path / "file" / "scores.csv")
    with pytest.raises(InputError, match=r"scores\.npz must be writable"):
        save_npz(mixed, tmp_path / "file" / "scores.npz")
    (tmp_path / "taken").mkdir()
    with pytest.raises(InputError, match=r"taken must be writable; Is a directory"):
        save_csv(mixed, tmp_path / "taken")
    assert sorted(os.listdir(tmp_path)) == ["file", "taken"]


@pytest.mark.parametrize("save", [save_csv, save_npz])
def test_a_full_disk_is_one_clear_error(tmp_path, mixed, monkeypatch, save):
    if not os.path.exists("/dev/full"):
        pytest.skip("needs /dev/full, a device that is always full")
    real_open = open

    def open_on_full_disk(path, *args, **kwargs):
        return real_open("/dev/full", *args, **kwargs)

    monkeypatch.setattr("builtins.open", open_on_full_disk)
    with pytest.raises(InputError, match=r"scores must be writable; No space left on device"):
        save(mixed, tmp_path / "scores")
    assert os.listdir(tmp_path) == []
