"""The page about a real model, written from a small run of its config on the trained one."""

import re
from pathlib import Path

import pytest

from experiments.config import load_config
from experiments.pages import real
from experiments.run import run
from headjax.errors import InputError

TASK = real.CAPITALS  # the trained model does no indirect objects
CIRCUITS = ("ioi_attribution", "path_patching", "circuit_discovery")


@pytest.mark.slow
def test_the_page_says_what_was_found(tmp_path: Path):
    pytest.importorskip("torch", reason="needs torch, whose models are the oracle")
    asked = {"model": "trained", "out": str(tmp_path / "run"), "top_k": "3", "n_prompts": "16"}
    asked |= {"relations": f"{TASK},{real.NAMES},word_to_antonym", "max_heads": "3"}
    asked |= {f"analyses.{name}.prompts": TASK for name in CIRCUITS}
    run(load_config("real", asked), progress=False)
    page, *figures = real.write_page(tmp_path / "run", tmp_path / "model.md")
    text = page.read_text()
    shown = re.findall(r"\]\((model/\w+\.png)\)", text)
    assert {tmp_path / path for path in shown} == set(figures)
    assert all(path.stat().st_size > 10_000 for path in figures)
    assert "8 of 8 agree" in text
    assert "| L0H6 | Stage 1, direct: raises logit difference |" in text
    assert len(re.findall("^## ", text, flags=re.MULTILINE)) == 8
    assert str(tmp_path) not in text
    assert "nan" not in text


def test_a_run_that_is_not_finished_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match="must be the directory of a finished run"):
        real.write_page(tmp_path, tmp_path / "model.md")
