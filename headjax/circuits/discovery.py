"""A task's circuit, found by path patching backwards from the logits, and what two circuits share.

Stage 1 takes the heads with the largest direct effects on the logit difference; every further stage takes
those with the largest effects into the queries, keys or values of the heads that the stage before found
(Wang et al. 2022, "Interpretability in the Wild", section 3). The share of heads that a stage takes, 2 %, and
the question which heads two tasks' circuits share are Merullo et al. 2024's ("Circuit Component Reuse Across
Tasks in Transformer Language Models").

Roles are named by what was measured: the stage, the input, and whether the head raises or lowers the logit
difference. What a head does there is another question: one that raises it need not be a mover of the answer,
it may suppress the distractor. Copy scores (`headjax.analyses.copy_score`) tell the two apart.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from headjax.analyses.path_patching import INPUTS, Receiver
from headjax.axes import Head, by_score
from headjax.circuits.published import Circuit
from headjax.engine.metrics import mean_and_stderr
from headjax.stats import bounded_p

DIRECT = "direct"
N_ERRORS = 2.0  # standard errors by which an effect must be beyond the least one
# For receivers, or with none for the logits: the percent of every prompt (`PatchedPaths.percent`).
MeasurePaths = Callable[[tuple[Receiver, ...]], Float[np.ndarray, "L H B"]]


class FoundHead(NamedTuple):
    """A head of the circuit: the stage that found it, the input it acts through, its effect in percent.

    Attributes:
      effect, stderr: the mean over `n_prompts` prompts and its standard error. The gap that the percents are
        of is taken as known.
    """

    head: Head
    stage: int
    input: str
    effect: float
    stderr: float
    n_prompts: int

    @property
    def role(self) -> str:
        """What figures and files call it. As in the metric, a head that helps has an effect below 0."""
        plural = {DIRECT: "direct", "query": "into queries", "key": "into keys", "value": "into values"}
        does = "raises" if self.effect < 0 else "lowers"
        return f"Stage {self.stage}, {plural[self.input]}: {does} logit difference"


class Discovery(NamedTuple):
    """The heads in the order they were found, and what was measured: (stage, input) -> percent."""

    heads: tuple[FoundHead, ...]
    effects: Mapping[tuple[int, str], Float[np.ndarray, "L H B"]]


def discover_circuit(
    measure: MeasurePaths, *, n_stages: int = 2, share: float = 0.02, min_effect: float = 1.0
) -> Discovery:
    """Finds a circuit stage by stage, until one finds nothing new or `n_stages` are done.

    Args:
      share: of all heads, how many a stage takes at most, rounded up: those of the largest mean effect, of
        either sign, through whichever input. A head belongs to the first stage that takes it, and takes no
        other's place in a later one.
      min_effect: in percent of the gap between clean and corrupted. An effect counts if it is N_ERRORS
        standard errors beyond this: then it is, with some 97 % confidence, at least so large. So a single
        prompt, of which no error is known, finds nothing.
    """
    effects, found = {}, {}
    receivers: list[Head] = []
    for stage in range(1, n_stages + 1):
        letters = INPUTS if stage > 1 else {"": DIRECT}
        for letter, name in letters.items():
            # Nobody can send to a head of layer 0.
            into = tuple(Receiver(head, letter) for head in receivers if head.layer > 0)
            if into or stage == 1:
                effects[stage, name] = measure(into)
        names = [name for at, name in effects if at == stage]
        if not names:
            break
        measured = [mean_and_stderr(effects[stage, name]) for name in names]
        means, errors = (np.stack(parts) for parts in zip(*measured, strict=True))
        receivers = []
        for i, *place in _largest(means, errors, share, min_effect, found):
            head = Head(*place)
            n_prompts = effects[stage, names[i]].shape[-1]
            numbers = (float(means[i, *place]), float(errors[i, *place]), n_prompts)
            found[head] = FoundHead(head, stage, names[i], *numbers)
            receivers.append(head)
    return Discovery(tuple(found.values()), effects)


def _largest(
    means: Float[np.ndarray, "inputs L H"],
    errors: Float[np.ndarray, "inputs L H"],
    share: float,
    min_effect: float,
    known: Collection[Head],
) -> list[tuple[int, int, int]]:
    """(input, layer, head) of the new heads with the largest effects, largest first; ties by place.

    Of the effects that count: through which input a head has its largest is asked among them.
    """
    size = np.abs(means)
    size[~(size - N_ERRORS * errors >= min_effect)] = 0  # written so that an error of NaN counts for nothing
    size[:, *np.array([*known], int).reshape(-1, 2).T] = 0
    strongest = size.max(axis=0)
    places = by_score(strongest, math.ceil(share * strongest.size))
    return [(int(size[:, *place].argmax()), *place) for place in places if strongest[place] > 0]


def found_circuit(heads: Sequence[FoundHead], model: str, task: str) -> Circuit:
    """The heads as marks, by role."""
    roles: dict[str, tuple[Head, ...]] = {}
    for found in sorted(heads, key=lambda found: found.stage):
        roles[found.role] = (*roles.get(found.role, ()), found.head)
    legend = f"Found by path patching ({task.replace('_', ' ')})"
    return Circuit(model=model, citation="", legend=legend, roles=roles)


class Overlap(NamedTuple):
    """Heads of two circuits, in (layer, head) order.

    `p_value` is the probability that as many or more are shared if both were drawn at random from all heads.
    """

    shared: tuple[Head, ...]
    only_first: tuple[Head, ...]
    only_second: tuple[Head, ...]
    p_value: float

    @property
    def jaccard(self) -> float:
        """Shared heads as a share of the heads of either; NaN where both circuits are empty."""
        either = len(self.shared) + len(self.only_first) + len(self.only_second)
        return len(self.shared) / either if either else math.nan


def overlap(first: Sequence[Head], second: Sequence[Head], n_heads: int) -> Overlap:
    """What two circuits of one model of `n_heads` heads (layers times heads a layer) share."""
    import scipy.stats  # it takes a second, so only when it is needed

    one, other = set(first), set(second)
    shared = one & other
    p_value = scipy.stats.hypergeom.sf(len(shared) - 1, n_heads, len(one), len(other))
    parts = (tuple(sorted(part)) for part in (shared, one - other, other - one))
    return Overlap(*parts, bounded_p(p_value))
