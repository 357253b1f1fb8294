"""Runs with copy scores, salient operations, universality and a comparison: their files and figures."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from experiments import draw
from experiments.config import RunConfig
from experiments.run import run
from headjax.analyses.copy_score import copy_scores, copy_weights
from headjax.analyses.salient_operations import salient_page
from headjax.data.prompt_sets import IOI_NAMES, ioi_names
from headjax.data.prompts import load_tokenizer, token_text, word_tokens
from headjax.errors import InputError
from headjax.grid import load_npz
from headjax.parameters import InMemory
from tests.helpers import torch_oracle
from tests.helpers.runs import altered, run_config
from tests.helpers.tiny_tokenizers import whole_words
from tests.helpers.twins import twins

NAMES = IOI_NAMES.split()
MODELS = {"gpt2-xl": "gpt2", "mine": "llama-gqa-llama3-rope"}  # directory -> architecture


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunConfig, list[Path]]:
    """Two random models that know names: one goes by a published model's name, one has grouped heads."""
    tmp = tmp_path_factory.mktemp("papers")
    for directory, architecture in MODELS.items():
        torch_oracle.save_model(architecture, tmp / directory)
        whole_words(IOI_NAMES + " of").save_pretrained(tmp / directory)
    pairs = {
        "name_copying": [[name, name] for name in NAMES],
        "general_copying_english_500": [[name, name] for name in NAMES[:31]],
        "adj_antonym": [list(pair) for pair in zip(NAMES, NAMES[7:] + NAMES[:7], strict=True)],
        "mine": [list(pair) for pair in zip(NAMES, NAMES[1:] + NAMES[:1], strict=True)],
    }
    for name, words in pairs.items():
        (tmp / "data" / name).mkdir(parents=True)
        (tmp / "data" / name / f"{name}.json").write_text(json.dumps(words))
    config = run_config(
        model=tuple(str(tmp / directory) for directory in MODELS),
        relations_dir=str(tmp / "data"),
        analyses=("relation_scores", "copy_score", "salient_operations", "universality"),
        compare=("maps_scores",),
        heads=("L1H2", "0.3"),
        n_tokens=6,
        n_mapped=4,
        out=str(tmp / "out"),
        checkpoint_dir=str(tmp / "checkpoints"),
    )
    return config, run(config, progress=False)


def read(config: RunConfig, name: str) -> list[dict[str, str]]:
    with open(Path(config.out) / name, newline="") as file:
        return list(csv.DictReader(file))


def test_writes_every_file_it_names(finished):
    config, files = finished
    out = Path(config.out)
    names = {file.relative_to(out).as_posix() for file in files}
    assert {f.relative_to(out).as_posix() for f in out.rglob("*") if f.is_file()} == names
    assert names >= {
        *("comparison.csv", "category_shares.csv", "relations_per_head.csv", "group_similarity.csv"),
        *("salient_operations.json", "salient_operations.md"),
        *(f"figures/{name}.pdf" for name in ("comparison", "category_shares", "group_similarity")),
        *("figures/relations_per_head.png", "figures/copy_score_gpt2-xl_ioi_names.png"),
    }


def test_copy_scores_are_those_of_the_models_names(finished):
    config, _ = finished
    grids = load_npz(Path(config.out) / "scores.npz")
    tokenizer = load_tokenizer(config.models[0])
    assert list(ioi_names(tokenizer)) == NAMES
    tokens = [word_tokens(tokenizer, name)[0] for name in NAMES]
    n_tokens = 1 + max(tokenizer.get_vocab().values())  # the rows behind them stand for none
    for directory, architecture in MODELS.items():
        expected = copy_scores(copy_weights(InMemory(twins(architecture)[0])), tokens, vocab_size=n_tokens)
        for kind, scores in zip(("copy_score", "copy_score_suppression"), expected, strict=True):
            (grid,) = grids.select(model=directory, kind=kind)
            np.testing.assert_allclose(grid.scores, scores, atol=1e-6)
            assert (grid.relation, grid.n_pairs) == ("ioi_names", len(NAMES))


