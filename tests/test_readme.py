"""What README shows works as written."""

import re
from pathlib import Path

import numpy as np
import pytest

from experiments import planted
from headjax.errors import InputError
from tests.helpers.models import CONFIGS, informative_model
from tests.helpers.tolerances import assert_close

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
CAPITALS = "country_to_capital"


def test_the_python_of_the_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """On the planted checkpoint in GPT-2's place, which needs no download and has as many heads, and on fewer
    prompts."""
    monkeypatch.setenv("HEADJAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names: dict = {}
    instead = {'"gpt2"': repr(str(planted.build(tmp_path / "gpt2"))), "n_prompts=20": "n_prompts=2"}
    for written, run in instead.items():
        assert written in code
        code = code.replace(written, run)
    exec(code, names)
    model, output, study = names["model"], names["output"], names["study"]
    c = model.config
    assert output.logits.shape == (1, 5, c.vocab_size)
    assert output.z.shape == (c.n_layers, 1, 5, c.n_heads, c.d_head)
    assert output.pattern.shape == (c.n_layers, 1, c.n_heads, 5, 5)
    edited = study.forward("The capital of France is", edit=names["edit"]).logits
    assert np.abs(edited - output.logits).max() > 1e-3
    assert len(names["words"]) == 3
    assert (tmp_path / "gpt2.html").is_file()
    heads = [head for head, effect in names["result"].grids["logprob"].select(relation=CAPITALS).top(2)]
    record = planted.read_record(tmp_path / "gpt2")["planted"]
    assert set(heads) <= {(e["layer"], e["head"]) for e in record if e["relation"] == CAPITALS}
    assert len(code.strip().splitlines()) <= 15


def test_the_circuit_of_the_readme_on_shared_key_value_heads():
    """Six query heads on two key/value heads: the line as written, for every head, against numpy."""
    (line,) = [line for line in README.splitlines() if line.startswith("model.OV(")]
    model = informative_model(CONFIGS["llama"])
    W_V, W_O = (np.asarray(getattr(model.blocks.attn, name)[...]) for name in ("W_V", "W_O"))
    for layer, head in np.ndindex(3, 6):
        expected = W_V[layer, :, head // 3] @ W_O[layer, head]
        call = line.split("#")[0].replace("(9, 6)", f"({layer}, {head})")
        assert_close(eval(call, {"model": model}), expected)
        assert_close(model.W_V[layer, head] @ model.W_O[layer, head], expected)
    with pytest.raises(InputError, match="3 layers of 6 heads; got L9H6"):
        eval(line, {"model": model})


def test_the_readme_has_the_two_commands_and_its_picture_exists():
    commands = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    assert len(commands) == 2
    assert "experiments/configs/demo.py" in commands[0]
    assert "pytest" in commands[1]
    for picture in re.findall(r"!\[.*?\]\((.*?)\)", README):
        assert (ROOT / picture).is_file()


@pytest.mark.parametrize("page", ["README.md", "BUILD.md"])
def test_files_that_the_pages_name_exist(page: str):
    for path in re.findall(
        r"`((?:experiments|headjax|checkpoints_convert|kernels)/[\w/.]+\.\w+)`", (ROOT / page).read_text()
    ):
        assert (ROOT / path).exists() or "NAME" in path, path
