"""What counts as a hit of a relation score, as published for each model (Elhelo & Geva 2024, "MAPS")."""

import re
from typing import NamedTuple

COPYING = ("copying", "name_copying")


class HitRule(NamedTuple):
    """What counts as a hit: the k of ordinary relations and of copying ones, and where x_s comes from."""

    top_k: int
    top_k_copying: int
    first_mlp: bool

    def k(self, relation: str) -> int:
        """The k of a relation, by its id."""
        return self.top_k_copying if relation in COPYING else self.top_k


# How a published model's name begins -> the rule of its published scores; the first that fits.
PUBLISHED_RULES = (
    (r"llama-3\.1-70b", HitRule(top_k=25, top_k_copying=3, first_mlp=False)),
    (r"llama-3(\.\d)?", HitRule(top_k=25, top_k_copying=3, first_mlp=True)),
    (r".*", HitRule(top_k=10, top_k_copying=1, first_mlp=True)),
)


def published_rule(model: str) -> HitRule:
    """The rule that the published scores of a model were made with, by its alias, Hugging Face id or name.

    Llama 3 has larger k for its larger vocabulary; 3.1's 70B takes W_E[s] itself in every layer. Every other
    model has the first rule that was published, whatever its sizes: "meta-llama/Meta-Llama-3.1-8B",
    "llama-3.1-8b" and "Llama-3.1 8B Instruct" are one of the former, a model called "my-model" is not.
    """
    name = model.lower().rstrip("/").split("/")[-1].replace(" ", "-").removeprefix("meta-")
    return next(rule for start, rule in PUBLISHED_RULES if re.match(rf"({start})([-@]|$)", name))
