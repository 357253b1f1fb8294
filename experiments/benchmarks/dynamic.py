"""Benchmark of the dynamic scores against the usual way, on random GPT-2 shapes; hits are compared first.

The usual way, in torch: one forward pass whose hooks keep z, one in which the last position's attention is
forced onto the source, and for each head and each of the two ``z W_O``, its logits over the vocabulary,
their top k and their bottom k. Prompts are batched there too, and the language model's head is left out.
"""

import statistics

import jax.numpy as jnp
import numpy as np
import torch
import transformers
from transformers.models.gpt2 import modeling_gpt2

from experiments.benchmarks.measure import seconds
from experiments.benchmarks.torch_gpt2 import SHAPES, gpt2_twins, smallest_ratio
from experiments.torch_model import ranked
from headjax.analyses.dynamic_scores import SCORES, dynamic_scores
from headjax.config import ModelConfig
from headjax.data.prompts import Prompt, PromptBatch
from headjax.engine.prefill import prefill
from headjax.model import Transformer, parameter_shapes

LENGTHS = (4, 5, 6, 8)  # of the four published templates in GPT-2's tokens, for one-token sources
SOURCES = (1, 3, 5, 4)  # and where their sources are
N_PAIRS = {"GPT-2 small": 40, "GPT-2 medium": 12}  # prompts are four times as many
REPEATS = 3
TOP_K = 10


def template_like_prompts(model: Transformer, n_pairs: int, seed: int = 0) -> PromptBatch:
    """Random tokens laid out like the four published templates filled with a relation's pairs.

    Pair n's target is what one of the heads, another for each pair, ranks first after the first template,
    so that there are hits to compare.
    """
    rng = np.random.default_rng(seed)
    padding = max(LENGTHS) - np.repeat(LENGTHS, n_pairs)
    shape = (len(padding), max(LENGTHS))
    mask = np.arange(shape[1])[None, :] >= padding[:, None]
    tokens = np.where(mask, rng.integers(0, model.config.vocab_size, shape), 0).astype(np.int32)
    pair, layer = np.arange(n_pairs), rng.integers(0, model.config.n_layers, n_pairs)
    head = rng.integers(0, model.config.n_heads, n_pairs)
    z = prefill(model, tokens[:n_pairs], mask[:n_pairs], keep="last").z[layer, pair, 0, head]
    logits = jnp.einsum("nk,nkd,vd->nv", z, model.W_O[layer, head], model.unembed_rows, precision="highest")
    answers = np.tile(np.asarray(logits.argmax(axis=1), np.int32), len(LENGTHS))
    return PromptBatch(
        tokens=tokens,
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

    hits = np.zeros((len(SCORES), len(tokens), config.n_layer, config.n_head), bool)
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
                own = hits[2 * context : 2 * context + 2]
                own[:, :, layer, head] = ranked(logits, targets, TOP_K)
    by_template = hits.reshape(len(SCORES), len(LENGTHS), -1, *hits.shape[2:])
    return dict(zip(SCORES, by_template.mean(axis=2, dtype=np.float32), strict=True))


def our_way(model: Transformer, prompts: PromptBatch) -> dict[str, np.ndarray]:
    """Kind -> share of hits [templates L H]."""
    top_k = np.full(len(prompts.tokens), TOP_K, np.int32)
    return dynamic_scores(model, prompts, top_k, batch_size=len(top_k)).scores


def forward_flops(config: ModelConfig, n_tokens: int) -> float:
    """Of the blocks' products with their weights: what no way to these scores can do without."""
    weights = [shape for name, shape in parameter_shapes(config).items() if ".W_" in name]
    in_blocks = [shape for shape in weights if shape[0] == config.n_layers]
    return 2 * n_tokens * sum(float(np.prod(shape)) for shape in in_blocks)


def compare(name: str, n_pairs: int, rate: float) -> float:
    """Prints hits, times and floor for one shape, and returns the ratio of the times."""
    ours, theirs = gpt2_twins(SHAPES[name])
    prompts = template_like_prompts(ours, n_pairs)
    # The first runs compile, warm up, and are compared.
    expected, actual = usual_way(theirs, prompts), our_way(ours, prompts)
    for kind in SCORES:
        np.testing.assert_array_equal(actual[kind], expected[kind], err_msg=f"{name}, {kind}")
    n_hits = round(sum(float(shares.sum()) for shares in expected.values()) * n_pairs)
    print(f"{name}: {len(prompts.tokens)} prompts, all {n_hits} hits equal")

    times = []
    for _ in range(REPEATS):  # in turn, so that whatever else the machine does meets both
        usual = seconds(lambda: usual_way(theirs, prompts))
        own = statistics.median(seconds(lambda: our_way(ours, prompts)) for _ in range(3))
        times.append((usual, own))
    usual, own = (statistics.median(column) for column in zip(*times, strict=True))
    flops = forward_flops(ours.config, int(prompts.mask.sum()))
    print(f"  usual way {usual:.2f} s, ours {own:.2f} s (medians): ratio {usual / own:.1f}x")
    floor = f"floor {flops / rate:.2f} s, {flops / rate / own:.0%} of ours"
    print(f"  {floor}: {flops / 1e9:.0f} GFLOP, one forward pass over the prompts without padding")
    return usual / own


def bench_dynamic() -> float:
    """Prints the comparison for every shape; the smallest ratio is the benchmark's."""
    return smallest_ratio(lambda name, rate: compare(name, N_PAIRS[name], rate))
