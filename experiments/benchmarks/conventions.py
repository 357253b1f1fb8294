"""Where numbers of TransformerLens differ from ours, and by how much: the table of docs/transformer_lens.md.

    python -m experiments.benchmarks.conventions

One prompt on the trained GPT-2 that comes along, in TransformerLens without folding and in its compatibility
mode. Differences are relative to the largest number, those of effects in their own units. Needs torch and
transformer_lens.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

import headjax
from experiments.benchmarks.peers import in_lens, lens_hook
from experiments.trained import MODELS
from headjax.analyses import HeadAblation, LogitAttribution
from headjax.errors import InputError, run_main

PROMPT = headjax.Prompt(
    "capital", "The capital of France is", "Paris", distractor="Berlin", relation="capital"
)
WEIGHTS = ("W_V", "W_O", "W_E", "W_U")


class Numbers(NamedTuple):
    """What is compared. Weights by name; z, pattern, attribution and ablation [L .. H ..]."""

    logits: np.ndarray
    z: np.ndarray
    pattern: np.ndarray
    attribution: Float[np.ndarray, "L H"]
    ablation: Float[np.ndarray, "L H"]
    weights: dict[str, np.ndarray]


def our_numbers(study: headjax.Study) -> Numbers:
    output = study.forward(PROMPT.text, return_z=True, return_pattern=True)
    found = study.run(LogitAttribution(prompts=(PROMPT,)), HeadAblation(prompts=(PROMPT,))).grids
    weights = {name: np.asarray(getattr(study.model, name)) for name in WEIGHTS}
    own = (np.asarray(output.logits), np.asarray(output.z), np.asarray(output.pattern))
    effects = (found["logit_attribution"]["logit_diff"].one, found["ablation_logprob"].one)
    return Numbers(*own, *(grid.scores for grid in effects), weights)


def bias_parts(study: headjax.Study) -> tuple[np.ndarray, Float[np.ndarray, "L H"]]:
    """What compatibility mode moves out of z [L H K], and its part of the attribution [L H]."""
    model, blocks = study.model, study.model.blocks
    W_V, b_V, bias = (np.asarray(part[...]) for part in (blocks.attn.W_V, blocks.attn.b_V, blocks.ln1.bias))
    moved = b_V + np.einsum("ld,ldhk->lhk", bias, W_V)
    residual = np.asarray(study.forward(PROMPT.text, return_residual=True).residual)[-1, 0, -1]
    scale = (residual.var() + study.config.norm_eps) ** -0.5
    batch, W_U = study.task_batch((PROMPT,)), np.asarray(model.W_U)
    u = (W_U[:, batch.answers[0]] - W_U[:, batch.distractors[0]]) * np.asarray(model.ln_final.scale[...])
    return moved, np.einsum("lhk,lhkd,d->lh", moved, np.asarray(model.W_O), u - u.mean()) * scale


def their_numbers(study: headjax.Study, folded: bool) -> Numbers:
    import torch

    model = in_lens(str(MODELS["trained"]))
    if folded:
        model.enable_compatibility_mode(disable_warnings=True)
    batch, (L, H) = study.task_batch((PROMPT,)), (study.config.n_layers, study.config.n_heads)
    tokens, answer = torch.tensor(np.asarray(batch.tokens)).long(), int(batch.answers[0])

    def logprob(hooks: list) -> float:
        return float(model.run_with_hooks(tokens, fwd_hooks=hooks)[0, -1].log_softmax(-1)[answer])

    with torch.no_grad():
        logits, cache = model.run_with_cache(tokens)
        asked = {"tokens": answer, "incorrect_tokens": int(batch.distractors[0]), "pos_slice": -1}
        parts = cache.logit_attrs(cache.stack_head_results(layer=-1, pos_slice=-1), **asked)
        clean = logprob([])
        ablation = [[clean - logprob([lens_hook(layer, head)]) for head in range(H)] for layer in range(L)]
        stacked = [
            torch.stack([cache[f"blocks.{layer}.attn.{hook}"] for layer in range(L)]).numpy()
            for hook in ("hook_z", "hook_pattern")
        ]
        weights = {name: getattr(model, name).numpy() for name in WEIGHTS}
    return Numbers(logits.numpy(), *stacked, parts.numpy().reshape(L, H), np.array(ablation), weights)


def apart(ours: np.ndarray, theirs: np.ndarray, relative: bool = True) -> str:
    largest = np.abs(ours - theirs).max()
    return f"{largest / np.abs(theirs).max() if relative else largest:.0e}"


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def lines(ours: Numbers, theirs: Numbers, moved: np.ndarray, part: np.ndarray) -> Iterator[tuple[str, str]]:
    """What is compared, and how far it is apart."""
    yield "logits", apart(ours.logits, theirs.logits)
    yield "log-probabilities", apart(log_softmax(ours.logits), log_softmax(theirs.logits))
    yield "attention pattern", apart(ours.pattern, theirs.pattern)
    yield "z", apart(ours.z, theirs.z)
    yield "z - (b_V + bias_LN1 W_V)", apart(ours.z - moved[:, None, None], theirs.z)
    for name in WEIGHTS:
        yield name, apart(ours.weights[name], theirs.weights[name])
    yield "effect of zero ablation, nats", apart(ours.ablation, theirs.ablation, relative=False)
    yield "direct logit attribution, logits", apart(ours.attribution, theirs.attribution, relative=False)
    yield "that, without the bias's part", apart(ours.attribution - part, theirs.attribution, relative=False)


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise InputError(f"there is nothing to choose; got {argv[1:]}")
    study = headjax.open("trained", top_k=3)
    ours, (moved, part) = our_numbers(study), bias_parts(study)
    try:
        theirs = [their_numbers(study, folded) for folded in (False, True)]
    except ImportError as error:
        raise InputError(f"the comparison needs torch and transformer_lens; {error}") from error
    both = [dict(lines(ours, numbers, moved, part)) for numbers in theirs]
    print(f"{'':34} without folding  compatibility mode")
    for name, raw in both[0].items():
        print(f"{name:34} {raw:>15}  {both[1][name]:>18}")
    print(
        f"largest: attribution {np.abs(ours.attribution).max():.2f}, effect {np.abs(ours.ablation).max():.2f}"
    )
    r = [np.corrcoef(ours.attribution.flat, numbers.attribution.flat)[0, 1] for numbers in theirs]
    print(f"correlation of attributions: {r[0]:.3f}, {r[1]:.3f}")


if __name__ == "__main__":
    run_main(main)
