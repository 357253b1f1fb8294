"""What a grid is called where people read: what was measured, in which unit, and how; never an id."""

from headjax.grid import KV_GROUPS, SUPPRESSION, HeadGrid, sentence

# Metrics of effects: how they are called, and their units.
METRICS = {
    "logprob": ("Log-probability", "nats"),
    "logit_diff": ("Logit difference", "logits"),
    "accuracy": ("Accuracy", "share of prompts"),
    "logit": ("Logit", "logits"),
}
REPLACEMENTS = {"zero": "heads set to zero", "mean": "heads set to their mean", "resample": "heads resampled"}
POSITIONS = {"last": "last position", "all": "all positions"}
PATTERNS = {
    "previous": "Attention to the previous token",
    "duplicate": "Attention to the same token earlier",
    "induction": "Attention to what followed the same token",
}
UNITS = {
    **dict.fromkeys(("static", "dynamic"), "share of pairs"),
    "copy_score": "share of names",
    "attention": "mean attention",
    **dict.fromkeys(("path", "circuit"), "% of the gap"),
}


def path_name(part: str) -> str:
    """What paths are called: "direct", "to the logits", "stage 2, to query inputs"."""
    *stage, into = part.split("_")
    to = {"direct": "direct", "logits": "to the logits"}.get(into, f"to {into} inputs")
    return ", ".join([*(f"stage {number}" for number in stage), to])


def measured(grid: HeadGrid) -> str:
    """What its numbers are: "Relation score", "Log-probability, clean minus ablated"."""
    turned = grid.sign == SUPPRESSION
    metric = METRICS.get(grid.metric, (sentence(grid.metric), ""))[0]
    match grid.measure:
        case "static":
            return "Suppression score" if turned else "Relation score"
        case "dynamic":
            score = "Dynamic suppression score" if turned else "Dynamic score"
            return f"{score} {'with' if grid.part == 'context' else 'without'} context"
        case "copy_score":
            return "Negated copy score" if turned else "Copy score"
        case "logit_attribution":
            return f"{metric} that a head writes"
        case "ablation":
            return f"{metric}, clean minus ablated"
        case "gradient":
            return f"{metric}, clean minus ablated, first-order estimate"
        case "attention":
            return PATTERNS.get(grid.part, f"Attention, {grid.part}")
        case "path" | "circuit":
            return f"Percent of the gap, clean to corrupted: {path_name(grid.part)}"
    words = (grid.measure, grid.part, grid.metric, grid.sign)
    return sentence(", ".join(filter(None, words)))


def unit(grid: HeadGrid) -> str:
    """The unit of its numbers; "" where nobody said."""
    return UNITS.get(grid.measure, METRICS.get(grid.metric, ("", ""))[1])


def done(grid: HeadGrid) -> str:
    """How that was measured: what took heads' places, at which positions, on which template."""
    parts = (
        "heads of a key/value group together" if grid.part == KV_GROUPS else "",
        REPLACEMENTS.get(grid.replacement, grid.replacement),
        POSITIONS.get(grid.positions, grid.positions),
        f'template "{grid.template}"' if "<X>" in grid.template else grid.template,
    )
    return ", ".join(filter(None, parts))


def grid_title(grid: HeadGrid) -> str:
    """Model, relation and how it was measured, as above a picture."""
    suppression = " suppression" * (grid.sign == SUPPRESSION and grid.measure == "static")
    heads = " heads" if grid.measure == "static" else ""
    how = done(grid)
    return f"{grid.model}: {grid.name}{suppression}{heads}{f' ({how})' * bool(how)}"


def grid_label(grid: HeadGrid) -> str:
    """What was measured, as beside a colour bar."""
    if grid.measure == "static":
        return f"{grid.name}{' suppression' * (grid.sign == SUPPRESSION)} score"
    return measured(grid)
