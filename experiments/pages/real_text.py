"""The words and tables of the page about a real model: everything in them is made from numbers."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.pages.agreement import spearman
from experiments.pages.agreement_text import agreement_section, heads_section, table
from experiments.pages.finished import Finished
from headjax.axes import Head
from headjax.circuits.prediction import ALL_ROLES
from headjax.data.hit_rule import HitRule
from headjax.grid import HeadGrid, category_counts, head_categories
from headjax.io import read_json
from headjax.measures import SUPPRESSION
from headjax.report.markdown import markdown_code, markdown_text
from headjax.stats import p_text, wilson

CAPITALS, NAMES = "country_to_capital", "name_copying"
N_SHOWN, N_TOKENS = 5, 6  # heads of a line, salient tokens of a head
ZOO = "python -m experiments.run --config real --config.model=smollm2-135m-instruct"


def write_text(
    found: Finished, compared: Sequence[Any], targets: Mapping[str, Sequence[str]], folder: str
) -> str:
    """The page. `compared` is what `experiments.verify` gives; relation -> the targets of its pairs."""
    about, rows = found.about, found.rows
    curves = {row["relation"]: row for row in found.tables["ablation_summary"]}
    rule = HitRule(**about["models"][0]["hit_rule"])
    parts = [
        *introduction(found),
        *torch_section(compared),
        *relations_section(found, folder),
        *attention_section(found, folder),
        *circuit_section(found, folder),
        *curves_section(found, folder),
        *agreement_section(rows, targets, curves, rule, about["config"]["report"]["threshold"]),
        f"![{CAPITALS}: four measures of all heads]({folder}/{CAPITALS}.png)",
        "",
        *heads_section(rows),
        *salient_section(found),
    ]
    return "\n".join(parts) + "\n"


def introduction(found: Finished) -> list[str]:
    about = found.about
    model, c, versions = about["models"][0], about["models"][0]["config"], about["versions"]
    relations, skipped = model["relations"], model["skipped"]
    # Of a reason the words that were dropped are left out.
    left_out = ", ".join(f"{one.replace('_', ' ')} ({why.split('; ')[0]})" for one, why in skipped.items())
    first = f"{markdown_code(model['bos']['text'])} in front" if model["bos"] else "no token in front"
    return [
        f"# A real model: {markdown_text(model['name'])}",
        "",
        "Written by `python -m experiments.pages.real` from a run's results, not by hand.",
        "",
        f"{c['n_layers']} layers of {c['n_heads']} heads that share {c['n_kv_heads']} key/value heads, "
        f"d_head {c['d_head']}, d_model {c['d_model']}, a vocabulary of {c['vocab_size']:,} tokens; float32, "
        f"{about['devices']['platform']}, jax {versions['jax']}, {found.day:%Y-%m-%d}. {len(relations)} "
        f"relations have {sum(relations.values()):,} pairs of single tokens; left out: {left_out or 'none'}. "
        f"At most {about['config']['data']['n_prompts']} prompts of each relation, {first}.",
        "",
        f"    {ZOO}",
        "    python -m experiments.pages.real out/real",
        "",
        f"All analyses took {sum(about['seconds'].values()):.0f} s (a shared machine with two cores).",
        "",
    ]


def torch_section(compared: Sequence[Any]) -> list[str]:
    lines = [
        [
            one.what,
            f"{one.n_numbers:,}",
            f"{one.difference:.1e}",
            f"{one.allowed:.1e}",
            "agrees" if one.agrees else "differs",
        ]
        for one in compared
    ]
    agreeing = sum(one.agrees for one in compared)
    return [
        "## Agreement with plain torch",
        "",
        f"`headjax verify` runs the same files in transformers, with eager attention, and compares: "
        f"{agreeing} of {len(compared)} agree. Differences are relative to the largest number that torch "
        "gives; hits of relation scores are counts, of which none may differ by more than rounding explains.",
        "",
        *table(["compared", "numbers", "difference", "allowed", ""], lines),
        "",
    ]


def relations_section(found: Finished, folder: str) -> list[str]:
    report = found.about["config"]["report"]
    threshold = report["threshold"]
    categories = head_categories(found.grids, threshold, report["count_suppression"])
    counts = category_counts(categories)
    total = sum(counts)
    each = ", ".join(f"{name.lower()} {int(mask.sum())}" for name, mask in categories.items())
    lines = []
    for name, what, grid in (
        ("capitals", "static", found.static(CAPITALS)),
        ("name copying", "static", found.static(NAMES)),
        ("name copying, sign turned", "static", found.static(NAMES, SUPPRESSION)),
        ("names of indirect objects", "copy score", found.copying()),
        ("the same, negated", "copy score", found.copying(SUPPRESSION)),
    ):
        lines.append([name, what, str(grid.n_pairs), shares(grid)])
    rho, p = spearman(found.static(NAMES).scores, found.copying().scores)
    return [
        "## What weights say",
        "",
        f"A head implements a relation above {threshold:g}. {total - counts[0]} of {total} heads implement "
        f"one at least: {each}; {sum(counts[2:])} are in several categories.",
        "",
        f"![Categories of all heads]({folder}/category_map.png)",
        "",
        f"![Relation scores of capitals and names]({folder}/relations.png)",
        "",
        *table(["relation", "score", "pairs", "best heads, with 95 % limits"], lines),
        "",
        f"The two ways to ask for name copying, static score and copy score, agree with rank correlation "
        f"{rho:.2f} over all heads (p {'< 0.001' if p < 1e-3 else f'= {p:.3f}'}).",
        "",
    ]


def shares(grid: HeadGrid) -> str:
    """The best heads of shares, with Wilson's limits."""
    said = []
    for head, score in grid.top(N_SHOWN):
        low, high = wilson(score, grid.n_pairs)
        said.append(f"{head} {score:.2f} ({float(low):.2f} to {float(high):.2f})")
    return ", ".join(said)


