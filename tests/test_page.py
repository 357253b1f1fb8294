"""The page without a browser: its data are the grids', its text is only text, and all it needs is in it."""

import base64
import dataclasses
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import headjax
from experiments import draw, page
from experiments.compare import Comparison
from experiments.run import run
from headjax.analyses.attention_patterns import MOST_TOKENS, AttentionPatterns, kept_prompts
from headjax.analyses.circuit_discovery import circuit_graph
from headjax.circuits.tables import CircuitRow
from headjax.errors import InputError
from headjax.grid import GridSet, load_npz, save_npz
from headjax.report.page.data import describe_grid, in_order
from headjax.report.page.write import render, write_page
from headjax.report.parts import Rows, plain, rows_of
from headjax.report.table import Table
from headjax.study import Data
from tests.helpers.page_content import Elements, array, content
from tests.helpers.page_runs import page_grids, page_run
from tests.helpers.runs import altered
from tests.helpers.tiny_run import tiny_run

ROOT = Path(__file__).resolve().parents[1]
EVIL = "</script><img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run with scores, attention and curves."""
    tmp = tmp_path_factory.mktemp("page")
    analyses = ("relation_scores", "ablation_curves", AttentionPatterns(n_shown=2))
    config = altered(tiny_run(tmp), analyses=analyses, templates=("<X> is",), max_heads=2)
    run(config, progress=False)
    return Path(config.out)


def test_the_numbers_are_the_grids_own():
    said, grids = page_run(7, 5)
    shown, arrays = content(render([(said, grids)]))
    (described,) = shown["runs"]
    assert len(described["grids"]) == len(grids)
    for one, grid in zip(described["grids"], in_order(grids), strict=True):
        assert one["shape"] == [7, 5]
        assert (one["model"], one["relation"], one["n"]) == (grid.model, grid.relation, grid.n_pairs)
        assert (one["clean"], one["template"]) == (grid.clean, grid.template)
        assert array(one["scores"], arrays).tobytes() == grid.scores.tobytes()
        if grid.stderr is None:
            assert one["stderr"] is None
        else:
            np.testing.assert_allclose(array(one["stderr"], arrays), grid.stderr.ravel(), rtol=3e-4)


def test_numbers_that_are_none_stay_none():
    scores = np.array([[np.nan, 1.0], [-2.5, np.inf]], np.float32)
    grid = dataclasses.replace(page_grids(2, 2).grids[-1], scores=scores, stderr=scores)
    shown, arrays = content(render([(page_run(2, 2)[0], GridSet((grid,)))]))
    (one,) = shown["runs"][0]["grids"]
    np.testing.assert_array_equal(array(one["scores"], arrays), scores.ravel())
    np.testing.assert_array_equal(array(one["stderr"], arrays), scores.ravel())


def test_what_kind_of_number_a_grid_has_comes_with_it():
    about = {(grid.kind, grid.metric): describe_grid(grid) for grid in page_grids(2, 2)}
    assert about["static", ""]["relation_score"]
    assert about["static", ""]["share"]
    assert about["ablation_logprob", "logprob"]["helps"] == 1
    assert "mean" in about["ablation_logprob", "logprob"]["label"]
    assert len({one["label"] for one in about.values()}) == len(about)


def test_the_order_of_grids_is_that_of_their_file_too(tmp_path: Path):
    grids = page_grids(3, 2) + page_grids(3, 2, model="other")
    save_npz(grids, tmp_path / "scores.npz")
    again = load_npz(tmp_path / "scores.npz")
    assert [g.kind for g in again] != [g.kind for g in grids]
    assert [describe_grid(g) for g in in_order(again)] == [describe_grid(g) for g in in_order(grids)]


