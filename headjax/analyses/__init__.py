"""The analyses, one file each: frozen dataclasses whose fields are their options.

from headjax.analyses import HeadAblation
headjax.open("gpt2").run(HeadAblation(replacement="mean", prompts="ioi"))
"""

from importlib import import_module
from typing import Any

_EXPORTS = {
    "AblationCurves": "ablation_curves",
    "Analysis": "base",
    "AttentionPatterns": "attention_patterns",
    "CircuitDiscovery": "circuit_discovery",
    "CopyScore": "copy_score",
    "DynamicScores": "dynamic_scores",
    "GradientAttribution": "gradient_attribution",
    "HeadAblation": "head_ablation",
    "LogitAttribution": "logit_attribution",
    "PathPatching": "path_patching",
    "RelationScores": "relation_scores",
    "SalientOperations": "salient_operations",
    "Universality": "universality",
    "register": "registry",
}
__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'headjax.analyses' has no attribute {name!r}")
    return getattr(import_module(f"headjax.analyses.{_EXPORTS[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *_EXPORTS]
