"""All analyses that configs know, by kind: a new one is a line here, or a call of `register`."""

import difflib

from headjax.analyses.ablation_curves import AblationCurves
from headjax.analyses.attention_patterns import AttentionPatterns
from headjax.analyses.base import Analysis
from headjax.analyses.circuit_discovery import CircuitDiscovery
from headjax.analyses.copy_score import CopyScore
from headjax.analyses.dynamic_scores import DynamicScores
from headjax.analyses.gradient_attribution import GradientAttribution
from headjax.analyses.head_ablation import HeadAblation
from headjax.analyses.logit_attribution import LogitAttribution
from headjax.analyses.path_patching import PathPatching
from headjax.analyses.relation_scores import RelationScores
from headjax.analyses.salient_operations import SalientOperations
from headjax.analyses.universality import Universality
from headjax.errors import InputError, shown

ANALYSES: dict[str, type[Analysis]] = {
    one.kind: one
    for one in (
        RelationScores,
        DynamicScores,
        LogitAttribution,
        HeadAblation,
        GradientAttribution,
        AblationCurves,
        AttentionPatterns,
        CopyScore,
        SalientOperations,
        Universality,
        PathPatching,
        CircuitDiscovery,
    )
}


def register(analysis: type[Analysis]) -> type[Analysis]:
    """Makes an analysis known by its kind; also as a decorator."""
    ANALYSES[analysis.kind] = analysis
    return analysis


def find_analysis(kind: str) -> type[Analysis]:
    """The analysis of a kind. Raises InputError, with the near ones, where there is none."""
    if kind not in ANALYSES:
        near = difflib.get_close_matches(kind, ANALYSES, n=3, cutoff=0.5)
        rest = f"did you mean {' or '.join(near)}?" if near else f"analyses are {', '.join(ANALYSES)}"
        raise InputError(f"field 'analyses' must be one of {', '.join(ANALYSES)}; got {shown(kind)}; {rest}")
    return ANALYSES[kind]
