"""Relations of random words, and relation scores the slow way."""

import jax.numpy as jnp
import numpy as np

from headjax.analyses.relation_scores import Weights
from headjax.data.hit_rule import HitRule
from headjax.data.prompts import TokenPairs
from headjax.data.relations import Relation
from tests.helpers import torch_oracle
from tests.helpers.hit_oracle import normal
from tests.helpers.torch_or_skip import torch

RULE = HitRule(top_k=7, top_k_copying=2, first_mlp=True)


def token_pairs(relation: str, n: int, n_tokens: int, seed: int) -> TokenPairs:
    """Random pairs; sources repeat within a relation and between relations."""
    sources, targets = np.random.default_rng(seed).integers(0, n_tokens, (2, n)).astype(np.int32)
    words = tuple((str(s), str(t)) for s, t in zip(sources, targets, strict=True))
    return TokenPairs(Relation(relation, words, relation, "Random"), sources, targets, words)


def some_relations(n_tokens: int) -> list[TokenPairs]:
    sizes = {"copying": 31, "capitals": 53, "plurals": 17}
    return [token_pairs(name, n, n_tokens, seed) for seed, (name, n) in enumerate(sizes.items())]


def random_weights(heads: int, kv_heads: int, L: int = 3, K: int = 5, D: int = 37, V: int = 2003):
    """Weights of a model whose first MLP is a random linear map, and what the oracle needs of them."""
    W_E, unembed, mlp = normal(0, V, D), normal(1, V, D), normal(2, D, D)
    W_V, W_O = normal(3, L, D, kv_heads, K), normal(4, L, heads, K, D)
    layers = zip(jnp.asarray(W_V), jnp.asarray(W_O), strict=True)
    weights = Weights(jnp.asarray(W_E), lambda x: x @ jnp.asarray(mlp), jnp.asarray(unembed), layers)
    later = W_E.astype(np.float64) @ mlp
    return weights, ([W_E, *[later] * (L - 1)], np.repeat(W_V, heads // kv_heads, axis=2), W_O, unembed)


def theirs_of_relation_scores(model) -> tuple[list[np.ndarray], np.ndarray, np.ndarray, np.ndarray]:
    """Every layer's x [V D], W_V [L D H K], W_O [L H K D] and unembedding [V D], from torch's modules."""
    layers = model.get_submodule(torch_oracle._LAYERS[model.config.model_type])
    W_V, W_O = [], []
    for block in layers:
        values, outputs = torch_oracle.values_of(model, block), torch_oracle.outputs_of(model, block)
        W_V.append(values.repeat_interleave(len(outputs) // values.shape[1], dim=1))
        W_O.append(outputs)
    embed = model.get_input_embeddings()
    later = torch_oracle.first_mlp(model, embed(torch.arange(len(embed.weight))))
    unembed = model.get_output_embeddings().weight
    inputs = [x.numpy() for x in (embed.weight, *[later] * (len(layers) - 1))]
    return inputs, torch.stack(W_V).numpy(), torch.stack(W_O).numpy(), unembed.numpy()
