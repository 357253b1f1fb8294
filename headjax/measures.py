"""What is known about each measure: what its numbers are, and what people call them. A new one is one row."""

from collections.abc import Mapping
from typing import NamedTuple

KV_GROUPS = "kv_groups"  # the part of effects of all query heads that share keys and values: [L G], not [L H]
SUPPRESSION = "suppression"  # the sign of scores that count where the sign is turned; "" of all others


class Measure(NamedTuple):
    """What is known about the numbers of a measure; of one that nobody described, only that they are numbers.

    Attributes:
      called: what they are called, with `{metric}` and `{part}` in place; "" by the measure's own name.
      turned: the same where the sign is turned, if they are called otherwise then.
      parts: its parts, in order, and what they are called.
      unit: "" where it is that of the metric.
      title: above a picture, with `{relation}` and, where the sign is turned, `{turned}` in place.
      bar: beside its colours, likewise; "" where they say what the numbers are called.
      is_fraction: from 0 to 1.
      is_share: the share of `n_pairs` pairs, names or prompts that are hits.
      is_relation_score: a head implements the relation above the threshold.
      helps: 0 for scores, which have no sign. For effects on the answer, the sign of those that help: 1, or
        -1 where the effect is what the answer loses (path patching).
      kind_has_metric: `HeadGrid.kind` names the metric too.
    """

    called: str = ""
    turned: str = ""
    parts: Mapping[str, str] = {}
    unit: str = ""
    title: str = "{relation}"
    bar: str = ""
    is_fraction: bool = False
    is_share: bool = False
    is_relation_score: bool = False
    helps: int = 0
    kind_has_metric: bool = False


_PATHS = Measure(
    called="Percent of the gap, clean to corrupted: {part}",
    parts={
        "direct": "direct",
        "logits": "to the logits",
        **{read: f"to {read} inputs" for read in ("query", "key", "value")},
    },
    unit="% of the gap",
    helps=-1,
)

_RELATION_SCORE = Measure(unit="share of pairs", is_fraction=True, is_share=True, is_relation_score=True)

MEASURES = {
    "static": _RELATION_SCORE._replace(
        called="Relation score",
        turned="Suppression score",
        title="{relation} {turned} heads",
        bar="{relation} {turned} score",
    ),
    "dynamic": _RELATION_SCORE._replace(
        called="Dynamic score {part}",
        turned="Dynamic suppression score {part}",
        parts={"no_context": "without context", "context": "with context"},
    ),
    "copy_score": Measure(
        "Copy score", "Negated copy score", unit="share of names", is_fraction=True, is_share=True
    ),
    "attention": Measure(
        called="Attention to {part}",
        parts={
            "previous": "the previous token",
            "duplicate": "the same token earlier",
            "induction": "what followed the same token",
        },
        unit="mean attention",
        is_fraction=True,
    ),
    "logit_attribution": Measure(called="{metric} that a head writes", helps=1),
    "ablation": Measure(called="{metric}, clean minus ablated", helps=1, kind_has_metric=True),
    "gradient": Measure(
        called="{metric}, clean minus ablated, first-order estimate", helps=1, kind_has_metric=True
    ),
    "path": _PATHS,
    "circuit": _PATHS,  # whose parts begin with the stage: "2_query"
}


def about(measure: str) -> Measure:
    """What is known about a measure, also one that an analysis of somebody's own gives."""
    return MEASURES.get(measure, Measure())
