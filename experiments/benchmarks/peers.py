"""Zero ablation of every head at the last position, here, in TransformerLens and in nnsight.

    python -m experiments.bench peers --model DIRECTORY

DIRECTORY is Hugging Face's. The others run one forward pass a head, as their documentation shows: the heads
of one layer are timed, and the quickest stands for every head. Our sweep is the quickest of three. (A busy
machine slows some.) Effects of that layer must agree before times are printed. What is not installed is left
out.
"""

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np

import headjax
from experiments.benchmarks.measure import seconds
from headjax.analyses import HeadAblation
from headjax.errors import InputError

# A head of the layer, or None, -> the log-probabilities without it.
Run = Callable[[int | None], np.ndarray]
RELATION, N_PROMPTS, TOLERANCE = "country_to_language", 24, 1e-3


def bench_peers(model: str) -> float | None:
    """Prints the comparison; returns how many times faster ours is than the quickest of the others."""
    peers = {name: load for name, load in PEERS.items() if find_spec(name)}
    if missing := [name for name in PEERS if name not in peers]:
        print(f"left out, because not installed: {' and '.join(missing)}")
    if not peers:
        return None
    study = headjax.open(model, relations=[RELATION], n_prompts=N_PROMPTS)
    (B, S), batch, config = study.task_batch().tokens.shape, study.task_batch(), study.config
    if not batch.mask.all():
        raise InputError(f"prompts of one length are compared; those of {RELATION} are of several")
    asked, found = HeadAblation(metrics=("logprob",)), []
    times = [seconds(lambda: found.append(study.run(asked).grids.one.scores)) for _ in range(4)]
    took = {"headjax": min(times[1:])}  # the first compiles
    layer = config.n_layers // 2
    for name, load in peers.items():
        run = load(model, batch.tokens, batch.answers, layer, config.d_head)
        clean, without = run(None), []
        times = [seconds(lambda: without.append(run(head))) for head in range(config.n_heads)]  # noqa: B023
        took[name] = min(times) * config.n_layers * config.n_heads
        apart = float(np.abs(np.mean(clean - np.stack(without), axis=1) - found[-1][layer]).max())
        assert apart <= TOLERANCE, f"{name}: effects are {apart:.1e} apart; allowed {TOLERANCE}"
        print(f"{name}: effects of layer {layer} are at most {apart:.1e} apart")
    print(f"{config.n_layers * config.n_heads} heads, {B} prompts of {S} tokens")
    for name, one in took.items():
        print(f"{name:18} {one:8.1f} s {one / took['headjax']:6.1f}x")
    ratio = min(took[name] for name in peers) / took["headjax"]
    print(f"ratio {ratio:.1f}x")
    return ratio


def in_torch(directory: str) -> tuple[Any, Any]:
    """The model as transformers has it, with eager attention, and its tokenizer."""
    import torch
    import transformers

    how = {"dtype": torch.float32, "attn_implementation": "eager"}
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, **how).eval()
    return model, transformers.AutoTokenizer.from_pretrained(directory)


def in_lens(directory: str) -> Any:
    """The same in TransformerLens."""
    from transformer_lens.model_bridge import TransformerBridge

    model, tokenizer = in_torch(directory)
    return TransformerBridge.boot_transformers(directory, hf_model=model, tokenizer=tokenizer, device="cpu")


def lens_hook(layer: int, head: int) -> tuple[str, Callable]:
    """Removes a head at the last position, as TransformerLens is told to."""

    def zero(z: Any, hook: Any) -> Any:
        z = z.clone()
        z[:, -1, head] = 0
        return z

    return f"blocks.{layer}.attn.hook_z", zero


def logprobs(logits: Any, answers: Any) -> np.ndarray:
    """Of the answers, from torch's last logits."""
    return logits.log_softmax(-1)[range(len(answers)), np.asarray(answers)].detach().numpy()


def lens(directory: str, tokens: Any, answers: Any, layer: int, _: int) -> Run:
    """Log-probabilities without a head of the layer, by hooks."""
    import torch

    model, ids = in_lens(directory), torch.tensor(np.asarray(tokens)).long()

    def run(head: int | None) -> np.ndarray:
        hooks = [] if head is None else [lens_hook(layer, head)]
        with torch.no_grad():
            return logprobs(model.run_with_hooks(ids, fwd_hooks=hooks)[:, -1], answers)

    return run


def nnsight(directory: str, tokens: Any, answers: Any, layer: int, K: int) -> Run:
    """Log-probabilities without a head of the layer, in a trace; of models laid out like Llama."""
    import torch
    from nnsight import LanguageModel

    theirs, tokenizer = in_torch(directory)
    model, ids = LanguageModel(theirs, tokenizer=tokenizer), torch.tensor(np.asarray(tokens)).long()

    def run(head: int | None) -> np.ndarray:
        with torch.no_grad(), model.trace(ids):
            if head is not None:
                model.model.layers[layer].self_attn.o_proj.input[:, -1, head * K : (head + 1) * K] = 0
            logits = model.lm_head.output[:, -1].save()
        return logprobs(logits, answers)

    return run


PEERS = {"transformer_lens": lens, "nnsight": nnsight}
