"""What a run says of its words: which token every answer was scored as, which pairs were lost, and why."""

import csv
import json
from pathlib import Path

import pytest

from experiments.config import RunConfig
from experiments.run import open_model
from headjax.data.prompts import word_tokens
from headjax.errors import InputError
from headjax.report.prompt_tables import describe_bos, describe_words, dropped_pairs, prompt_tables
from headjax.study import Study
from tests.helpers.runs import altered, run_config
from tests.helpers.tiny_run import PAIRS, tiny_run
from tests.helpers.tiny_tokenizers import byte_level
from tests.helpers.words import REAL_MODEL

LINES = (
    {"prompt": "The capital of Peru is", "answer": "Lima", "distractor": "Rome", "source": "Peru"},
    {"prompt": "a Zoo (", "answer": "Z", "distractor": "P"},
)


def read(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_prompts(path: Path, lines=LINES) -> str:
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text("\n".join(map(json.dumps, lines)))
    return str(path)


@pytest.fixture
def config(tmp_path) -> RunConfig:
    """A tiny model, with a relation that loses three pairs and one that is skipped."""
    config = tiny_run(tmp_path)
    relations = tmp_path / "relations"
    lossy = [*PAIRS["capitals"], ("Chile", "Lima"), ("dog", "Quito"), ("Bolivia", "Sucre")]
    (relations / "capitals.json").write_text(json.dumps(lossy))
    (relations / "small.json").write_text(json.dumps([("a", "dog"), ("Oslo", "cat")]))
    return altered(config, bos=None)


def open_tiny(config: RunConfig) -> Study:
    return open_model(config.model, config)


def write_tables(config: RunConfig) -> tuple[list[Path], list[str]]:
    """The files of prompts and pairs, and what is said."""
    tables = prompt_tables([open_tiny(config)], config.analyses.values())
    files = [file for table in tables for file in table.write(Path(config.out))]
    return files, [table.text for table in tables if table.text]


def test_prompts_are_listed_with_the_tokens_that_are_scored(config, tmp_path):
    file = write_prompts(tmp_path / "mine.jsonl")
    changes = {"analyses": ("logit_attribution", "head_ablation"), "prompts": file, "bos": True}
    config = altered(config, **changes)
    files, (text,) = write_tables(config)
    assert [path.name for path in files] == ["prompts.csv"]
    assert text == "tiny: prompts begin with <|begin|> (token 0)"
    assert describe_bos(open_tiny(config)) == {"text": "<|begin|>", "id": 0}
    tokenizer = byte_level()
    (lima,), (rome,) = word_tokens(tokenizer, "Lima"), word_tokens(tokenizer, "Rome")
    letters = tokenizer.convert_tokens_to_ids(["Z", "P"])
    first, second = read(files[0])
    assert first == {
        **{"model": "tiny", "relation": "mine", "template": "", "name": f"{file} line 1"},
        **{"text": "The capital of Peru is", "source": "Peru", "n_tokens": "8", "bos": "<|begin|>"},
        **{"answer": "Lima", "answer_id": str(lima), "answer_token": " Lima"},
        **{"distractor": "Rome", "distractor_id": str(rome), "distractor_token": " Rome"},
    }
    scored = ("answer_id", "answer_token", "distractor_id", "distractor_token", "source")
    assert [second[column] for column in scored] == [str(letters[0]), "Z", str(letters[1]), "P", ""]


def test_pairs_are_listed_with_their_tokens_and_why_they_do_not_count(config):
    config = altered(config, analyses=("relation_scores",))
    files, (text,) = write_tables(config)
    assert [path.name for path in files] == ["pairs.csv"]
    assert text == "tiny: capitals has 4 of 7 pairs; several tokens: Chile, Quito, Bolivia, Sucre"
    lost = dropped_pairs(open_tiny(config))
    assert [pair[:2] for pair in lost["capitals"]] == [
        ("Chile", "Lima"),
        ("dog", "Quito"),
        ("Bolivia", "Sucre"),
    ]
    rows, tokenizer = read(files[0]), byte_level()
    assert len(rows) == 7 + len(PAIRS["copying"]) + 2
    of = {(row["relation"], row["source"]): row for row in rows}
    assert of["capitals", "France"] == {
        **{"model": "tiny", "relation": "capitals", "source": "France", "target": "Paris", "dropped": ""},
        "source_id": str(word_tokens(tokenizer, "France")[0]),
        "target_id": str(word_tokens(tokenizer, "Paris")[0]),
    }
    quito = word_tokens(tokenizer, "Quito")
    assert of["capitals", "dog"]["target_id"] == " ".join(map(str, quito))
    assert of["capitals", "dog"]["dropped"] == f"target of {len(quito)} tokens"
    both = [len(word_tokens(tokenizer, word)) for word in ("Bolivia", "Sucre")]
    assert of["capitals", "Bolivia"]["dropped"] == f"source of {both[0]} tokens, target of {both[1]} tokens"
    assert {row["dropped"] for row in rows if row["relation"] == "copying"} == {""}
    assert of["small", "a"]["dropped"] == "relation skipped"
    assert of["small", "Oslo"]["dropped"].startswith("source of ")


def test_every_analysis_that_reads_prompts_lists_its_own(config):
    listed = {}
    for analyses in (("dynamic_scores",), ("head_ablation",), ("path_patching",)):
        changed = altered(config, analyses=analyses, templates=("The capital of <X> is",))
        files, _ = write_tables(changed)
        assert [path.name for path in files] == ["prompts.csv", "pairs.csv"]
        listed[analyses] = read(files[0])
    dynamic, ablation, path = listed.values()
    assert {row["relation"] for row in dynamic} == {"capitals", "copying"}
    assert len(dynamic) == len(ablation) == 4 + len(PAIRS["copying"])
    assert {row["distractor"] for row in ablation} == {""}
    assert all(row["distractor_id"] for row in path)
    both = altered(config, analyses=("head_ablation", "ablation_curves"), templates=("<X> is",))
    files, _ = write_tables(both)
    assert len(read(files[0])) == len(ablation)  # the same prompts, once


# Names


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("one/mine.jsonl", "two/mine.jsonl"), "got 'mine' and 'mine'"),
        (("one/my set.jsonl", "two/my_set.jsonl"), "got 'my set' and 'my_set'"),
        (("one/Mine.jsonl", "two/mine.txt"), "got 'Mine' and 'mine'"),
        (("capitals.jsonl",), "got 'capitals' and 'capitals'"),
        (("ioi.jsonl",), "got 'ioi' and 'ioi'"),
        (("colored objects.jsonl",), "got 'colored_objects' and 'colored objects'"),
        (("capitals", "capitals"), "field 'prompts' must name each once; twice: 'capitals'"),
        (("x" * 120 + ".jsonl",), "a prompt file's name has at most 100 characters; got 'xxx"),
    ],
)
def test_sets_of_prompts_that_would_share_a_name_are_refused(config, tmp_path, names, message):
    paths = [write_prompts(tmp_path / name) if "." in name else name for name in names]
    with pytest.raises(InputError, match=message):
        open_tiny(altered(config, prompts=tuple(paths)))


def test_a_relation_that_is_called_like_a_generator_is_refused(config):
    (Path(config.data.relations_dir) / "ioi.json").write_text(json.dumps(PAIRS["copying"]))
    with pytest.raises(InputError, match=r"relations, generators and prompt files .*; got 'ioi' and 'ioi'"):
        open_tiny(config)


@pytest.mark.skipif(REAL_MODEL is None, reason="needs HEADJAX_REAL_MODEL, the directory of a real model")
def test_a_real_models_prompts_begin_with_their_text():
    """Its bos_token is a mark of chats: put in front, every sixth prompt of IOI that was right goes wrong."""
    config = run_config(model=REAL_MODEL, prompts="ioi", analyses=("head_ablation",), n_prompts=3)
    study, analyses = open_model(REAL_MODEL, config), config.analyses.values()
    assert study.bos is None
    assert not study.task_batch().bos
    assert describe_words(study, analyses).endswith("prompts begin with their text")
    marked = open_model(REAL_MODEL, altered(config, bos=True))
    assert describe_words(marked, analyses).endswith("prompts begin with <|im_start|> (token 1)")
