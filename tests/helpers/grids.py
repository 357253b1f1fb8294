"""Coordinates of grids that tests make up, by the word that users know them by."""

from headjax.measures import SUPPRESSION

# Kind -> measure and part; the end "_suppression" is the sign.
_COORDINATES = {
    "static": ("static", ""),
    "dynamic_context": ("dynamic", "context"),
    "dynamic_no_context": ("dynamic", "no_context"),
    "copy_score": ("copy_score", ""),
    "attention_induction": ("attention", "induction"),
    "attention_duplicate": ("attention", "duplicate"),
    "logit_attribution": ("logit_attribution", ""),
    "path_direct": ("path", "direct"),
    "path_query": ("path", "query"),
    "circuit_2_key": ("circuit", "2_key"),
    **{f"ablation_{metric}": ("ablation", "") for metric in ("logprob", "logit_diff", "accuracy")},
    **{f"gradient_{metric}": ("gradient", "") for metric in ("logprob", "logit_diff")},
}


def spelled(kind: str) -> dict[str, str]:
    """The fields of a `HeadGrid` that a kind says."""
    plain = kind.removesuffix("_suppression")
    measure, part = _COORDINATES[plain]
    return {"measure": measure, "part": part, "sign": SUPPRESSION if plain != kind else ""}
