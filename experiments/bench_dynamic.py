"""Benchmark of the dynamic scores against the usual way, on random GPT-2 shapes; hits are compared first.

The usual way, in torch: one forward pass whose hooks keep z, one in which the last position's attention is
forced onto the source, and for each head and each of the two ``z W_O``, its logits over the vocabulary,
their top k and their bottom k. Prompts are batched there too, and the language model's head is left out.
"""

import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers
from transformers.models.gpt2 import modeling_gpt2

from experiments.torch_gpt2 import SHAPES, gpt2_twins
from headjax.config import ModelConfig
from headjax.model import Transformer, parameter_shapes
from headjax.prompts import Prompt, PromptBatch
from headjax.sweeps.dynamic_scores import KINDS, dynamic_scores

LENGTHS = (4, 5, 6, 8)  # of the four published templates in GPT-2's tokens, for one-token sources
SOURCES = (1, 3, 5, 4)  # and where their sources are
N_PAIRS = 40
TOP_K = 10


def template_like_prompts(config: ModelConfig, n_pairs: int = N_PAIRS, seed: int = 0) -> PromptBatch:
    """Random tokens laid out like the four published templates filled with a relation's pairs."""
    rng = np.random.default_rng(seed)
    padding = max(LENGTHS) - np.repeat(LENGTHS, n_pairs)
    shape = (len(padding), max(LENGTHS))
    mask = np.arange(shape[1])[None, :] >= padding[:, None]
    answers = np.tile(rng.integers(0, config.vocab_size, n_pairs), len(LENGTHS)).astype(np.int32)
    return PromptBatch(
        tokens=np.where(mask, rng.integers(0, config.vocab_size, shape), 0).astype(np.int32),
        mask=mask,
        sources=(padding + np.repeat(SOURCES, n_pairs)).astype(np.int32),
        answers=answers,
        distractors=None,
        corrupted=None,
        prompts=tuple(
            Prompt(f"prompt {i}", "", "", relation="random", template=str(length))
            for i, length in enumerate(np.repeat(LENGTHS, n_pairs))
        ),
        bos=False,
    )


@torch.no_grad()
def usual_way(theirs: transformers.GPT2LMHeadModel, prompts: PromptBatch) -> dict[str, np.ndarray]:
    """Kind -> share of hits [templates L H]."""
    tokens, targets = torch.tensor(prompts.tokens).long(), torch.tensor(prompts.answers).long()
    mask = torch.tensor(prompts.mask).long()
    inputs = {
        "input_ids": tokens,
        "attention_mask": mask,
        "position_ids": (mask.cumsum(1) - 1).clamp(min=0),
        "use_cache": False,
    }
    rows, sources = torch.arange(len(tokens)), torch.tensor(prompts.sources).long()
    unembed, config = theirs.lm_head.weight, theirs.config
    usual_attention = modeling_gpt2.eager_attention_forward

    def attention_forced(module, query, key, value, *args, **kwargs):
        output, weights = usual_attention(module, query, key, value, *args, **kwargs)
        weights = weights.clone()
        weights[:, :, -1] = 0
        weights[rows, :, -1, sources] = 1
        z.append((weights @ value)[:, :, -1])
        return output, weights  # what comes before stays as it is

    def attention_kept(*args, **kwargs):
        output, weights = usual_attention(*args, **kwargs)
        z.append(output[:, -1])
        return output, weights

    hits = np.zeros((len(KINDS), len(tokens), config.n_layer, config.n_head), bool)
    for context, attention in enumerate((attention_kept, attention_forced)):
        z: list[torch.Tensor] = []
        modeling_gpt2.eager_attention_forward = attention
        try:
            theirs.transformer(**inputs)
        finally:
            modeling_gpt2.eager_attention_forward = usual_attention
        for layer, block in enumerate(theirs.transformer.h):
            W_O = block.attn.c_proj.weight.unflatten(0, (config.n_head, -1))
            for head in range(config.n_head):
                logits = z[layer][:, head] @ W_O[head] @ unembed.T
                for suppression in (False, True):
                    best = logits.topk(TOP_K, dim=1, largest=not suppression).indices
                    is_hit = (best == targets[:, None]).any(dim=1)
                    hits[2 * context + suppression, :, layer, head] = is_hit.numpy()
    by_template = hits.reshape(len(KINDS), len(LENGTHS), -1, *hits.shape[2:])
    return dict(zip(KINDS, by_template.mean(axis=2, dtype=np.float32), strict=True))


def our_way(model: Transformer, prompts: PromptBatch, batch_size: int) -> dict[str, np.ndarray]:
    """Kind -> share of hits [templates L H]."""
    top_k = np.full(len(prompts.tokens), TOP_K, np.int32)
    return dynamic_scores(model, prompts, top_k, batch_size=batch_size).scores


def median_seconds(run: Callable[[], object], repeats: int) -> float:
    """Of several runs, after the one that compiled and warmed up."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def matmul_rate() -> float:
    """FLOP/s of a large float32 product here, the best of five."""
    n = 4096
    x = jnp.ones((n, n))
    product = jax.jit(lambda x: jnp.matmul(x, x, precision="highest"))
    times = [median_seconds(lambda: product(x).block_until_ready(), 1) for _ in range(6)]
    return 2 * n**3 / min(times[1:])


def forward_flops(config: ModelConfig, n_tokens: int) -> float:
    """Of the blocks' products with their weights: what no way to these scores can do without."""
    weights = [shape for name, shape in parameter_shapes(config).items() if ".W_" in name]
    in_blocks = [shape for shape in weights if shape[0] == config.n_layers]
    return 2 * n_tokens * sum(float(np.prod(shape)) for shape in in_blocks)


def bench_dynamic() -> float:
    """Prints the comparison for every shape; the smallest ratio is the benchmark's."""
    device = jax.devices()[0]
    print(f"device: {device.platform}, {device.device_kind}; torch threads: {torch.get_num_threads()}")
    rate = matmul_rate()
    print(f"float32 product of 4096 x 4096: {rate / 1e9:.0f} GFLOP/s")
    ratios = []
    for name, config in SHAPES.items():
        ours, theirs = gpt2_twins(config)
        prompts = template_like_prompts(config)
        batch_size = len(prompts.tokens)
        expected, actual = usual_way(theirs, prompts), our_way(ours, prompts, batch_size)
        n_hits = 0
        for kind in KINDS:
            np.testing.assert_array_equal(actual[kind], expected[kind], err_msg=f"{name}, {kind}")
            n_hits += round(float(expected[kind].sum()) * N_PAIRS)
        print(f"{name}: {len(prompts.tokens)} prompts, all {n_hits} hits equal")

        usual = median_seconds(lambda theirs=theirs, prompts=prompts: usual_way(theirs, prompts), 2)
        own = median_seconds(lambda: our_way(ours, prompts, batch_size), 5)  # noqa: B023
        flops = forward_flops(config, int(prompts.mask.sum()))
        print(f"  usual way {usual:.2f} s, ours {own:.2f} s: ratio {usual / own:.1f}x")
        print(
            f"  floor {flops / rate:.2f} s ({flops / 1e9:.0f} GFLOP, the forward pass of the prompts' own tokens):"
            f" {flops / rate / own:.0%} of ours"
        )
        ratios.append(usual / own)
    print(f"ratio {min(ratios):.1f}x")
    return min(ratios)


if __name__ == "__main__":
    bench_dynamic()
