"""The trained models that come along: what they are, what they can do, how far their scores agree."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from experiments import trained
from experiments.config import load_config
from experiments.pages.agreement import agreement_rows, spearman
from experiments.pages.agreement_text import SHOWN
from experiments.pages.figures import draw_measures
from experiments.pages.finished import read_table
from experiments.record import write_record
from experiments.run import open_model
from experiments.trained.page import write_page
from experiments.trained.questions import accuracies, make_questions
from experiments.trained.settings import PRESETS, Settings, config_fields
from experiments.trained.text import Writer
from experiments.trained.train import text_digest
from experiments.trained.words import make_vocabulary, taught_pairs
from headjax import load_model
from headjax.analyses import HeadAblation, RelationScores
from headjax.data.prompts import load_tokenizer, select_pairs
from headjax.data.relations import load_relations
from headjax.errors import InputError
from headjax.figures import save_figure
from headjax.grid import GridSet, HeadGrid, save_npz
from headjax.parameters.cache import ensure_converted
from tests.helpers import torch_oracle
from tests.helpers.grids import spelled
from tests.helpers.tolerances import assert_close

ROOT = Path(__file__).resolve().parents[1]
FAMILIES = [name.removeprefix("trained-") for name in trained.MODELS if name != "trained"]


@pytest.fixture(scope="module", params=FAMILIES)
def directory(request):
    return trained.MODELS[f"trained-{request.param}"]


@pytest.fixture(scope="module")
def model(directory, tmp_path_factory):
    return load_model(ensure_converted(directory, tmp_path_factory.mktemp("converted")))


@pytest.fixture(scope="module")
def about(directory):
    return json.loads((directory / "training.json").read_text())


@pytest.fixture(scope="module")
def vocabulary(about):
    return make_vocabulary(about["settings"]["n_pairs"])


def test_there_is_a_gpt2_and_all_are_small():
    assert "gpt2" in FAMILIES
    assert trained.MODELS["trained"] == trained.MODELS["trained-gpt2"]
    files = [file for directory in trained.MODELS.values() for file in directory.iterdir()]
    assert sum(file.stat().st_size for file in set(files)) < 8e6


def test_files_say_what_the_script_would_do(directory, about, vocabulary):
    """Settings, text, vocabulary and config.json are those that training again would begin with."""
    settings = Settings(**about["settings"])
    assert settings == PRESETS[settings.family]
    tokenizer = load_tokenizer(directory)
    assert tokenizer.get_vocab() == vocabulary
    writer = Writer(vocabulary, taught_pairs(vocabulary), tokenizer, settings.seed)
    assert text_digest(writer.rows(settings.batch_size, settings.length)) == about["first_batch_sha256"]
    fields = json.loads((directory / "config.json").read_text())
    assert fields == config_fields(settings, len(vocabulary))
    log = read_table(directory / "training_log.csv")
    assert int(log[-1]["step"]) == settings.steps
    assert float(log[-1]["loss"]) < float(log[0]["loss"]) - 1


def test_logits_and_head_outputs_are_those_of_torch(directory, model):
    theirs = torch_oracle.load_directory(directory)
    tokens = np.random.default_rng(3).integers(0, model.config.vocab_size, (2, 61)).astype(np.int32)
    logits, z = torch_oracle.run(theirs, tokens)
    output = model(tokens, return_z=True)
    assert_close(output.logits, logits)
    assert_close(output.z, z)


def test_accuracy_is_what_was_recorded(directory, model, about, vocabulary):
    """Of the stored weights, and high enough to analyse: also for facts in sentences that were never read."""
    questions = make_questions(vocabulary, taught_pairs(vocabulary), load_tokenizer(directory))
    found = accuracies(model, questions)
    for kind, accuracy in found.items():
        assert accuracy == pytest.approx(about["accuracies"][kind], abs=0.021), kind
    assert min(found["task_read"], found["read"]) > 0.85
    assert min(found["task_unread"], found["unread"]) > 0.6


def test_every_relation_has_enough_pairs(directory, model):
    kept, skipped = select_pairs(load_tokenizer(directory), load_relations(), model.config.vocab_size)
    assert len(kept) == 20
    assert not skipped


def test_static_scores_find_the_heads_that_ablation_needs(tmp_path):
    """On fewer prompts than the page: what it says of the GPT-2 holds, and random scores would not do it."""
    run = load_config("trained", {"n_prompts": "7", "checkpoint_dir": str(tmp_path)})
    study = open_model(run.model, run)
    static = study.run(RelationScores()).grids.select(kind="static")
    ablation = study.run(HeadAblation()).grids.select(kind="ablation_logprob")
    ranks, rhos = [], []
    for scores, lost in zip(static, ablation, strict=True):
        assert scores.relation == lost.relation
        ranks.append(np.sum(lost.scores > lost.scores.flat[scores.scores.argmax()]))
        rhos.append(spearman(scores.scores, lost.scores)[0])
    assert len(ranks) == 20
    assert np.sum(np.array(ranks) < 3) >= 14  # by chance 3 of 32 heads: 2 of 20
    assert 0.15 < np.mean(rhos) < 0.5
    page = (ROOT / "docs" / "trained_model.md").read_text()
    (written,) = re.findall(r"Static against ablation: mean correlation (-?[\d.]+)", page)
    assert float(written) == pytest.approx(np.mean(rhos), abs=0.1)
    (needed,) = re.findall(r"\*\*mean\*\*.*\| (\d+) of 20 \|", page)
    assert abs(int(needed) - np.sum(np.array(ranks) < 3)) <= 4


def made_up_grids(relations, rng):
    """Grids of every measure in which static scores and ablation agree, contradict, are constant, ..."""
    kinds = [("dynamic_no_context", ""), ("dynamic_context", ""), ("logit_attribution", "logit")]
    kinds += [("gradient_logprob", "logprob")]
    grids = []
    for relation, sign in relations.items():
        static = rng.uniform(size=(3, 5)) * (sign is not None)
        ablation = (sign or 1) * static + rng.uniform(size=(3, 5)) * 1e-3
        grids += [HeadGrid(static, "trained-gpt2", relation, "Knowledge", "static", 31)]
        grids += [
            HeadGrid(
                *(rng.normal(size=(3, 5)), "trained-gpt2", relation, "Knowledge"),
                **spelled(kind),
                n_pairs=31,
                metric=metric,
            )
            for kind, metric in (*kinds, kinds[1])
        ]
        grids += [
            HeadGrid(ablation, "trained-gpt2", relation, "Knowledge", "ablation", 31, metric=metric)
            for metric in ("logprob", "accuracy")
        ]
    return GridSet(tuple(grids))


def test_agreement_rows():
    relations = {"copying": 1, "word_to_antonym": -1, "country_to_capital": None}
    grids = made_up_grids(relations, np.random.default_rng(2))
    agrees, contradicts, constant = agreement_rows(grids)
    assert [row.relation.relation for row in (agrees, contradicts, constant)] == list(relations)
    assert (agrees.verdict, agrees.best_is_needed) == ("agrees", True)
    assert (contradicts.verdict, contradicts.best_is_needed) == ("contradicts", False)
    assert (constant.verdict, constant.best_is_needed) == ("unclear", False)
    assert agrees.rho["static", "ablation"] > 0.99
    assert agrees.p["static", "ablation"] < 1e-6
    assert np.isnan(constant.rho["static", "ablation"])
    twice = grids.select(relation="copying", kind="dynamic_context")
    mean = np.mean([grid.scores for grid in twice], axis=0)
    np.testing.assert_allclose(agrees.scores["dynamic with context"], mean)
    without = GridSet(tuple(grid for grid in grids if grid.measure != "gradient"))
    assert not agreement_rows(without)


def test_a_page_is_made_from_a_runs_files_alone(tmp_path):
    relations = {"copying": 1, "word_to_antonym": -1, "year_to_following": 1, "country_to_capital": None}
    run = tmp_path / "run"
    save_npz(made_up_grids(relations, np.random.default_rng(2)), run / "scores.npz")
    about = {
        "models": [
            {
                "name": "trained-gpt2",
                "config": {"n_layers": 3, "n_heads": 5, "d_head": 2, "d_model": 10, "vocab_size": 1234},
                "hit_rule": {"top_k": 3, "top_k_copying": 1, "first_mlp": True},
            }
        ],
        "config": {"report": {"threshold": 0.15}},
        "seconds": {"one": 40.0, "two": 2.2},
        "devices": {"platform": "cpu"},
    }
    write_record(run, about, {})
    columns = "relation,base,removed,random,control_base,control_removed"
    controls = ["0.9,0.8", "0.9,0.8", "nan,nan", "nan,nan"]
    values = zip(relations, controls, strict=True)
    lines = [columns, *(f"{relation},0.75,0.25,0.7,{control}" for relation, control in values)]
    (run / "ablation_summary.csv").write_text("\n".join(lines))
    (run / "figures").mkdir()
    for name in ("category_map", *(f"ablation_curves_trained-gpt2_{relation}" for relation in relations)):
        (run / "figures" / f"{name}.png").write_bytes(b"picture")
    written = write_page(run, tmp_path / "docs" / "page.md")
    text = written[0].read_text()
    assert "**agrees** for 2 of 4: Copying, Year to following." in text
    assert "**contradicts** for 1 of 4: Word to antonym." in text
    assert "0.75 to 0.25; as many random heads: 0.75 to 0.70;" in text
    assert "control relations: 0.90 to 0.80. So the heads are **mostly the relations' own**." in text
    assert "1,234 words" in text
    assert "All analyses took 42 s" in text
    pictures = {tmp_path / "docs" / picture for picture in re.findall(r"\]\((.*?\.png)\)", text)}
    assert pictures == set(written[1:])
    assert all(picture.stat().st_size for picture in pictures)
    with pytest.raises(InputError, match="directory of a finished run"):
        write_page(tmp_path, tmp_path / "page.md")


@pytest.mark.parametrize(("largest", "end"), [(0.05, 0.15), (0.4, 0.4)])
def test_no_share_below_the_threshold_has_the_full_colour(largest: float, end: float, tmp_path, monkeypatch):
    """Of shares alone: effects have no threshold."""
    drawn = []
    monkeypatch.setattr(
        "headjax.figures.heat_maps.save_figure",
        lambda figure, path: drawn.append(figure) or save_figure(figure, path),
    )
    scores = np.linspace(0, largest, 15).reshape(3, 5)
    (row, *_) = agreement_rows(made_up_grids({"copying": 1}, np.random.default_rng(0)))
    row = row._replace(scores=dict.fromkeys(SHOWN, scores))
    draw_measures(row, tmp_path / "map.png", 0.15)
    maps = [axes for axes in drawn[0].axes if axes.get_title()]
    ends = [axes.collections[0].get_clim()[1] for axes in maps]
    np.testing.assert_allclose(ends, [end, end, largest, largest])
    labels = [axes.get_ylabel() for axes in drawn[0].axes if axes not in maps]
    said = [" ".join(label.split()).endswith("(full colour: the threshold)") for label in labels]
    assert said == [largest < 0.15] * 2 + [False] * 2


def test_the_committed_page_is_of_the_committed_model(about):
    """Numbers of a run are only in the page; what the files know, the page repeats."""
    family = about["settings"]["family"]
    page = ROOT / "docs" / ("trained_model.md" if family == "gpt2" else f"trained_model_{family}.md")
    if family != "gpt2" and not page.exists():
        pytest.skip(f"no page is committed for {family}")
    text = page.read_text()
    assert f"# A trained model: trained-{family}" in text
    last = read_table(trained.MODELS[f"trained-{family}"] / "training_log.csv")[-1]
    assert " | ".join(value for name, value in last.items() if name != "seconds") in text
    for picture in re.findall(r"\]\((.*?\.png)\)", text):
        assert (page.parent / picture).is_file()
