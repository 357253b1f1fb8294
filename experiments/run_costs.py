"""Which of a run's sizes decide what each analysis costs: `COSTS`, a table of functions to a `Cost`."""

import math
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from experiments import costs
from experiments.costs import Cost, Prompts
from experiments.subject import Subject
from headjax.analyses.ablation_curves import HEAD_CAPS, MOST_HEADS
from headjax.analyses.attention_patterns import repeated_tokens
from headjax.config import ModelConfig
from headjax.data.prompts import PromptBatch
from headjax.engine.batches import prompt_chunks
from headjax.engine.mesh import PARAMETER_AXES, SPLIT_AXES
from headjax.engine.variants import HOST_BYTES, fitting_variants
from headjax.model import parameter_shapes

N_CONTROLS = 5  # the default of analyses/ablation_curves.py


class Machine(NamedTuple):
    """What the plan is for.

    Attributes:
      n_devices: of which `model_parts` share each copy of the model.
      memory: of one device, in bytes.
      rate: FLOP/s of one device; None where nobody said.
      platform: whose sizes of tiles and batches hold: "cpu", or "gpu" for any accelerator.
    """

    n_devices: int
    model_parts: int
    memory: float
    rate: float | None
    platform: str

    @property
    def copies(self) -> int:
        """Of the model, each with its own prompts or variants."""
        return self.n_devices // self.model_parts


def parameter_bytes(config: ModelConfig, itemsize: int, parts: int) -> int:
    """Bytes of all parameters on each device where so many share the model (headjax/engine/mesh.py)."""

    def own(name: str, shape: tuple[int, ...]) -> int:
        sizes = zip(PARAMETER_AXES[name].split(), shape, strict=True)
        return math.prod(n // parts if axis in SPLIT_AXES and n % parts == 0 else n for axis, n in sizes)

    return itemsize * sum(own(name, shape) for name, shape in parameter_shapes(config).items())


def _chunked(subject: Subject, batch: PromptBatch | np.ndarray, copies: int) -> Prompts:
    tokens = getattr(batch, "tokens", batch)
    chunks = prompt_chunks(len(tokens), subject.run.batch_size, copies)
    return Prompts(len(chunks), len(chunks[0]), tokens.shape[1], copies)


def _itemsize(subject: Subject) -> int:
    return jnp.dtype(subject.run.dtype).itemsize


def _n_metrics(subject: Subject) -> int:
    """Log-probability (or logit) and, where there are distractors, the logit difference."""
    possible = 1 if subject.task_batch.distractors is None else 2
    return min(possible, len({"logprob", "logit_diff"} & set(subject.run.metrics)) or possible)


def _by_prompt(n_at_once: int, machine: Machine) -> int:
    """Copies that share the prompts of a batch; the variants where there are fewer prompts than copies."""
    return machine.copies if n_at_once >= machine.copies else 1


def _variant_batch(subject: Subject, prompts: Prompts, positions: str, machine: Machine) -> int:
    if subject.run.variant_batch is not None:
        return subject.run.variant_batch
    held = parameter_bytes(subject.config, _itemsize(subject), machine.model_parts)
    free = HOST_BYTES if machine.platform == "cpu" else max(0, machine.memory - held)
    shape = (prompts.own, prompts.S)
    itemsize = _itemsize(subject)
    size = fitting_variants(subject.config, shape, positions, int(free), itemsize, machine.platform)
    return (1 + size) * machine.copies // prompts.copies


def _relation_scores(subject: Subject, machine: Machine) -> Cost:
    sources, targets = (
        np.concatenate([getattr(pairs, side) for pairs in subject.pairs]) for side in ("sources", "targets")
    )
    sizes = (len(targets), len(np.unique(sources)), len(np.unique(targets)))
    return costs.relation_scores(subject.config, *sizes, subject.rule.first_mlp, machine.platform)


def _dynamic_scores(subject: Subject, machine: Machine) -> Cost:
    batch = subject.dynamic_batch
    sizes = (_chunked(subject, batch, machine.copies), len(np.unique(batch.answers)), _itemsize(subject))
    return costs.dynamic_scores(subject.config, *sizes, machine.platform)


def _logit_attribution(subject: Subject, machine: Machine) -> Cost:
    metrics = 1 if subject.task_batch.distractors is None else 2
    prompts = _chunked(subject, subject.task_batch, machine.copies)
    return costs.logit_attribution(subject.config, prompts, metrics, _itemsize(subject))


def _replacement(subject: Subject, machine: Machine, positions: str) -> Cost:
    run, prompts = subject.run, _chunked(subject, subject.task_batch, machine.copies)
    return costs.replacement(subject.config, prompts, run.ablation, positions, run.mean_over)


def _head_ablation(subject: Subject, machine: Machine) -> Cost:
    c, positions = subject.config, subject.run.positions
    at_once = min(subject.run.batch_size, len(subject.task_batch.tokens))
    prompts = _chunked(subject, subject.task_batch, _by_prompt(at_once, machine))
    start = np.repeat(np.arange(c.n_layers), c.n_kv_heads if subject.run.kv_groups else c.n_heads)
    size = _variant_batch(subject, prompts, positions, machine)
    sweep = costs.variants(
        c, prompts, start, size, positions, _itemsize(subject), machine.platform, machine.copies
    )
    return sweep + _replacement(subject, machine, positions)


def _gradient_attribution(subject: Subject, machine: Machine) -> Cost:
    prompts, positions = _chunked(subject, subject.task_batch, machine.copies), subject.run.positions
    sweep = costs.gradient_attribution(
        subject.config, prompts, _n_metrics(subject), positions, _itemsize(subject)
    )
    return sweep + _replacement(subject, machine, positions)


def _attention_patterns(subject: Subject, machine: Machine) -> Cost:
    both = (repeated_tokens(subject.config, bos=subject.bos), subject.task_batch)
    repeated, own = (
        costs.attention_patterns(subject.config, _chunked(subject, one, machine.copies), _itemsize(subject))
        for one in both
    )
    return repeated + own


def _ablation_curves(subject: Subject, machine: Machine) -> Cost:
    """At most: as many heads as may be removed, the first of them in layer 0, all controls found."""
    c, run, batch = subject.config, subject.run, subject.task_batch
    rows = Counter(prompt.relation for prompt in batch.prompts)
    B = min(run.batch_size, max(rows.values()))
    n_chunks = sum(-(-n // B) for n in rows.values())
    by_prompt = _by_prompt(B, machine)
    prompts = Prompts(n_chunks, -(-B // by_prompt) * by_prompt, batch.tokens.shape[1], by_prompt)
    n_heads = c.n_layers * c.n_heads
    cap = run.max_heads or next((cap for n, cap in HEAD_CAPS if n_heads < n), MOST_HEADS)
    n_variants = min(cap, n_heads) * (1 + run.n_random_draws + min(N_CONTROLS, len(rows) - 1))
    size = _variant_batch(subject, prompts, "last", machine)
    start = np.zeros(n_variants, int)
    sweep = costs.variants(
        c, prompts, start, size, "last", _itemsize(subject), machine.platform, machine.copies
    )
    return sweep + _replacement(subject, machine, "last")


# Of every analysis; one that is not here shows as not worked out.
COSTS: dict[str, Callable[[Subject, Machine], Cost]] = {
    "relation_scores": _relation_scores,
    "dynamic_scores": _dynamic_scores,
    "logit_attribution": _logit_attribution,
    "head_ablation": _head_ablation,
    "gradient_attribution": _gradient_attribution,
    "attention_patterns": _attention_patterns,
    "ablation_curves": _ablation_curves,
}
