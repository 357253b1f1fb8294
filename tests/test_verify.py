"""`headjax verify`: headjax and torch agree about models that come along; where they do not, it is said."""

import dataclasses
import sys

import pytest

from experiments import cli
from experiments.config import load_config
from experiments.run import open_model
from experiments.verify import N_HEADS, comparison_table, verify
from headjax.errors import InputError
from headjax.study import Study

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
    assert hits.n_numbers % N_HEADS == 0
    assert 0 < max(one.difference for one in compared) < 1e-4


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
