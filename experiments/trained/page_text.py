"""The words and tables of the page about a trained model: everything in them is made from numbers."""

import numpy as np

from experiments.pages.agreement import Row
from experiments.pages.agreement_text import agreement_section, heads_section, table
from experiments.pages.finished import Finished, read_table
from experiments.trained import MODELS
from experiments.trained.words import make_vocabulary, taught_pairs
from headjax.data.hit_rule import HitRule
from headjax.io import read_json


def write_text(found: Finished, chosen: list[Row], folder: str) -> str:
    """The page; `chosen` have figures, which lie in this folder beside it."""
    about, directory = found.about, MODELS[found.about["models"][0]["name"]]
    training = read_json(directory / "training.json")
    log = read_table(directory / "training_log.csv")
    curves = {row["relation"]: row for row in found.tables["ablation_summary"]}
    taught = taught_pairs(make_vocabulary(training["settings"]["n_pairs"]))
    targets = {relation: [target for _, target in pairs] for relation, pairs in taught.items()}
    rule, threshold = HitRule(**about["models"][0]["hit_rule"]), about["config"]["report"]["threshold"]
    parts = [
        *introduction(about, training, log),
        *agreement_section(found.rows, targets, curves, rule, threshold),
        *heads_section(found.rows),
        *figures_section(chosen, folder, threshold),
    ]
    return "\n".join(parts) + "\n"


def introduction(about: dict, training: dict, log: list[dict[str, str]]) -> list[str]:
    settings, config = training["settings"], about["models"][0]["config"]
    model = about["models"][0]["name"]
    size = (MODELS[model] / "model.safetensors").stat().st_size / 2**20
    steps = [log[round(i)] for i in np.linspace(0, len(log) - 1, min(6, len(log)))]
    columns = [name for name in log[0] if name != "seconds"]
    known = training["accuracies"].items()
    failed = ", ".join(f"{kind} {share:.2f}" for kind, share in known if share < 0.5) or "nothing"
    facts = sum(map(len, taught_pairs(make_vocabulary(settings["n_pairs"])).values()))
    return [
        f"# A trained model: {model}",
        "",
        "Written by `python -m experiments.trained.page` from a run's results, not by hand.",
        "",
        f"A {settings['family']} with {config['n_layers']} layers of {config['n_heads']} heads, d_head "
        f"{config['d_head']}, d_model {config['d_model']}, a vocabulary of {config['vocab_size']:,} words "
        f"({size:.1f} MiB in float16). Nothing in it is planted: `experiments/trained/train.py` trained it "
        f"from random weights (seed {settings['seed']}, {settings['steps']:,} steps of "
        f"{settings['batch_size']} x {settings['length']} tokens) on text made from {facts:,} pairs of the "
        "relation files: facts in several wordings, the task prompts, the templates of dynamic scores, "
        "repeated tokens, indirect objects, colored objects.",
        "",
        "    python -m experiments.run --config experiments/configs/trained.py",
        "    python -m experiments.trained.page out/trained",
        "",
        f"All analyses took {sum(about['seconds'].values()):.0f} s ({about['devices']['platform']}, a shared "
        "machine). Accuracy while it learned, over all words of the vocabulary:",
        "",
        *table(columns, [[step[name] for name in columns] for step in steps]),
        "",
        "*read*: sentences of its text. *unread*: a known fact in a wording that its relation is taught in, "
        "but never with this pair. *task_read*, *task_unread*: task prompts, split the same way. "
        "*new_wording*: a wording that was never trained on; *new_wording_3*: the same after two examples. "
        "*ioi*, *colored*: prompts of another seed. *repeat*: the next of 12 random tokens, the second time.",
        "",
        f"Not learned in so few steps (less than half right, of the weights as stored): {failed}.",
        "",
    ]


def figures_section(chosen: list[Row], folder: str, threshold: float) -> list[str]:
    lines = ["## Figures", "", f"![Categories of all heads]({folder}/category_map.png)"]
    for row in chosen:
        name, path = row.relation.name, f"{folder}/{row.relation.relation}"
        lines += [
            "",
            f"**{name}**: S~X is {row.rho['static', 'ablation']:.2f}. Each panel has its own scale, "
            f"of shares up to the threshold {threshold:g} at least.",
            "",
            f"![{name}: four measures of all heads]({path}.png)",
            "",
            f"![{name}: accuracy as heads are removed]({path}_curves.png)",
        ]
    return lines