def test_text_of_models_and_users_is_only_text():
    said, grids = page_run(3, 2, relations=(EVIL,), model=EVIL, templates=(EVIL,), name=EVIL, sentence=EVIL)
    said["parts"].append(plain(Rows(EVIL, (EVIL,), ((EVIL,), ((EVIL, EVIL),)), EVIL)))
    said["facts"] |= {EVIL: EVIL}
    said["clean"][0] |= {"relation": EVIL, "prompts": EVIL}
    said["models"][0] |= {"skipped": [[EVIL, EVIL]], "words": EVIL}
    page_text = render([(said, grids)])
    elements = Elements(page_text)
    assert not [tag for tag, _ in elements.elements if tag == "img"]
    assert [tag for tag, _ in elements.elements].count("script") == 4  # data, two of the library, ours
    assert not [name for _, attributes in elements.elements for name in attributes if name.startswith("on")]
    assert elements.text.count(EVIL) > 12
    assert page_text.count("onerror=alert(1)>") == 0  # escaped everywhere: &gt; follows


def test_nothing_in_it_comes_from_elsewhere():
    elements = Elements(render([page_run(3, 2)])).elements
    asking = ("href", "src", "action", "data", "srcset")
    links = [attributes[name] for _, attributes in elements for name in asking if name in attributes]
    assert all(link.startswith("#") for link in links)
    assert not {"link", "iframe", "object", "embed", "form", "base"} & {tag for tag, _ in elements}
    (policy,) = [a["content"] for _, a in elements if a.get("http-equiv") == "Content-Security-Policy"]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data: blob:"
    assert re.fullmatch(r"('sha256-[A-Za-z0-9+/=]{44}' ?){3}", rules["script-src"])
    style = (ROOT / "headjax" / "report" / "page" / "page.css").read_text("utf-8")
    assert "url(" not in style
    assert "@import" not in style


def test_the_library_is_the_one_its_readme_names():
    vendor = ROOT / "headjax" / "report" / "page" / "vendor"
    text = (vendor / "README.md").read_text("utf-8")
    for name, version, size, licence in re.findall(
        r"\| `([\w.]+)` \|.*?\| ([\d.]+) \| ([\d,]+) \| ISC, `([\w-]+)` \|", text
    ):
        content = (vendor / name).read_bytes()
        assert len(content) == int(size.replace(",", ""))
        assert f"v{version}".encode() in content[:200]
        assert "Permission to use, copy, modify" in (vendor / licence).read_text("utf-8")
    assert {file.suffix for file in vendor.iterdir()} == {".js", ".md", ""}


def test_it_has_a_few_megabytes_at_80_x_64(tmp_path: Path):
    """20 relations, four templates: 480 grids, of which 40 with errors of full precision."""
    relations = tuple(f"relation_{i}" for i in range(20))
    templates = ("<X> is", "a <X>", "the <X>", "<X> and")
    said, grids = page_run(80, 64, relations=relations, templates=templates)
    assert len(grids) == 20 * (2 + 2 * 4 + 2)
    assert write_page(tmp_path / "page.html", [(said, grids)]).stat().st_size < 4e6


def test_the_page_says_what_a_reader_without_scripts_needs():
    said, grids = page_run(4, 3)
    elements = Elements(render([(said, grids)]))
    text = " ".join(elements.text.split())
    assert text.index(said["sentence"]) < text.index("Clean performance") < text.index("0.90 [0.77, 0.96]")
    assert "-0.50 ± 0.1" in text
    assert "Year to following was skipped: 3 of 60 pairs" in text
    verdicts = [a["data-verdict"] for _, a in elements.elements if "data-verdict" in a]
    assert verdicts == ["agrees", "differs"]


def test_a_run_without_an_analysis_lacks_its_section():
    said, grids = page_run(3, 2, parts=(), clean=())
    elements = Elements(render([(said, grids)]))
    assert not [a for _, a in elements.elements if "data-part" in a]
    assert "asked no prompts for an answer" in elements.text


def test_what_another_version_said_is_refused():
    said, grids = page_run(3, 2, version=0)
    with pytest.raises(InputError, match="version 1 says of a run; got 0: run it again"):
        render([(said, grids)])


# --- of a run -------------------------------------------------------------------------------------------


