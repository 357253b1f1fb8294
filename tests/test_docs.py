"""The documentation has what the code has: names, columns, figures; what it shows runs, its site builds."""

import re
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import headjax
from experiments.compare import Comparison
from experiments.pages import gallery
from headjax import analyses, figures
from headjax.analyses.gradient_attribution import AgreementRow
from headjax.analyses.registry import ANALYSES
from headjax.circuits.prediction import Prediction
from headjax.circuits.tables import OVERLAP_COLUMNS, CircuitRow
from headjax.grid import CSV_COLUMNS
from headjax.report.category_table import HeadCategories
from headjax.report.correlations import Correlation
from headjax.report.curve_tables import CurveRow, CurveSummary
from headjax.report.prompt_tables import PairRow, PromptRow
from headjax.report.summary import SummaryRow
from headjax.result import CleanRow
from headjax.universality import CategoryShare, GroupSimilarity, RelationCount

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
COLUMNS = {
    "scores": CSV_COLUMNS,
    "clean": CleanRow._fields,
    "summary": SummaryRow._fields,
    "head_categories": HeadCategories._fields,
    "prompts": PromptRow._fields,
    "pairs": PairRow._fields,
    "correlations": Correlation._fields,
    "gradient_agreement": AgreementRow._fields,
    "ablation_curves": CurveRow._fields,
    "ablation_summary": CurveSummary._fields,
    "circuits": CircuitRow._fields,
    "circuit_overlap": OVERLAP_COLUMNS,
    "circuit_prediction": Prediction._fields,
    "category_shares": CategoryShare._fields,
    "relations_per_head": RelationCount._fields,
    "group_similarity": GroupSimilarity._fields,
    "comparison": Comparison._fields,
}


def page(name: str) -> str:
    return (DOCS / name).read_text()


def test_every_column_of_every_table_is_documented():
    sections = re.split(r"^## (\w+)\.csv$", page("tables.md"), flags=re.MULTILINE)[1:]
    said = {
        name: tuple(re.findall(r"^\| `(\w+)` \|", text, flags=re.MULTILINE))
        for name, text in zip(sections[::2], sections[1::2], strict=True)
    }
    assert said == {name: tuple(columns) for name, columns in COLUMNS.items()}


def test_the_tables_of_the_code_are_the_documented_ones():
    code = "\n".join(
        path.read_text() for path in [*(ROOT / "headjax").rglob("*.py"), *ROOT.glob("experiments/*.py")]
    )
    made = set(re.findall(r'Table\(\s*(?:self\.stem\(name, )?f?"(?:\{prefix\})?(\w+)"', code))
    assert len(made) >= 8
    assert made <= COLUMNS.keys()


def test_the_api_page_has_every_public_name():
    shown = re.findall(r"^::: (\S+)\n    options:\n      heading: (\S+)$", page("api.md"), flags=re.MULTILINE)
    public = {}
    for name, (module, member) in headjax._EXPORTS.items():
        public[f"headjax.{name}"] = f"{module}.{member}" if member else module
    for name in ("analyses", "figures"):  # which have chapters of their own
        del public[f"headjax.{name}"]
    for name, module in figures._EXPORTS.items():
        if not name.isupper():  # constants
            public[f"headjax.figures.{name}"] = f"headjax.figures.{module}.{name}"
    public |= {
        f"headjax.analyses.{name}": f"headjax.analyses.{m}.{name}" for name, m in analyses._EXPORTS.items()
    }
    assert {name: path for path, name in shown} == public
    assert len(shown) > len(headjax.__all__) + len(analyses.__all__)


def test_every_analysis_has_a_section_with_a_source_and_a_figure():
    overview, sections = page("analyses/index.md"), {}
    for path in (DOCS / "analyses").glob("*.md"):
        parts = re.split(r"^## (\w+)$", path.read_text(), flags=re.MULTILINE)[1:]
        for name, text in zip(parts[::2], parts[1::2], strict=True):
            assert f"[`{name}`]({path.name}#{name})" in overview
            sections[name] = text
    assert sections.keys() == ANALYSES.keys()
    for name, text in sections.items():
        assert "**Can say:**" in text, name
        assert "**Cannot say:**" in text, name
        assert "](../figures/" in text or name == "salient_operations", name
    drawn = {shown.analysis for shown in gallery.FIGURES.values()}
    assert drawn == ANALYSES.keys() - {"salient_operations"}


