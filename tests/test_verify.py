"""`headjax verify`: headjax and torch agree about models that come along; where they do not, it is said."""

import dataclasses
import json
import sys

import pytest

from experiments import cli
from experiments.config import load_config
from experiments.run import open_model
from headjax.errors import InputError
from headjax.study import Study
from tests.helpers import tiny_tokenizers, torch_oracle
from tests.helpers.torch_or_skip import torch

torch_model = pytest.importorskip(
    "experiments.torch_model", reason="needs torch, whose models are the oracle"
)
verifying = pytest.importorskip("experiments.verify", reason="needs torch, whose models are the oracle")
comparison_table, verify = verifying.comparison_table, verifying.verify
ROWS = [
    *("logits", "z of every head", "attention patterns", "hits of relation scores"),
    *(
        "direct logit attribution",
        "log-probability, clean",
        "ablation of a head",
        "gradient of a head's gain",
    ),
]


def opened(name: str, tmp_path, **fields: str) -> Study:
    fields = {"model": name, "checkpoint_dir": str(tmp_path), **fields}
    return open_model(name, load_config("relation_scores", fields))


@pytest.mark.parametrize("name", ["trained", "trained-llama"])
def test_it_agrees_with_torch(name: str, tmp_path):
    compared = verify(opened(name, tmp_path))
    assert [one.what for one in compared] == ROWS
    assert all(one.agrees for one in compared), comparison_table(compared)
    hits = compared[ROWS.index("hits of relation scores")]
    assert hits.n_numbers % verifying.N_HEADS == 0
    assert 0 < max(one.difference for one in compared) < 1e-4


# Whose heads read and write otherwise than those of the models that come along.
FAMILIES = (
    *("phi3-gqa-window", "gemma-mqa", "gemma2-gqa-caps-windows", "gemma3-mqa-windows", "olmo2-gqa"),
    *("olmo3-mqa-windows", "gptj", "gpt_neo-windows", "opt"),
)


@pytest.mark.parametrize("name", FAMILIES)
def test_it_agrees_with_torch_on_every_family(name: str, tmp_path):
    """A random model of each, with a tokenizer of its own; prompts are longer than its windows."""
    torch_oracle.save_model(name, tmp_path / "model")
    names = [first + second for first in "bdfgklmn" for second in "aeiou"]
    tiny_tokenizers.whole_words(" ".join(names)).save_pretrained(tmp_path / "model")
    pairs = list(zip(names, names[::-1], strict=True))
    (tmp_path / "relations").mkdir()
    (tmp_path / "relations" / "reversed.json").write_text(json.dumps(pairs))
    fields = {"relations_dir": str(tmp_path / "relations"), "min_pairs": "5", "top_k": "20"}
    fields["templates"] = f'["{" ".join(names[:6])} <X> {names[7]}"]'
    compared = verify(opened(str(tmp_path / "model"), tmp_path / "cache", **fields))
    assert [one.what for one in compared] == ROWS
    assert all(one.agrees for one in compared), comparison_table(compared)


def test_the_command_says_where_a_model_differs(tmp_path, capsys, monkeypatch):
    """One head's W_O is another's in the model that runs; the weights that are read stay right."""
    study = opened("trained", tmp_path)
    W_O = study.model.blocks.attn.W_O
    W_O[...] = W_O[...].at[0, 1].set(W_O[0, 2])
    monkeypatch.setattr("experiments.run.open_model", lambda name, config: study)
    monkeypatch.setattr(sys, "argv", ["headjax", "verify", "trained"])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 1
    verdicts = {
        line.rpartition(" ")[0].split("  ")[0]: line.split()[-1]
        for line in capsys.readouterr().out.splitlines()
    }
    assert verdicts["logits"] == verdicts["ablation of a head"] == "DIFFERS"
    assert verdicts["hits of relation scores"] == "agrees"


def test_a_model_is_verified_in_float32_from_its_hugging_face_files(tmp_path):
    with pytest.raises(InputError, match="verified in float32; got field 'dtype' bfloat16"):
        verify(opened("trained", tmp_path, dtype="bfloat16"))
    study = opened("trained", tmp_path)
    study.convert()
    converted = dataclasses.replace(study, source=study.source._replace(directory=study.directory))
    assert verify(converted)[0].agrees  # what it was made from is still there


def test_hits_that_rounding_may_decide():
    logits = torch.tensor([[3.0, 2.0, 1.0], [3.0, 3.0 - 1e-6, 1.0], [3.0, 3.0 + 1e-6, 1.0], [1.0, 2.0, 1.5]])
    targets = torch.tensor([1, 1, 1, 1])
    surely, maybe = (bound.tolist() for bound in torch_model.hit_bounds(logits, targets, 1))
    assert surely == [False, False, False, True]
    assert maybe == [False, True, True, True]
    assert torch_model.ties(logits, targets, 1).tolist() == [[False, True, True, False], [False] * 4]
    assert torch_model.ranked(logits, targets, 1).tolist() == [[False, False, True, True], [False] * 4]
