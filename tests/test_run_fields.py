"""Every field of a run does what it says, and what has no effect on what is asked is not taken silently.

Runs on a tiny model, in process, with figures recorded instead of drawn: a table of fields, each with another
value and what must come of it; and for every analysis all fields that it says it does not read, changed at
once: not a byte of the results may differ.
"""

import csv
import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from experiments import run as runner
from experiments.config import (
    ALWAYS,
    PLANNED,
    SECTIONS,
    RunConfig,
    changed_places,
    idle,
    load_config,
    refuse_idle,
)
from experiments.stages import Stages
from headjax import figures
from headjax.analyses.registry import ANALYSES
from headjax.errors import InputError
from headjax.grid import GridSet, HeadGrid, load_npz
from headjax.study import Compute, Data
from tests.helpers.other_fields import OTHER
from tests.helpers.runs import altered, places
from tests.helpers.tiny_run import tiny_run

STATIC, DYNAMIC, ABLATE = ("relation_scores",), ("dynamic_scores",), ("head_ablation",)
CURVES = ("relation_scores", "ablation_curves")
PATHS = ("path_patching",)
# Analyses that need another, or other prompts.
WITH = {"ablation_curves": CURVES, "universality": ("relation_scores", "universality")}
TWINS = {"prompts": "{}/twins.jsonl"}


class Found(NamedTuple):
    """What a run left: its grids, all files as bytes, how many steps each sweep took, what was drawn, and in
    which looks; what those do, test_looks.py shows."""

    grids: GridSet
    files: Mapping[str, bytes]
    steps: list[tuple[str, int]]
    drawn: list[tuple]
    looks: list[figures.Look]

    def rows(self, name: str) -> list[dict[str, str]]:
        return list(csv.DictReader(self.files[name].decode().splitlines()))


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """Two heads to a key/value head; k so large that random weights have hits."""
    tmp = tmp_path_factory.mktemp("fields")
    config = tiny_run(tmp, n_heads=4, n_kv_heads=2)
    pairs = json.loads((tmp / "relations" / "capitals.json").read_text())
    (tmp / "relations" / "capitals.json").write_text(json.dumps([*pairs, ["no dog", "cat"]]))
    (tmp / "others").mkdir()
    (tmp / "others" / "reversed.json").write_text(json.dumps([pair[::-1] for pair in pairs]))
    asked = [{"prompt": f"The {word} is", "answer": answer} for word, answer in (("dog", "no"), ("cat", "a"))]
    (tmp / "asked.jsonl").write_text("\n".join(map(json.dumps, asked)))
    twins = [
        {"prompt": f"The story of {a} is", "answer": a, "distractor": b, "corrupted": f"The story of {b} is"}
        for a, b in (("John", "Mary"), ("Anna", "Peter"), ("Mark", "Lucy"))
    ]
    (tmp / "twins.jsonl").write_text("\n".join(map(json.dumps, twins)))
    return altered(config, top_k=60, top_k_copying=60, analyses=STATIC)


def changed_config(config: RunConfig, **changes: Any) -> RunConfig:
    """With some fields changed; {} stands for the directory of the tiny model's."""
    root = str(Path(config.model).parent)
    named = {f: v.replace("{}", root) if isinstance(v, str) else v for f, v in changes.items()}
    return altered(config, **named)


DRAWN = (
    *("category_map", "relation_heat_map", "score_map", "signed_map", "circuit_overlap_map"),
    *("ablation_curves_figure", "comparison_figure"),
    *("category_share_figure", "relations_per_head_figure", "group_similarity_figure"),
)


class Recorder:
    """Stands in for the functions of headjax.figures: keeps what each figure is given, draws nothing."""

    def __init__(self, out: str):
        self.drawn: list[tuple] = []
        self.looks: list[figures.Look] = []
        self.out = out

    def record(self, name: str) -> Callable[..., tuple]:
        def draw(*arguments: Any, **options: Any) -> tuple:
            self.looks.append(figures.LOOK.get())
            self.drawn.append((name, self.plain(arguments), self.plain(options)))
            return ()

        return draw

    def plain(self, value: Any) -> Any:
        if isinstance(value, GridSet | HeadGrid):
            return [(g.kind, g.relation) for g in (value if isinstance(value, GridSet) else [value])]
        if isinstance(value, np.ndarray):
            return value.tolist()
        if isinstance(value, Mapping):
            return {name: self.plain(one) for name, one in value.items()}
        if isinstance(value, list | tuple):
            return [self.plain(one) for one in value]
        return str(value).replace(self.out, "")


