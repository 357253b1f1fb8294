"""The tables of salient operations (JSON and a page to read), universality and comparisons (CSV)."""

import csv
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from experiments.compare import Comparison
from experiments.config import RunConfig
from headjax.grid import GridSet
from headjax.io import atomic_write, read_table
from headjax.report.markdown import markdown_code, markdown_text
from headjax.report.universality import (
    CategoryShare,
    GroupSimilarity,
    RelationCount,
    category_shares,
    group_similarity,
    relation_counts,
)

VERDICTS = ("agrees", "differs", "not measured")
UNIVERSALITY = {
    "category_shares.csv": CategoryShare,
    "relations_per_head.csv": RelationCount,
    "group_similarity.csv": GroupSimilarity,
}


def write_salient(salient: Mapping[str, Mapping[str, list[dict]]], config: RunConfig) -> list[Path]:
    """Writes salient_operations.json and .md of model -> head -> tokens, where there are any."""
    if not salient:
        return []
    out = Path(config.out)
    files = [out / "salient_operations.json", out / "salient_operations.md"]
    with atomic_write(files[0]) as file:
        json.dump(salient, file, indent=1, ensure_ascii=False)
    with atomic_write(files[1]) as file:
        file.write(salient_page(salient))
    return files


def salient_page(salient: Mapping[str, Mapping[str, list[dict]]]) -> str:
    """The same as a Markdown page: a table a head."""
    lines = ["# Salient operations", ""]
    lines.append("The tokens whose norm a head's W_V W_O amplifies most, and what each is mapped to.")
    for model, heads in salient.items():
        lines += ["", f"## {markdown_text(model)}"]
        for head, tokens in heads.items():
            lines += ["", f"### {head}", "", "| token | amplified | mapped to |", "|---|---|---|"]
            for one in tokens:
                mapped = ", ".join(map(markdown_code, one["mapped"]))
                lines.append(f"| {markdown_code(one['token'])} | {one['amplification']:.3g} | {mapped} |")
    return "\n".join(lines) + "\n"


def universality(
    grids: GridSet, n_kv_heads: Mapping[str, int], config: RunConfig
) -> dict[str, Sequence[NamedTuple]]:
    """The tables of the analysis of that name, by the names of their files; none where nobody asked."""
    if "universality" not in config.analyses:
        return {}
    asked = (config.threshold, config.count_suppression)
    tables = (
        category_shares(grids, *asked),
        relation_counts(grids, *asked),
        group_similarity(grids, n_kv_heads),
    )
    return dict(zip(UNIVERSALITY, tables, strict=True))


def write_universality(
    tables: Mapping[str, Sequence[NamedTuple]], config: RunConfig
) -> tuple[list[Path], list[str]]:
    """Writes category_shares.csv, relations_per_head.csv and, for grouped heads, group_similarity.csv.

    Returns the files and the text to print.
    """
    if not tables:
        return [], []
    files = [Path(config.out) / name for name, rows in tables.items() if rows]
    for file in files:
        with atomic_write(file) as opened:
            writer = csv.writer(opened, lineterminator="\n")
            writer.writerow(UNIVERSALITY[file.name]._fields)
            writer.writerows(tables[file.name])
    lines = ["Relations a head implements: share of the heads"]
    for model in dict.fromkeys(row.model for row in tables["relations_per_head.csv"]):
        shares = [row for row in tables["relations_per_head.csv"] if row.model == model]
        lines.append(f"  {model}: " + ", ".join(f"{row.n_relations} {row.share:.0%}" for row in shares))
    return files, ["\n".join(lines)]


def read_universality(path: Path) -> list[NamedTuple]:
    """The rows of one of the files."""
    row_type = UNIVERSALITY[path.name]
    return [row_type(*row) for row in read_table(path, row_type.__annotations__)]


def write_comparison(rows: Sequence[Comparison], config: RunConfig) -> tuple[list[Path], list[str]]:
    """Writes comparison.csv where the config names published tables; the files and the text to print."""
    if not config.compare:
        return [], []
    out = Path(config.out)
    with atomic_write(out / "comparison.csv") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Comparison._fields)
        writer.writerows(rows)
    return [out / "comparison.csv"], [comparison_table(rows)]


def read_comparison(path: Path) -> list[Comparison]:
    """The rows that `write_comparison` wrote."""
    return [Comparison(*row) for row in read_table(path, Comparison.__annotations__)]


def comparison_table(rows: Sequence[Comparison]) -> str:
    """The rows as aligned text, a block a table and model, and how many of them agree."""
    lines = []
    for table, model in dict.fromkeys(row[:2] for row in rows):
        block = [row for row in rows if row[:2] == (table, model)]
        counts = {verdict: sum(row.verdict == verdict for row in block) for verdict in VERDICTS}
        said = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
        lines.append(f"{model} against the published {table}: {said}")
        lines.append(
            f"  {'relation':22} {'kind':11} {'measure':18} {'published':>9} {'ours':>6} {'diff.':>6}  verdict"
        )
        for row in block:
            ours, difference = (
                "-" if math.isnan(value) else format(value, spec)
                for value, spec in ((row.ours, ".2f"), (row.difference, "+.2f"))
            )
            lines.append(
                f"  {row.relation:22} {row.kind:11} {row.measure:18} {f'{row.bound}{row.published:.2f}':>9} "
                f"{ours:>6} {difference:>6}  {row.verdict} (+-{row.tolerance:.2f})"
            )
    return "\n".join(lines)
