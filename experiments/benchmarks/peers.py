"""Zero ablation of every head at the last position, here, in TransformerLens and in nnsight.

    python -m experiments.benchmarks.peers DIRECTORY [RELATION]

DIRECTORY is Hugging Face's. The others run one forward pass a head, as their documentation shows: the heads
of one layer are timed, and the quickest stands for every head. Our sweep is the quickest of three. (A busy
machine slows some.) Effects of that layer must agree before times are printed. Needs torch, transformer_lens
and nnsight; one that is not installed is left out.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import headjax
from headjax.analyses import HeadAblation
from headjax.errors import InputError, run_main

# A head of the layer, or None, -> the log-probabilities without it.
Run = Callable[[int | None], np.ndarray]
RELATION, N_PROMPTS, TOLERANCE = "country_to_language", 24, 1e-3


def main(argv: Sequence[str]) -> None:
    if len(argv) not in (2, 3):
        raise InputError(f"the directory of a model is needed, and maybe a relation; got {argv[1:]}")
    relation = argv[2] if len(argv) == 3 else RELATION
    study = headjax.open(argv[1], relations=[relation], n_prompts=N_PROMPTS)
    batch, config = study.task_batch(), study.config
    if not batch.mask.all():
        raise InputError(f"prompts of one length are compared; those of {relation} are of several")
    asked = HeadAblation(metrics=("logprob",))
    study.run(asked)  # compiles
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        ours = study.run(asked).grids.one.scores
        seconds.append(time.perf_counter() - start)
    took = {"headjax": min(seconds)}
    layer = config.n_layers // 2
    for name, load in (("transformer_lens", lens), ("nnsight", nnsight)):
        try:
            logprobs = load(argv[1], batch.tokens, batch.answers, layer, config.d_head)
        except ImportError as error:
            print(f"{name} is left out: {error}")
            continue
        clean, effects, seconds = logprobs(None), [], []
        for head in range(config.n_heads):
            start = time.perf_counter()
            effects.append(float(np.mean(clean - logprobs(head))))
            seconds.append(time.perf_counter() - start)
        took[name] = min(seconds) * config.n_layers * config.n_heads
        if (apart := float(np.abs(effects - ours[layer]).max())) > TOLERANCE:
            raise InputError(f"effects must agree to {TOLERANCE}; those of {name} are {apart:.1e} apart")
        print(f"{name}: effects of layer {layer} are at most {apart:.1e} apart")
    B, S = batch.tokens.shape
    print(f"{config.n_layers * config.n_heads} heads, {B} prompts of {S} tokens")
    for name, seconds in took.items():
        print(f"{name:18} {seconds:8.1f} s {seconds / took['headjax']:6.1f}x")


def load_torch(
    directory: str, tokens: Any, answers: Any
) -> tuple[Any, Any, Any, Callable[[Any], np.ndarray]]:
    """Model, tokenizer, tokens, and a function of last logits: the answers' log-probabilities."""
    import torch
    import transformers

    how = {"dtype": torch.float32, "attn_implementation": "eager"}
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, **how).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    rows, right = torch.arange(len(answers)), torch.tensor(np.asarray(answers)).long()

    def logprob(logits: Any) -> np.ndarray:
        return logits.log_softmax(-1)[rows, right].detach().numpy()

    return model, tokenizer, torch.tensor(np.asarray(tokens)).long(), logprob


def lens(directory: str, tokens: Any, answers: Any, layer: int, _: int) -> Run:
    """Log-probabilities without a head of the layer, by hooks."""
    import torch
    from transformer_lens.model_bridge import TransformerBridge

    hf, tokenizer, ids, logprob = load_torch(directory, tokens, answers)
    model = TransformerBridge.boot_transformers(directory, hf_model=hf, tokenizer=tokenizer, device="cpu")

    def run(head: int | None) -> np.ndarray:
        def zero(z: Any, hook: Any) -> Any:
            z = z.clone()
            z[:, -1, head] = 0
            return z

        hooks = [] if head is None else [(f"blocks.{layer}.attn.hook_z", zero)]
        with torch.no_grad():
            return logprob(model.run_with_hooks(ids, fwd_hooks=hooks)[:, -1])

    return run


def nnsight(directory: str, tokens: Any, answers: Any, layer: int, K: int) -> Run:
    """Log-probabilities without a head of the layer, in a trace; of models laid out like Llama."""
    import torch
    from nnsight import LanguageModel

    hf, tokenizer, ids, logprob = load_torch(directory, tokens, answers)
    model = LanguageModel(hf, tokenizer=tokenizer)

    def run(head: int | None) -> np.ndarray:
        with torch.no_grad(), model.trace(ids):
            if head is not None:
                model.model.layers[layer].self_attn.o_proj.input[:, -1, head * K : (head + 1) * K] = 0
            logits = model.lm_head.output[:, -1].save()
        return logprob(logits)

    return run


if __name__ == "__main__":
    run_main(main)
