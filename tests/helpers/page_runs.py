"""Runs that a page shows, of any size, without a model: grids of every sort, and every part there is."""

import base64
from collections.abc import Mapping
from typing import Any

import numpy as np

from headjax.grid import GridSet, HeadGrid
from headjax.report.options import Report
from headjax.report.page.data import VERSION, Marks, ModelAbout, RelationAbout, RunAbout
from headjax.report.page.write import Run
from headjax.report.parts import (
    Attention,
    CategoryMap,
    Chart,
    Curves,
    Dots,
    Edge,
    Graph,
    HeadNotes,
    Line,
    Node,
    Part,
    Pattern,
    Point,
    Rows,
    Scatter,
    plain,
)
from headjax.result import CleanRow
from tests.helpers.grids import spelled

CATEGORIES = ("Knowledge", "Linguistic", "Algorithmic", "Translation")
TOKENS = ("The", " capital", " of", " France", " is", " the", " city", " of")


def page_grids(
    n_layers: int,
    n_heads: int,
    model: str = "tiny",
    relations: tuple[str, ...] = ("country_to_capital", "word_to_antonym"),
    templates: tuple[str, ...] = ("<X> is",),
    seed: int = 0,
) -> GridSet:
    """Relation scores, dynamic scores with templates, and signed effects with errors of two metrics."""
    rng = np.random.default_rng(seed)
    shape, grids = (n_layers, n_heads), []
    for r, relation in enumerate(relations):
        named = {"model": model, "relation": relation, "category": CATEGORIES[r % len(CATEGORIES)]}
        for kind in ("static", "static_suppression"):
            hits = rng.binomial(60, np.where(rng.random(shape) < 0.04, 0.6, 0.01))
            scores = (hits / 60).astype(np.float32)
            grids.append(HeadGrid(scores, **named, **spelled(kind), n_pairs=60, analysis="relation_scores"))
        for kind in ("dynamic_context", "dynamic_no_context"):
            for template in templates:
                scores = (rng.binomial(50, 0.02, shape) / 50).astype(np.float32)
                more = {"template": template, "analysis": "dynamic_scores", "n_pairs": 50}
                grids.append(HeadGrid(scores, **named, **spelled(kind), **more))
        for metric in ("logprob", "accuracy"):
            more = {"metric": metric, "replacement": "mean", "positions": "last", "analysis": "head_ablation"}
            grids.append(
                HeadGrid(
                    rng.normal(0, 0.05, shape) + (rng.random(shape) < 0.02) * rng.normal(0, 2, shape),
                    **named,
                    **more,
                    measure="ablation",
                    n_pairs=40,
                    stderr=rng.gamma(2, 0.01, shape),
                    clean=-1.25,
                    clean_stderr=0.1,
                )
            )
    return GridSet(tuple(grids))


def pattern(n_layers: int, n_heads: int, model: str, tokens: tuple[str, ...] = TOKENS) -> Pattern:
    """Random attention of every head, rows adding up to one."""
    S, rng = len(tokens), np.random.default_rng(1)
    rows = [rng.dirichlet(np.full(to + 1, 0.4), n_layers * n_heads) for to in range(S)]
    weights = np.round(255 * np.concatenate(rows, axis=1)).astype(np.uint8)
    heads = tuple(f"L{layer}H{head}" for layer in range(n_layers) for head in range(n_heads))
    packed = base64.b64encode(weights.tobytes()).decode()
    return Pattern(model, "country_to_capital", "".join(tokens), tokens, 3, "Paris", "Rome", heads, packed)