def test_a_run_writes_its_page(finished: Path):
    record = json.loads((finished / "run.json").read_text("utf-8"))
    assert {"page.json", "report.html"} <= set(record["files"])
    shown, arrays = content((finished / "report.html").read_text("utf-8"))
    (said,) = shown["runs"]
    assert "relation scores, ablation curves" in said["sentence"]
    assert f"headjax {headjax.__version__}" in said["sentence"]
    assert {part["part"] for part in said["parts"]} >= {"CategoryMap", "Curves", "Attention", "Rows"}
    (model,) = said["models"]
    assert model["relations"][0]["examples"][0] == ["France", "Paris"]
    grids = {(g.kind, g.relation): g for g in load_npz(finished / "scores.npz")}
    for one in said["grids"]:
        grid = grids[one["kind"], one["relation"]]
        assert array(one["scores"], arrays).tobytes() == grid.scores.tobytes()


def test_attention_is_that_of_the_model(finished: Path):
    config = json.loads((finished / "run.json").read_text("utf-8"))["config"]
    data = Data(relations_dir=config["data"]["relations_dir"], min_pairs=3, templates=("<X> is",), bos=False)
    study = headjax.open(config["model"], data)
    said = json.loads((finished / "page.json").read_text("utf-8"))
    (part,) = [part for part in said["parts"] if part["part"] == "Attention"]
    assert [one["relation"] for one in part["patterns"]] == ["capitals", "copying"]
    for one in part["patterns"]:
        text, S = one["text"], len(one["tokens"])
        expected = np.asarray(study.forward(text, return_pattern=True).pattern)[:, 0]  # [L H S S]
        assert one["tokens"] == [study.tokenizer.decode([i]) for i in study.tokens(text)[0]]
        assert "".join(one["tokens"][: one["source"] + 1]).strip() in text.split(" is")[0]
        found = np.frombuffer(base64.b64decode(one["attention"]), np.uint8)
        found = found.reshape(len(one["heads"]), -1) / 255
        assert one["heads"][4] == "L1H1"
        lower = expected.reshape(-1, S, S)[:, *np.tril_indices(S)]
        np.testing.assert_allclose(found, lower, atol=0.5 / 255 + 1e-5)


def test_prompts_that_are_kept_are_short_and_of_different_tasks(finished: Path):
    config = json.loads((finished / "run.json").read_text("utf-8"))["config"]
    data = Data(relations_dir=config["data"]["relations_dir"], min_pairs=3, templates=("<X> is",), bos=False)
    batch = headjax.open(config["model"], data).task_batch()
    assert [batch.prompts[i].relation for i in kept_prompts(batch, 3)] == ["capitals", "capitals", "copying"]
    assert len(kept_prompts(batch, 0)) == 0
    wide = (len(batch.mask), MOST_TOKENS + 1)
    long = dataclasses.replace(batch, mask=np.ones(wide, bool), tokens=np.ones(wide, np.int32))
    assert len(kept_prompts(long, 3)) == 0


def test_the_page_is_made_again_without_the_model(finished: Path, tmp_path: Path, capsys):
    before = (finished / "report.html").read_bytes()
    (finished / "report.html").unlink()
    page.main(["report", str(finished)])
    assert (finished / "report.html").read_bytes() == before
    assert "report.html" in capsys.readouterr().out
    draw.draw_again(finished, {})
    assert (finished / "report.html").read_bytes() == before
    draw.draw_again(finished, {"threshold": "0.4", "circuits": "L1H2"})
    said = content((finished / "report.html").read_text("utf-8"))[0]["runs"][0]
    assert said["report"]["threshold"] == 0.4
    assert [heads for mark in said["marks"] for heads in mark["roles"].values()] == [["L1H2"]]
    draw.draw_again(finished, {})
    page.main(["report", str(finished), "--to", str(tmp_path / "other.html")])  # the record is whole again
    assert (tmp_path / "other.html").read_bytes() == before