def attention_section(found: Finished, folder: str) -> list[str]:
    lines = []
    for grid in found.grids.select(measure="attention"):
        best = ", ".join(f"{head} {score:.2f}" for head, score in grid.top(N_SHOWN))
        lines.append([grid.name, grid.part, best])
    return [
        "## Where heads look",
        "",
        "On random tokens written twice, and on the prompts of this run: the attention that a token pays to "
        "the token before it, to earlier occurrences of itself, and to what followed those (induction).",
        "",
        f"![Previous-token and induction attention]({folder}/attention.png)",
        "",
        *table(["on", "attention to", "best heads"], lines),
        "",
    ]


def circuit_section(found: Finished, folder: str) -> list[str]:
    rows, clean = found.tables["circuits"], found.tables["clean"]
    task = rows[0]["task"]
    on_task = [
        [
            row["prompts"],
            row["n_prompts"],
            f"{float(row['accuracy']):.2f}",
            f"{float(row['logit_diff']):.2f} +- {float(row['logit_diff_stderr']):.2f}",
        ]
        for row in clean
        if row["relation"] == task and row["logit_diff"]
    ]
    heads = [
        [row["head"], row["role"], f"{float(row['effect']):+.1f} +- {float(row['stderr']):.1f}"]
        + [f"{found.copying(sign).scores[Head.parse(row['head'])]:.2f}" for sign in ("", SUPPRESSION)]
        for row in rows
    ]
    whole = [
        row
        for row in found.tables["circuit_prediction"]
        if row["role"] == ALL_ROLES and not math.isnan(float(row["auc"] or "nan"))
    ]
    best = sorted(whole, key=lambda row: -float(row["auc"]))[:N_SHOWN]
    predicted = [
        [
            row["relation"].replace("_", " "),
            row["kind"].replace("_", " "),
            f"{float(row['auc']):.2f}",
            p_text(float(row["p_value"])),
            f"{float(row['precision']):.2f}",
        ]
        for row in best
    ]
    name = "indirect object identification" if task == "ioi" else task.replace("_", " ")
    return [
        f"## The circuit of {name}",
        "",
        "What the model does with no head touched:",
        "",
        *table(["prompts", "number", "accuracy", "logit difference"], on_task),
        "",
        "Heads found by path patching, back from the logits. Effects are percent of the way from clean to "
        "corrupted logit difference: -100 as if all were corrupted, above 0 a head that works against the "
        "answer. Copy scores say whether a head that reads a name writes it, or its negative.",
        "",
        *table(["head", "role", "effect, %", "copy score", "negated"], heads),
        "",
        f"![Attribution and path patching of every head]({folder}/circuit.png)",
        "",
        "Scores that tell the circuit's heads from all others best (area under the ROC curve; p by "
        f"permutation, uncorrected for the {len(whole)} scores tried):",
        "",
        *table(["relation", "score", "AUC", "p", "precision"], predicted),
        "",
    ]


def curves_section(found: Finished, folder: str) -> list[str]:
    lines = []
    for row in found.tables["ablation_summary"]:
        controls = f"{number(row['control_base'])} to {number(row['control_removed'])}"
        lines.append(
            [
                row["relation"].replace("_", " "),
                row["n_heads"],
                f"{number(row['base'])} ({number(row['base_low'])} to {number(row['base_high'])})",
                f"{number(row['removed'])} ({number(row['removed_low'])} to {number(row['removed_high'])})",
                number(row["random"]),
                controls if row["control_base"] not in ("", "nan") else "none",
            ]
        )
    return [
        "## Removing heads",
        "",
        "Accuracy on a relation's prompts as its best heads by static score are removed (zero, last "
        "position), as many random others, and the same heads on prompts of control relations. In brackets "
        "95 % limits; a control is a relation that the model does on its own (others are named by the run).",
        "",
        f"![Capitals: accuracy as heads are removed]({folder}/{CAPITALS}_curves.png)",
        "",
        *table(["relation", "removed", "before", "after", "random heads", "controls"], lines),
        "",
    ]


def number(text: str) -> str:
    """A number of a table, shorter."""
    return f"{float(text):.2f}" if text not in ("", "nan") else "-"


def salient_section(found: Finished) -> list[str]:
    """Salient tokens of the best heads of capitals and names."""
    ((_, salient),) = read_json(found.directory / "salient_operations.json").items()
    heads = {
        found.static(relation).top(1)[0][0]: name
        for relation, name in ((CAPITALS, "capitals"), (NAMES, "name copying"))
    }
    lines = []
    for head, name in heads.items():
        for one in salient[str(head)][:N_TOKENS]:
            mapped = ", ".join(map(markdown_code, one["mapped"]))
            lines.append([f"{head} ({name})", markdown_code(one["token"]), mapped])
    return [
        "## Salient tokens",
        "",
        "The tokens that a head's weights amplify most, and the tokens each is mapped to, of the best heads "
        "of two relations. They are read off the weights: nobody told the head which relation was asked for.",
        "",
        *table(["head", "token", "mapped to"], lines),
    ]