@pytest.fixture(scope="module")
def found(config, tmp_path_factory) -> Callable[..., Found]:
    """What a run of the config with some fields changed leaves; the same run is not run twice."""
    known: dict[str, Found] = {}

    def find(**changes: Any) -> Found:
        changed = changed_config(config, **changes)
        if repr(changed) in known:
            return known[repr(changed)]
        out, steps = tmp_path_factory.mktemp("out"), []
        track = Stages.track

        def count(self: Stages, items: Any, total: int | None = None, label: str = "") -> Any:
            done = list(track(self, items, total, label))
            steps.append((label, len(done)))
            return done

        recorder = Recorder(str(out))
        with pytest.MonkeyPatch.context() as patch:
            for name in DRAWN:
                patch.setattr(figures, name, recorder.record(name))
            patch.setattr(Stages, "track", count)
            runner.run(altered(changed, out=str(out)), progress=False)
        files = {
            file.relative_to(out).as_posix(): file.read_bytes() for file in out.rglob("*") if file.is_file()
        }
        known[repr(changed)] = Found(
            load_npz(out / "scores.npz"), files, steps, recorder.drawn, recorder.looks
        )
        return known[repr(changed)]

    return find


# --- what every field does --------------------------------------------------------------------------


def kinds(found: Found) -> set[str]:
    return set(found.grids.values("kind"))


def relations(found: Found) -> set[str]:
    return set(found.grids.values("relation"))


def templates(found: Found) -> set[str]:
    return set(found.grids.values("template"))


def counts(found: Found) -> set[int]:
    return set(found.grids.values("n_pairs"))


def shapes(found: Found) -> set[tuple[int, ...]]:
    return {grid.scores.shape for grid in found.grids}


def scores(found: Found) -> list:
    return [grid.scores.tolist() for grid in found.grids]


def above(found: Found) -> list[int]:
    """What the summary says of how many heads are above the threshold."""
    return [
        int(row["heads"]) for row in found.rows("summary.csv") if row["kind"] == "static" and row["relation"]
    ]


def unclassified(found: Found) -> int:
    (row,) = [row for row in found.rows("summary.csv") if row["category"] == "Unclassified"]
    return int(row["heads"])


def salient(found: Found) -> dict:
    (heads,) = json.loads(found.files["salient_operations.json"]).values()
    return heads


def n_salient(found: Found) -> set[tuple[int, int]]:
    return {(len(tokens), len(tokens[0]["mapped"])) for tokens in salient(found).values()}


def removed(found: Found) -> int:
    return max(int(row["n_heads"]) for row in found.rows("ablation_curves.csv") if row["curve"] == "relation")


def curves(found: Found) -> bytes:
    return found.files["ablation_curves.csv"]


def random_curves(found: Found) -> list[str]:
    return [row["logprob_high"] for row in found.rows("ablation_curves.csv") if row["curve"] == "random"]


def n_circuit(found: Found) -> int:
    return len(found.rows("circuits.csv"))


def stages(found: Found) -> set[str]:
    return {kind.split("_")[1] for kind in kinds(found)}


def n_steps(found: Found) -> list[tuple[str, int]]:
    return found.steps


def figure_options(found: Found) -> set[tuple[str, ...]]:
    return {str(call[-1].get(name)) for call in found.drawn for name in ("orientation", "origin")}


def heat_maps(found: Found) -> list:
    return [call[1][0] for call in found.drawn if call[0] == "relation_heat_map"]


def marks(found: Found) -> list:
    return [call[2]["circuits"] for call in found.drawn if call[0] == "relation_heat_map"]


def forms(found: Found) -> set[str]:
    """The forms of the tables of scores."""
    return {name for name in found.files if name.startswith(("summary.", "correlations."))}


def looks(found: Found) -> set[figures.Look]:
    """With which look figures were drawn."""
    return set(found.looks)


def recorded(found: Found) -> dict:
    return json.loads(found.files["run.json"])["implementations"]


ANY = object()  # a value that is different, whatever it is


class Case(NamedTuple):
    """A field with another value: what is looked at, and what that is with the new value."""

    field: str
    value: Any
    analyses: tuple[str, ...]
    look: Callable[[Found], Any]
    expected: Any = ANY
    base: Mapping[str, Any] = {}


