"""`headjax verify MODEL`: what headjax computes for a model, against plain torch code on the same files.

Some prompts and some heads, drawn by the seed, stand for all; both models are held in memory, in float32. Of
every comparison the largest difference is shown, relative to the largest number that torch gives; of relation
scores, whose numbers are counts, the hits that rounding cannot explain.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import torch

from experiments.torch_model import TorchModel, hit_bounds, hugging_face_files, scaled
from headjax.analyses.gradient_attribution import gradient_attribution
from headjax.analyses.head_ablation import head_ablation
from headjax.analyses.logit_attribution import logit_attribution
from headjax.analyses.relation_scores import relation_scores, relation_weights
from headjax.axes import Head
from headjax.data.prompts import PromptBatch
from headjax.errors import InputError
from headjax.report.table import aligned
from headjax.study import Study

N_PROMPTS, N_HEADS, N_RELATIONS = 8, 8, 3
# Of the largest number: float32 through tens of layers, in two orders of summation.
ALLOWED = 2e-4


class Comparison(NamedTuple):
    """How far headjax is from torch in one thing; `difference` and `allowed` as the module says."""

    what: str
    n_numbers: int
    difference: float
    allowed: float

    @property
    def agrees(self) -> bool:
        return bool(self.difference <= self.allowed)  # and NaN never does


@torch.no_grad()
def verify(study: Study) -> list[Comparison]:
    """Compares a study's model with torch's.

    Raises InputError where its Hugging Face files are not here, or where it is not computed in float32.
    """
    if study.compute.dtype != "float32":
        raise InputError(f"a model is verified in float32; got field 'dtype' {study.compute.dtype}")
    theirs = TorchModel(hugging_face_files(study))
    prompts, heads = _some_prompts(study), _some_heads(study)
    compared = [*_forward_pass(study, theirs, prompts)]
    if study.pairs:
        compared.append(_relation_scores(study, theirs, heads))
    return [*compared, *_effects(study, theirs, prompts, heads)]


def comparison_table(compared: list[Comparison]) -> str:
    """The comparisons as text, a line each."""
    lines = [("compared", "numbers", "difference", "allowed", "")]
    for one in compared:
        verdict = "agrees" if one.agrees else "DIFFERS"
        lines.append((one.what, f"{one.n_numbers:,}", f"{one.difference:.1e}", f"{one.allowed:.1e}", verdict))
    return aligned(lines, numbers=(1, 2, 3))


def _some_prompts(study: Study) -> PromptBatch:
    """Some of the study's prompts, from the first to the last."""
    every = study.task_batch().prompts
    chosen = np.unique(np.linspace(0, len(every) - 1, N_PROMPTS).astype(int))
    return study.task_batch(tuple(every[i] for i in chosen))


def _some_heads(study: Study) -> list[Head]:
    L, H = study.config.n_layers, study.config.n_heads
    drawn = np.random.default_rng(study.seed).choice(L * H, size=min(N_HEADS, L * H), replace=False)
    return [Head(int(one) // H, int(one) % H) for one in sorted(drawn)]


def _compare(what: str, ours: np.ndarray, theirs: np.ndarray, least: float = 0.0) -> Comparison:
    """`least` is the least magnitude that the difference is relative to."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    magnitude = max(least, float(np.abs(theirs).max()))
    return Comparison(what, theirs.size, float(np.abs(ours - theirs).max() / magnitude), ALLOWED)


def _forward_pass(study: Study, theirs: TorchModel, prompts: PromptBatch) -> list[Comparison]:
    """Logits, z and patterns, at the positions that are no padding."""
    ours = study.forward(prompts.tokens, mask=prompts.mask, return_z=True, return_pattern=True)
    run, real = theirs.run(prompts, output_attentions=True), np.asarray(prompts.mask)
    queries = np.broadcast_to(real[:, None], (real.shape[0], study.config.n_heads, real.shape[1]))
    return [
        _compare("logits", np.asarray(ours.logits)[real], run.logits.numpy()[real]),
        _compare("z of every head", np.asarray(ours.z)[:, real], torch.stack(run.z).numpy()[:, real]),
        _compare(
            "attention patterns",
            np.asarray(ours.pattern)[:, queries],
            torch.stack(run.patterns).numpy()[:, queries],
        ),
    ]


def _relation_scores(study: Study, theirs: TorchModel, heads: list[Head]) -> Comparison:
    """Hits of some heads: those that torch counts in float64 with and without what rounding may do."""
    pairs, rule = study.pairs[:N_RELATIONS], study.rule
    shares = relation_scores(
        relation_weights(study.parameters), pairs, rule, vocab_size=study.vocab_size, seed=study.seed
    )
    embed = theirs.model.get_input_embeddings()
    unembed = theirs.model.get_output_embeddings().weight[: study.vocab_size].double()
    beyond = 0
    for r, one in enumerate(pairs):
        x = embed(torch.tensor(np.asarray(one.sources)).long())
        later = theirs.first_mlp(x) if rule.first_mlp else x
        for head in heads:
            values = (x if head.layer == 0 else later) @ theirs.W_V(head)
            logits = theirs.written(head, values).double() @ unembed.T
            hits = round(float(shares.plain[r][head]) * len(one.sources))
            bounds = hit_bounds(logits, torch.tensor(np.asarray(one.targets)).long(), rule.k(one.relation.id))
            least, most = (int(bound.sum()) for bound in bounds)
            beyond += max(0, least - hits, hits - most)
    n_pairs = sum(len(one.sources) for one in pairs)
    return Comparison("hits of relation scores", n_pairs * len(heads), beyond, 0)


def _effects(study: Study, theirs: TorchModel, prompts: PromptBatch, heads: list[Head]) -> list[Comparison]:
    """Direct logit attribution, ablation and gradient of some heads, of the answer, on every prompt."""
    at = tuple(np.array(heads).T)
    shape = (len(theirs.layers), len(prompts.tokens), theirs.n_heads)
    run = theirs.run(prompts)
    answers = torch.tensor(prompts.answers).long()
    u = theirs.model.get_output_embeddings().weight[answers].double()
    parts = [
        (theirs.read(run.final, theirs.written(head, z[:, head.head], z)) * u).sum(-1)
        for head, z in ((head, run.z[head.layer][:, -1]) for head in heads)
    ]
    with torch.enable_grad():
        gains = torch.ones(shape, requires_grad=True)
        gradient = torch.autograd.grad(theirs.logprob(prompts, scaled(gains)).sum(), gains)[0]
    clean, ablated = theirs.logprob(prompts), []
    for head in heads:
        gains = torch.ones(shape)
        gains[head.layer, :, head.head] = 0
        ablated.append(theirs.logprob(prompts, scaled(gains)))

    attribution = logit_attribution(study.model, prompts)
    ablation = head_ablation(study.model, prompts)
    derivative = gradient_attribution(study.model, prompts)
    largest = float(clean.abs().max())  # effects are differences of numbers of this size
    return [
        _compare("direct logit attribution", attribution.heads.transpose(1, 2, 0)[at], torch.stack(parts)),
        _compare("log-probability, clean", ablation.clean.logprob, clean),
        _compare(
            "ablation of a head",
            ablation.effect("logprob")[at],
            (clean - torch.stack(ablated)).numpy(),
            largest,
        ),
        _compare(
            "gradient of a head's gain",
            jnp.transpose(derivative.effects, (1, 2, 0))[at],
            gradient.permute(0, 2, 1).numpy()[at],
        ),
    ]
