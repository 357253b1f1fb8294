"""What a grid is called where people read: what was measured, in which unit, and how; never an id."""

from headjax.grid import HeadGrid, sentence
from headjax.measures import KV_GROUPS, SUPPRESSION

# Metrics of effects: how they are called, and their units.
METRICS = {
    "logprob": ("Log-probability", "nats"),
    "logit_diff": ("Logit difference", "logits"),
    "accuracy": ("Accuracy", "share of prompts"),
    "logit": ("Logit", "logits"),
}
REPLACEMENTS = {"zero": "heads set to zero", "mean": "heads set to their mean", "resample": "heads resampled"}
POSITIONS = {"last": "last position", "all": "all positions"}


def measured(grid: HeadGrid) -> str:
    """What its numbers are: "Relation score", "Log-probability, clean minus ablated"."""
    about = grid.about
    called = (about.turned if grid.sign == SUPPRESSION else "") or about.called
    if not called:
        return sentence(", ".join(filter(None, (grid.measure, grid.part, grid.metric, grid.sign))))
    metric = METRICS.get(grid.metric, (sentence(grid.metric), ""))[0]
    return called.format(metric=metric, part=_part(grid))


def _part(grid: HeadGrid) -> str:
    """What its part is called: "with context", "stage 2, to query inputs"."""
    parts, (stage, _, of_stage) = grid.about.parts, grid.part.partition("_")
    if stage.isdigit():
        return f"stage {stage}, {parts.get(of_stage, of_stage)}"
    return parts.get(grid.part, grid.part)


def unit(grid: HeadGrid) -> str:
    """The unit of its numbers; "" where nobody said."""
    return grid.about.unit or METRICS.get(grid.metric, ("", ""))[1]


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
    how = done(grid)
    return f"{grid.model}: {_of_relation(grid.about.title, grid)}{f' ({how})' * bool(how)}"


def grid_label(grid: HeadGrid) -> str:
    """What was measured, as beside a colour bar."""
    return _of_relation(grid.about.bar, grid) or measured(grid)


def _of_relation(words: str, grid: HeadGrid) -> str:
    """Words of a measure with the relation in place, and "suppression" where its sign is turned."""
    turned = f"{SUPPRESSION} " * (grid.sign == SUPPRESSION)
    return words.replace("{turned} ", turned).replace("{relation}", grid.name)