TWO_STAGES = {"n_stages": 2, "top_share": 0.1, "min_effect": 0.0, **TWINS}
CASES = (
    Case("relations", ("copying",), STATIC, relations, {"copying"}),
    Case("relations_dir", "{}/others", STATIC, relations, {"reversed"}),
    Case("analyses", DYNAMIC, STATIC, kinds),
    Case("min_pairs", 5, STATIC, relations, {"copying"}),
    Case("top_k", 10, STATIC, scores),
    Case("top_k", 10, DYNAMIC, scores),
    Case("top_k_copying", 5, STATIC, scores),
    Case("top_k_copying", 5, DYNAMIC, scores),
    Case("first_mlp", False, STATIC, scores),
    Case("first_mlp", False, ("salient_operations",), salient),
    Case("threshold", 0.5, STATIC, above),
    Case("count_suppression", False, STATIC, unclassified),
    Case("dtype", "bfloat16", ABLATE, scores),
    Case("implementation", "reference", DYNAMIC, recorded),
    Case("batch_size", 16, DYNAMIC, n_steps, [("dynamic scores", 2)]),
    Case("seed", 1, DYNAMIC, scores, base={"n_prompts": 2}),
    Case("seed", 1, ("attention_patterns",), scores),
    Case("seed", 1, ABLATE, scores, base={"replacement": "resample"}),
    Case("templates", ("No <X> means",), DYNAMIC, templates, {"No <X> means"}),
    Case("templates", ("No <X> means",), ABLATE, scores),
    Case("prompts", "{}/asked.jsonl", ABLATE, relations, {"asked"}),
    Case("n_prompts", 2, DYNAMIC, counts, {2}),
    Case("n_prompts", 3, ABLATE, counts, {3}),
    Case("multi_token", True, DYNAMIC, counts, {5, 7}),
    Case("bos", True, DYNAMIC, scores),
    Case("bos", True, ABLATE, scores),
    Case("bos", True, ("attention_patterns",), scores),
    Case("replacement", "mean", ABLATE, scores),
    Case("replacement", "resample", ("gradient_attribution",), scores),
    Case("replacement", "mean", CURVES, curves),
    Case("mean_over", "tokens", ABLATE, scores, base={"replacement": "mean"}),
    Case("mean_over", "tokens", CURVES, curves, base={"replacement": "mean"}),
    Case("positions", "all", ABLATE, scores),
    Case("positions", "all", ("gradient_attribution",), scores),
    Case("positions", "all", PATHS, scores, base=TWINS | {"receivers": ("L3H1.q",)}),
    Case("kv_groups", True, ABLATE, shapes, {(5, 2)}),
    Case("metrics", ("accuracy",), ABLATE, kinds, {"ablation_accuracy"}),
    Case("metrics", ("logprob",), ("gradient_attribution",), kinds, {"gradient_logprob"}, base=TWINS),
    Case("rank_by", "static_suppression", CURVES, curves),
    Case("max_heads", 2, CURVES, removed, 2),
    Case("n_random_draws", 1, CURVES, random_curves),
    Case("variant_batch", 16, ABLATE, n_steps),
    Case("heads", ("L1H2",), ("salient_operations",), lambda f: list(salient(f)), ["L1H2"]),
    Case("n_tokens", 3, ("salient_operations",), n_salient, {(3, 5)}),
    Case("n_mapped", 2, ("salient_operations",), n_salient, {(15, 2)}),
    Case("receivers", ("L3H1.q",), PATHS, kinds, {"path_direct", "path_logits", "path_query"}, TWINS),
    Case("n_stages", 1, ("circuit_discovery",), stages, {"1"}, TWO_STAGES),
    Case("top_share", 0.05, ("circuit_discovery",), n_circuit, 1, TWO_STAGES | {"n_stages": 1}),
    Case("min_effect", 1000, ("circuit_discovery",), n_circuit, 0, TWO_STAGES),
    Case(
        *("tables", ("tex", "md"), STATIC + DYNAMIC, forms),
        {f"{table}.{form}" for table in ("summary", "correlations") for form in ("csv", "tex", "md")},
    ),
    Case("formats", ("svg",), STATIC, looks, {figures.Look(formats=("svg",))}),
    Case("size", 2.0, STATIC, looks, {figures.Look(size=2.0)}),
    Case("width", "column", STATIC, looks, {figures.Look(width="column")}),
    Case("transparent", True, STATIC, looks, {figures.Look(transparent=True)}),
    Case("title", "Mine", STATIC, looks, {figures.Look(title="Mine")}),
    Case("colors", "magma", STATIC, looks, {figures.Look(colors="magma")}),
    Case("scale", "auto", STATIC, looks, {figures.Look(scale="auto")}),
    Case("annotate", 3, STATIC, looks, {figures.Look(annotate=3)}),
    Case("palette", "published", STATIC, looks, {figures.Look(palette="published")}),
    Case("several", "digits", STATIC, looks, {figures.Look(several="digits")}),
    Case("circuits", ("L1H2",), STATIC, marks),
    Case("heat_maps", ("copying",), STATIC, heat_maps, [[[("static", "copying")]]]),
    Case("orientation", "head_x", STATIC, figure_options),
    Case("origin", "upper", STATIC, figure_options),
)
# Fields whose effect is no other number and no other file here: where their tests are.
ELSEWHERE = {
    **dict.fromkeys(("model", "out", "checkpoint_dir"), "test_run.py"),
    **dict.fromkeys(("mesh", "parallel"), "test_mesh.py"),
    **dict.fromkeys(("rate", "device_memory"), "test_plan.py"),
    "precision": "test_model.py",
    "n_shown": "test_page.py",
    "ignore_fields": "test_fields.py",
    "stream": "test_run_stream.py",
    "compare": "test_run_papers.py",
    "distributed": "test_processes.py",
}


