"""The notebooks of the documentation run, use public names only, and are saved with what they say."""

import ast
import copy
from pathlib import Path

import pytest

from tests.helpers.notebooks import NOTEBOOKS, execute, said

nbformat = pytest.importorskip("nbformat", reason="notebooks need nbformat: pip install -e '.[docs]'")
pytest.importorskip("nbclient", reason="notebooks need nbclient: pip install -e '.[docs]'")
PUBLIC = {"headjax", "headjax.analyses", "numpy"}


def test_there_are_two():
    assert [path.stem for path in NOTEBOOKS] == ["a_head_in_two_minutes", "ioi_from_the_logits_back"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_only_public_names_are_used(path: Path):
    code = "\n".join(
        cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"
    )
    tree = ast.parse(code)
    modules = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    modules |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert "headjax" in modules
    assert modules <= PUBLIC
    names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert not {name for name in names if name.startswith("_")}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_is_saved_is_what_it_says(path: Path):
    saved = nbformat.read(path, as_version=4)
    again = said(execute(copy.deepcopy(saved)))
    assert sum(bool(text) for text, _ in again) >= 6
    for (text, numbers), (expected, close) in zip(again, said(saved), strict=True):
        assert text == expected
        assert numbers == pytest.approx(close, abs=0.02, rel=0.01)
    pictures = [
        one for cell in saved.cells for one in cell.get("outputs", ()) if "image/png" in one.get("data", {})
    ]
    assert pictures
    assert "/" not in "".join(text for text, _ in said(saved))  # a path of this machine