def test_salient_operations_are_of_the_chosen_heads_and_read_as_words(finished):
    config, _ = finished
    found = json.loads((Path(config.out) / "salient_operations.json").read_text())
    assert list(found) == list(MODELS)
    for heads in found.values():
        assert list(heads) == ["L0H3", "L1H2"]
        for tokens in heads.values():
            assert len(tokens) == 6
            amplified = [one["amplification"] for one in tokens]
            assert amplified == sorted(amplified, reverse=True)
            words = {word for one in tokens for word in (one["token"], *one["mapped"])}
            assert words <= {*NAMES, "of", "<unk>"}  # rows past the tokenizer's tokens stand for nothing
            assert all(len(one["mapped"]) == 4 for one in tokens)
    page = (Path(config.out) / "salient_operations.md").read_text()
    assert page.count("### L1H2") == 2
    assert f"| `{found['mine']['L0H3'][0]['token']}` |" in page


def test_a_page_shows_any_token():
    tokens = [" a|b", "`", "\n", 'é "q"']
    page = salient_page({"M": {"L0H0": [{"token": tokens[0], "amplification": 1.5, "mapped": tokens[1:]}]}})
    assert r"| `␣a\|b` | 1.5 | `\u0060`, `\n`, `é␣\"q\"` |" in page.splitlines()


def test_a_token_keeps_the_space_before_it(shared_data: Path):
    llama = load_tokenizer(shared_data / "checkpoints" / "stories260K")
    (lily,) = word_tokens(llama, "Lily")
    assert token_text(llama, lily) == " Lily"
    gpt2 = load_tokenizer(shared_data / "tokenizers" / "gpt2")
    assert token_text(gpt2, word_tokens(gpt2, "Paris")[0]) == " Paris"
    assert token_text(gpt2, 0) == "!"


def test_tables_of_universality(finished):
    config, _ = finished
    shares = read(config, "category_shares.csv")
    assert {row["category"] for row in shares} == {"Algorithmic", "Linguistic", "Custom"}
    assert len(shares) == 2 * 3 * 3  # models, layers, categories
    grids = load_npz(Path(config.out) / "scores.npz")
    for model, n_heads in (("gpt2-xl", 21), ("mine", 18)):
        counts = [row for row in read(config, "relations_per_head.csv") if row["model"] == model]
        assert sum(int(row["heads"]) for row in counts) == n_heads
        static = grids.select(model=model, kind=("static", "static_suppression"))
        above = sum(
            (np.stack([g.scores for g in static.select(relation=r)]) > 0.15).any(0)
            for r in static.values("relation")
        )
        assert int(counts[-1]["n_relations"]) == above.max()
    groups = read(config, "group_similarity.csv")
    assert {row["model"] for row in groups} == {"mine"}  # the other has a key/value head for every head
    assert len(groups) == 3


def test_comparison_of_the_model_that_was_published(finished):
    config, _ = finished
    rows = read(config, "comparison.csv")
    assert {row["model"] for row in rows} == {"gpt2-xl"}
    measured = {row["relation"] for row in rows if row["verdict"] != "not measured"}
    assert measured == {"name_copying", "copying", "word_to_antonym"}
    grids = load_npz(Path(config.out) / "scores.npz")
    for row in rows:
        if row["relation"] in measured:
            kind = "static" + "_suppression" * (row["kind"] == "suppression")
            (grid,) = grids.select(model="gpt2-xl", relation=row["relation"], kind=kind)
            assert float(row["ours"]) == pytest.approx(grid.scores.max(), abs=1e-6)
            assert float(row["tolerance"]) == 0.02  # a directory of relations is taken for the published one


def test_figures_are_drawn_again_without_the_models(finished, capsys):
    config, files = finished
    figures = [file for file in files if file.suffix == ".png"]
    before = {file: file.read_bytes() for file in figures}
    for file in figures:
        file.unlink()
    draw.main(["draw", config.out])
    assert {file: file.read_bytes() for file in figures} == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": ("L9H9",)}, "L9H9"),
        ({"heads": ("nine",)}, "L9H6"),
        ({"analyses": ("universality",), "compare": ()}, "universality needs relation_scores"),
        ({"compare": ("ioi_copy_scores",)}, "ioi_copy_scores has gpt2; the run has gpt2-xl, mine"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_is_written(finished, changes, message, tmp_path):
    config, _ = finished
    with pytest.raises(InputError, match=message):
        run(altered(config, out=str(tmp_path / "out"), **changes), progress=False)
    assert not any(file.is_file() for file in (tmp_path / "out").rglob("*"))