def all_fields() -> set[str]:
    """Names of all fields of a run and of the analyses that there are."""
    parts = (RunConfig, *SECTIONS.values(), *ANALYSES.values())
    return {field.name for part in parts for field in dataclasses.fields(part)} - set(SECTIONS)


def test_every_field_is_in_the_tables():
    assert {case.field for case in CASES} | set(ELSEWHERE) == all_fields()
    assert not {case.field for case in CASES} & set(ELSEWHERE)


def test_every_field_outside_analyses_is_read_by_one():
    read = ALWAYS.union(PLANNED, *(analysis().reads(Data()) for analysis in ANALYSES.values()))
    known = {f"{section}.{f.name}" for section, part in SECTIONS.items() for f in dataclasses.fields(part)}
    assert read == known | {f.name for f in dataclasses.fields(RunConfig)} - set(SECTIONS)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.field}-{case.analyses[-1]}")
def test_a_field_does_what_it_says(case: Case, found, config):
    before = {"analyses": case.analyses, **case.base}
    assert case.value != before.get(case.field)
    usual, other = (case.look(found(**changes)) for changes in (before, before | {case.field: case.value}))
    assert other != usual
    assert case.expected is ANY or other == case.expected


@pytest.mark.parametrize("analysis", ["head_ablation", "gradient_attribution"])
def test_grids_say_what_took_the_heads_place(analysis: str, found):
    for replacement in ("zero", "resample"):
        grids = found(analyses=(analysis,), replacement=replacement).grids
        assert set(grids.values("replacement")) == {replacement}
        assert set(grids.values("positions")) == {"last"}


def test_the_threshold_is_held_against_every_score(found):
    for threshold in (0.15, 0.5):
        one = found(analyses=STATIC, threshold=threshold)
        grids = one.grids.select(kind="static")
        assert above(one) == [int((grid.scores > np.float32(threshold)).sum()) for grid in grids]
        assert sum(above(one)) > 0


# --- what has no effect -----------------------------------------------------------------------------


@pytest.mark.parametrize("prompts", [None, "{}/asked.jsonl"], ids=["relations", "file"])
@pytest.mark.parametrize("analysis", ANALYSES)
def test_what_is_called_idle_changes_nothing(analysis: str, prompts: str | None, found, config):
    base: dict[str, Any] = {"analyses": WITH.get(analysis, (analysis,))}
    if prompts is not None and analysis in ("ablation_curves", "path_patching", "circuit_discovery"):
        pytest.skip("needs prompts of relations")
    if prompts is not None:
        base["prompts"] = prompts
    elif analysis in ("path_patching", "circuit_discovery"):
        base |= TWINS
    asked = changed_config(config, **base)
    place = {name: places(asked, name)[0] for name in OTHER}
    unread = [name for name in OTHER if idle(asked, [place[name]])]
    # Nothing but relation scores is streamed where the others are not.
    changed = {name: OTHER[name] for name in unread if name != "stream" or analysis == "relation_scores"}
    assert changed or (analysis, prompts) == ("ablation_curves", None)  # which use every field there is
    usual, other = found(**base), found(**base, **changed)
    assert other.files.keys() == usual.files.keys()
    for name, content in usual.files.items():
        if name not in ("run.json", "summary.csv", "page.json", "report.html"):  # they hold the config
            assert other.files[name] == content, name
    pages = [json.loads(one.files["page.json"]) for one in (usual, other)]
    for what in ("parts", "clean", "analyses"):
        assert pages[0][what] == pages[1][what]
    assert [call[0] for call in other.drawn] == [call[0] for call in usual.drawn]