def parts(n_layers: int, n_heads: int, model: str = "tiny") -> tuple[Part, ...]:
    """One of every part that a page knows."""
    x = tuple(float(n) for n in range(6))
    line = lambda label, role, y: Line(  # noqa: E731
        label, role, x, tuple(y), tuple(v - 0.05 for v in y), tuple(v + 0.05 for v in y)
    )
    charts = tuple(
        Chart(
            title,
            (
                line("Relation's heads removed", "main", [1, 0.9, 0.5, 0.2, 0, 0]),
                line("Random other heads removed", "reference", [1, 1, 1, 0.95, 0.95, 0.9]),
                line("Control: word to antonym", "control", [1, 1, 1, 0.95, 0.95, 0.9]),
            ),
        )
        for title in ("country to capital", "word to antonym")
    )
    points = tuple(
        Point(r, name, group)
        for name, values in (("Country to capital", (0.9, 0.7)), ("Word to antonym", (0.4, 0.2)))
        for r, group in zip(values, ("plain, with context", "plain, without context"), strict=True)
    )
    compared = (
        Point(0.9, 0.88, "agrees", "maps: country to capital"),
        Point(0.5, 0.2, "differs", "maps: word to antonym"),
    )
    last = n_layers - 1
    nodes = (
        Node(f"L{last}H0", "Stage 1, direct: raises logit difference", -31.0, 2.0),
        Node(f"L{last}H1", "Stage 1, direct: lowers logit difference", 12.0, 1.0),
        Node("L0H2", "Stage 2, into queries: raises logit difference", -9.0, 1.0),
    )
    edges = (
        Edge(f"L{last}H0", "", "direct", -31.0, False),
        Edge(f"L{last}H1", "", "direct", 12.0, False),
        Edge("L0H2", f"L{last}H0", "query", -9.0, True),
        Edge("L0H2", f"L{last}H1", "query", -9.0, True),
    )
    return (
        Scatter("Ours against published", "published", "ours", compared),
        Rows(
            "Comparison with published numbers",
            ("relation", "published", "ours", "verdict"),
            (("country_to_capital", 0.9, 0.88, "agrees"), ("word_to_antonym", 0.5, 0.2, "differs")),
            verdict="verdict",
        ),
        CategoryMap("Categories", "relation_scores"),
        Attention("Attention patterns", (pattern(n_layers, n_heads, model),), "Rows attend to columns."),
        Curves("Ablation curves", "heads removed", "accuracy", charts),
        Dots("Static against dynamic scores", "r", points),
        Graph("Circuit of ioi", nodes, edges),
        HeadNotes(
            "Salient tokens",
            model,
            ("token", "amplified", "mapped to"),
            {"L0H1": ((" dog", 2.5, (" cat",)),)},
        ),
    )


def page_run(n_layers: int = 4, n_heads: int = 3, name: str = "run", **how: Any) -> Run:
    """What is said of a run, and its grids; `how` as of `page_grids`, and fields of `RunAbout` to replace."""
    said = {one: how.pop(one) for one in RunAbout._fields if one in how}
    grids = page_grids(n_layers, n_heads, **how)
    model = how.get("model", "tiny")
    named: Mapping[str, str] = {grid.relation: grid.category for grid in grids}
    examples = (("France", "Paris"), ("Italy", "Rome"), ("Peru", "Lima"))
    about = RunAbout(
        version=VERSION,
        name=name,
        sentence=f"headjax measured {n_layers * n_heads} heads of {model}.",
        facts={"devices": "1 cpu"},
        models=(
            ModelAbout(
                model,
                "hub/tiny",
                "0123456789ab",
                n_layers,
                n_heads,
                n_heads,
                tuple(
                    RelationAbout(one, one.replace("_", " ").capitalize(), category, 60, 62, examples)
                    for one, category in named.items()
                ),
                (("Year to following", "3 of 60 pairs are single tokens, min_pairs is 30"),),
                "prompts begin with <s> (token 1)",
            ),
        ),
        analyses=(),
        clean=(CleanRow(model, "country_to_capital", "task", 40, 0.9, 0.77, 0.96, -0.5, 0.1, None, None),),
        marks=(Marks(model, "ioi", "Published", "Wang et al.", {"Name movers": ("L1H1", "L2H0")}),),
        report=vars(Report()),
        parts=parts(n_layers, n_heads, model),
    )._replace(**said)
    return plain(about), grids