def test_runs_stand_side_by_side(finished: Path, tmp_path: Path):
    second = Path(shutil.copytree(finished, tmp_path / "after"))
    page.main(["report", str(finished), str(second), "--to", str(tmp_path / "both.html")])
    shown, _ = content((tmp_path / "both.html").read_text("utf-8"))
    assert [one["name"] for one in shown["runs"]] == ["out", "after"]
    sections = [
        a["id"] for _, a in Elements((tmp_path / "both.html").read_text("utf-8")).elements if "id" in a
    ]
    assert {"clean-0", "clean-1", "part-0-0", "part-1-0"} <= set(sections)
    assert len(sections) == len(set(sections))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "a report is of the directories of finished runs .*; got none"),
        (("nowhere",), "nowhere must be the directory of a finished run"),
        (("a", "a"), "names each run once; got one twice"),
        (("a", "--to"), "--to must name the file to write; got none"),
        (("a", "--format=pdf"), "a report is of the directories .*; got .--format=pdf"),
    ],
)
def test_what_no_page_can_be_made_of_is_refused(words: tuple[str, ...], message: str):
    with pytest.raises(InputError, match=message):
        page.main(["report", *words])


def test_a_study_writes_a_page_of_its_own_result(finished: Path, tmp_path: Path):
    config = json.loads((finished / "run.json").read_text("utf-8"))["config"]
    data = Data(relations_dir=config["data"]["relations_dir"], min_pairs=3)
    study = headjax.open(config["model"], data)
    file = study.report(study.run("relation_scores"), tmp_path / "mine.html", threshold=0.3)
    (said,) = content(file.read_text("utf-8"))[0]["runs"]
    assert (said["name"], said["report"]["threshold"]) == ("mine", 0.3)
    assert said["parts"][0]["part"] == "CategoryMap"


# --- parts ----------------------------------------------------------------------------------------------


def test_long_tables_say_that_their_file_has_more():
    short, long = (rows_of(Table("some_rows", ("n",), [(i,) for i in range(n)])) for n in (3, 1000))
    assert (short.title, short.note) == ("Some rows", "")
    assert len(long.rows) == 300
    assert long.note == "300 of 1000 rows; some_rows.csv has all."


def test_the_comparison_has_every_row_and_its_verdict():
    rows = [
        Comparison("maps_scores", "m", "r", "plain", "max_score", "", 0.5, 0.52, 0.02, 0.05, "agrees"),
        Comparison(
            "maps_scores", "m", "s", "plain", "max_score", "", 0.5, np.nan, np.nan, 0.05, "not measured"
        ),
    ]
    scatter, table = page.comparison_parts(rows)
    assert [(p.x, p.y, p.group) for p in scatter.points] == [(0.5, 0.52, "agrees")]
    assert plain(table)["rows"][1][-4:] == [None, None, 0.05, "not measured"]
    assert "1 agree and 0 differ; 1 were not measured" in table.note
    assert page.comparison_parts([]) == []


def test_paths_of_a_circuit_are_those_that_were_measured():
    def row(stage: int, path: str, head: str, effect: float) -> CircuitRow:
        return CircuitRow("m", "ioi", f"stage {stage}", stage, path, head, effect, 1.0, 9)

    rows = [
        *(row(1, "direct", "L9H9", -30.0), row(1, "direct", "L5H1", 8.0)),
        *(row(2, "query", "L7H3", -9.0), row(2, "query", "L2H0", 4.0)),
    ]
    graph = circuit_graph("m", "ioi", rows)
    assert [(edge.start, edge.end, edge.together) for edge in graph.edges] == [
        *(("L9H9", "", False), ("L5H1", "", False), ("L7H3", "L9H9", True)),  # L5H1 is below L7H3
        *(("L2H0", "L9H9", True), ("L2H0", "L5H1", True)),
    ]
    assert [node.head for node in graph.nodes] == ["L9H9", "L5H1", "L7H3", "L2H0"]


def test_import_and_help_stay_light():
    code = (
        "import sys, headjax; from experiments.cli import make_parser; make_parser().format_help(); "
        "assert not {'jinja2', 'jax', 'headjax.report'} & set(sys.modules), sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)