def test_every_figure_is_there_and_shown():
    text = "\n".join(path.read_text() for path in DOCS.rglob("*.md"))
    shown = set(re.findall(r"(?<!seed_)figures/(\w+)\.png", text))
    assert shown == gallery.FIGURES.keys() == {path.stem for path in (DOCS / "figures").glob("*.png")}


@pytest.mark.slow
def test_the_gallery_is_drawn(tmp_path: Path):
    relations = (gallery.SHOWN, *gallery.CONTROLS, "name_copying")
    study = headjax.open("trained", n_prompts=32, top_k=3, relations=relations)
    files = gallery.write_figures(study, tmp_path, (gallery.SHOWN, "word_to_antonym"))
    assert {path.stem for path in files} == gallery.FIGURES.keys()
    assert all(path.stat().st_size > 10_000 for path in files)


def test_the_python_of_the_first_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for code in re.findall(r"```python\n(.*?)```", page("index.md"), re.DOTALL):
        exec(code, names)
    clean = {row.relation: row for row in names["result"].clean}
    assert clean["country_to_capital"].accuracy > 0.9
    assert clean["word_to_antonym"].n_prompts > 50
    assert names["study"].next_words("The capital of France is", 3)[0][0] == "Paris"
    assert (tmp_path / "capitals.html").is_file()


def test_what_is_ours_beside_transformer_lens_runs():
    """The right column, as written, on the trained model."""
    rows = re.findall(r"^\|.*\| `([^`]+)` \|$", page("transformer_lens.md"), flags=re.MULTILINE)
    assert len(rows) >= 15
    text, study = (
        "The capital of France is",
        headjax.open("trained", n_prompts=4, relations=["country_to_capital"]),
    )
    names = {"headjax": headjax, "jnp": jnp, "study": study, "text": text, "model": study.model}
    names |= {name: getattr(analyses, name) for name in analyses.__all__}
    names["output"] = study.forward(text, return_z=True, return_pattern=True, return_residual=True)
    found = {row: eval(row, names) for row in rows}
    asked = [one for one in found.values() if isinstance(one, analyses.Analysis)]
    assert len(study.run(*asked[:1]).grids) >= 1
    assert found["output.z[2]"].shape == (1, 5, 8, 16)
    written = found['jnp.einsum("lbshk,lhkd->lbshd", output.z, model.W_O)']
    assert written.shape == (4, 1, 5, 8, 128)
    (patched,) = [one for row, one in found.items() if row.endswith("replacement=output.z))")]
    np.testing.assert_allclose(patched.logits, names["output"].logits, atol=1e-4)  # by its own z


@pytest.mark.parametrize("name", ["README.md", "BUILD.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_of_top_level_files_lead_somewhere(name: str):
    links = re.findall(r"\]\(([^)#:]+)[^)]*\)", (ROOT / name).read_text())
    assert [link for link in links if not (ROOT / link).exists()] == []
    assert links or name == "CHANGELOG.md"


def test_top_level_files_are_true():
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"version: {headjax.__version__}\n" in citation
    assert f"version = {{{headjax.__version__}}}" in page("cite.md")
    assert (ROOT / "CHANGELOG.md").read_text().count(f"## {headjax.__version__}") == 1


def test_the_site_builds_with_every_link_and_anchor(tmp_path: Path):
    for name in ("mkdocs", "material", "mkdocstrings", "mkdocs_jupyter"):
        pytest.importorskip(name, reason=f"the site needs {name}: pip install -e '.[docs]'")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert built.returncode == 0, built.stdout + built.stderr
    api = (tmp_path / "api.html").read_text()
    assert all(f"headjax.{name}" in api for name in headjax.__all__)