def test_no_config_of_ours_sets_what_has_no_effect():
    for file in (Path(runner.__file__).parent / "configs").rglob("[a-z]*.py"):
        config = load_config(str(file), {})
        assert not idle(config, changed_places(config)), file


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"replacement": "mean"}, "'replacement' must have an effect; it has one on head_ablation, gradient"),
        (
            {"receivers": "L9H6.q"},
            "'receivers' must have an effect; it has one on path_patching, asked is rel",
        ),
        ({"mean_over": "tokens", "analyses": "head_ablation"}, "'mean_over'.* where replacement is 'mean'"),
        (
            {"batch_size": "3"},
            "'batch_size' must have an effect on what is asked; it has one on dynamic_scores",
        ),
        ({"rate": "1"}, "'rate' must have an effect on what is asked; it has one on plans"),
        (
            {"stream": "true"},
            "'stream' must have an effect .* on dynamic_scores, logit_attribution, head_abl",
        ),
        (
            {"relations": "copying", "prompts": "ioi", "analyses": "head_ablation"},
            "'relations' .*head_ablation.*, unless other fields take it away, as prompts of files do",
        ),
        (
            {"positions": "all", "analyses": "head_ablation,gradient_attribution"},
            "give --config.analyses.head_ablation.positions or --config.analyses.gradient_attribution.posi",
        ),
        ({"analyses.ablation.positions": "all"}, "analyses of this run are relation_scores; got 'ablation'"),
        ({"data.batch_size": "3"}, "no field 'data.batch_size'; near ones: batch_size"),
    ],
)
def test_a_field_without_effect_is_refused_on_the_command_line(overrides: dict[str, str], message: str):
    with pytest.raises(InputError, match=message):
        refuse_idle(load_config("relation_scores", overrides), overrides)


def test_a_field_is_found_by_its_name_or_by_its_place():
    given = {"analyses": "head_ablation,dynamic_scores", "positions": "all", "n_prompts": "7"}
    config = load_config("relation_scores", given)
    assert list(config.analyses) == ["head_ablation", "dynamic_scores"]
    assert config.analyses["head_ablation"].positions == "all"
    assert config.data.n_prompts == 7
    placed = {"analyses.head_ablation.positions": "all", "data.n_prompts": "7"}
    assert load_config("relation_scores", {"analyses": given["analyses"], **placed}) == config
    named = {"analyses.mean": "head_ablation", "analyses.mean.replacement": "mean"}
    config = load_config("relation_scores", named)
    assert list(config.analyses) == ["relation_scores", "mean"]
    assert config.analyses["mean"].replacement == "mean"
    text = '{"zero": {"kind": "head_ablation"}, "mean": {"kind": "head_ablation", "replacement": "mean"}}'
    config = load_config("relation_scores", {"analyses": text})
    assert [analysis.replacement for analysis in config.analyses.values()] == ["zero", "mean"]


def test_a_plan_takes_the_devices_it_plans_for():
    config = load_config("relation_scores", {"rate": "1", "device_memory": "80"})
    refuse_idle(config, ("rate", "device_memory"), planned=True)


def test_what_a_config_sets_without_effect_is_said_in_one_line(config, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(runner, "draw_all", lambda found, compared, config: [])
    unread = altered(config, analyses=("copy_score",), templates=(), out=str(tmp_path), n_prompts=3)
    runner.run(unread, progress=False)
    said = [line for line in capsys.readouterr().err.splitlines() if "without effect" in line]
    (line,) = said
    assert line.startswith("without effect on copy_score: ")
    assert "n_prompts" in line
    assert "seed" not in line


def test_nothing_is_said_where_all_has_an_effect(config, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(runner, "draw_all", lambda found, compared, config: [])
    data = dataclasses.replace(config.data, templates=(), bos=None)
    read = dataclasses.replace(config, data=data, compute=Compute(), out=str(tmp_path))
    assert not idle(read, changed_places(read))
    runner.run(read, progress=False)
    assert "without effect" not in capsys.readouterr().err
