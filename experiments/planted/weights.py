"""The weights of the planted checkpoint: a GPT-2 whose chosen heads carry relations by construction.

The residual stream is divided (see the slices below). A word's embedding holds, under SOURCE, a code of
what its relation maps it to and, under TARGET, its code as an answer. A planted head reads the code of its
relations under SOURCE (layer 0) or MAPPED (later layers) and writes the answer's code under TARGET, in
rank d_head; the unembedding, tied, recognises it. Codes of different relations lie in different random
directions, so a head answers for no relation but its own.

*First MLP.* gelu(x) - gelu(-x) = x makes it exactly linear: it writes a rotation of SOURCE to MAPPED.
*Layer norm.* Every embedding has mean 0 and the same norm, most of it under BALANCE, and what is written
to the residual has mean 0 too: the norm is then a factor, nearly the same for all tokens.
*Attention.* A planted head's query is a constant. Its keys grow with position and with the FLAGS that
sources of its relations carry: it looks at the last such source or, where there is none, at BOS or the
last word of the template, which say next to nothing. Other heads have ordinary random weights and look
everywhere.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

SHAPE = (12, 12)  # layers and heads
D_MODEL, D_MLP, MAX_POSITIONS = 480, 304, 96
N_RELATIONS = 20

# How the residual stream is divided.
SOURCE = slice(0, 152)
MAPPED = slice(152, 304)
TARGET = slice(304, 455)
CONTENT = slice(0, 455)
FLAGS = slice(455, 475)  # one a relation
REST = 475  # where to look for nothing
POSITION = slice(476, 478)  # p and -p
BALANCE = slice(478, 480)

NORM = 64.0  # of every token's embedding
BACKGROUND, QUIET = (
    0.5,
    0.05,
)  # norm of a word's own random part, beside codes of norm 1; of a template word's
MAPPED_GAIN = 24.0
WRITE = 2.5  # norm of what a planted head writes when it sees its source
SUPPRESSION = 0.7  # suppression as a share of that: an answer survives its suppression head
LOGIT_SCALE = 5.0
# In an embedding; up to 80 tokens a source > BOS > the last template word > any other.
SOURCE_FLAG, BOS_FLAG, QUIET_FLAG, POSITION_STEP = 5.0, 3.8, 1.0, 1 / 32
SOFTMAX_STEP = 4.0  # what POSITION_STEP makes in an attention score


class Planting(NamedTuple):
    """One relation, by index, carried by one head; sign -1 is suppression."""

    layer: int
    head: int
    relation: int
    sign: int


class Codes(NamedTuple):
    """Orthonormal directions of each relation's codes under SOURCE and TARGET, and the first MLP's map."""

    source: Float[np.ndarray, "R K E"]
    target: Float[np.ndarray, "R K T"]
    rotation: Float[np.ndarray, "E E"]

    @property
    def d_head(self) -> int:
        """K, of which a head's codes are made."""
        return self.source.shape[1]


class HeadWeights(NamedTuple):
    """One head; b_K and b_V are 0."""

    W_Q: Float[np.ndarray, "D K"]
    W_K: Float[np.ndarray, "D K"]
    W_V: Float[np.ndarray, "D K"]
    W_O: Float[np.ndarray, "K D"]
    b_Q: Float[np.ndarray, " K"]


def width(part: slice) -> int:
    return part.stop - part.start


def unit(rows: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
    """The rows at norm 1."""
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def centred(rows: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
    """The rows at mean 0."""
    return rows - rows.mean(axis=1, keepdims=True)


def frame(n: int, d: int, rng: np.random.Generator) -> Float[np.ndarray, "n d"]:
    """n random orthonormal vectors."""
    return np.linalg.qr(rng.normal(size=(d, n)))[0].T


def spread_codes(n: int, d_head: int, rng: np.random.Generator) -> Float[np.ndarray, "n K"]:
    """n unit vectors that are far from each other: random ones, pushed apart by their overlaps."""
    codes = unit(rng.normal(size=(n, d_head)))
    for _ in range(100):
        overlaps = codes @ codes.T
        np.fill_diagonal(overlaps, 0)
        codes = unit(codes - 0.5 * (overlaps * np.abs(overlaps)) @ codes)
    return codes


def draw_codes(d_head: int, rng: np.random.Generator) -> Codes:
    """Directions for every relation, as many each as a head has dimensions."""
    e, t = width(SOURCE), width(TARGET)
    return Codes(
        source=np.stack([frame(d_head, e, rng) for _ in range(N_RELATIONS)]),
        target=np.stack([centred(frame(d_head, t, rng)) for _ in range(N_RELATIONS)]),
        rotation=centred(frame(e, e, rng)),
    )


def draw_embedding(
    pairs: Sequence[Sequence[tuple[int, int]]],
    vocab_size: int,
    quiet: Sequence[int],
    codes: Codes,
    rng: np.random.Generator,
) -> Float[np.ndarray, "V D"]:
    """The embedding, and unembedding, of all tokens.

    pairs: (source, target) tokens of each relation.
    quiet: tokens that say next to nothing to any head, the words of templates; the first is BOS.
    """
    W_E = np.zeros((vocab_size, D_MODEL))
    # Not exactly nothing for the quiet: a zero output ranks all words equal, and equal counts as a hit.
    loudness = np.full((vocab_size, 1), BACKGROUND)
    loudness[quiet] = QUIET
    for part in (SOURCE, TARGET):
        W_E[:, part] = loudness * unit(rng.normal(size=(vocab_size, width(part))))
    W_E[quiet, REST] = QUIET_FLAG
    W_E[quiet[0], REST] = BOS_FLAG
    for r, relation_pairs in enumerate(pairs):
        targets = sorted({target for _, target in relation_pairs})
        answers = dict(zip(targets, spread_codes(len(targets), codes.d_head, rng), strict=True))
        for target, code in answers.items():
            W_E[target, TARGET] += code @ codes.target[r]
        for source, target in relation_pairs:
            W_E[source, SOURCE] += answers[target] @ codes.source[r]
            W_E[source, FLAGS.start + r] = SOURCE_FLAG
    # The two BALANCE entries a, b that make mean and norm: a + b = -total and a^2 + b^2 = rest.
    total, rest = W_E.sum(axis=1), NORM**2 - (W_E**2).sum(axis=1)
    a = (-total + np.sqrt(2 * rest - total**2)) / 2
    W_E[:, BALANCE] = np.stack([a, -total - a], axis=1)
    return W_E


def plant_head(
    layer: int, carried: Iterable[tuple[int, int]], codes: Codes, rng: np.random.Generator
) -> HeadWeights:
    """A head that carries (relation, sign) for each of `carried`."""
    K = codes.d_head
    W_Q, W_K, W_V = (np.zeros((D_MODEL, K)) for _ in range(3))
    W_O, b_Q = np.zeros((K, D_MODEL)), np.zeros(K)
    scale = np.sqrt(map_strength(layer))
    for relation, sign in carried:
        mix = frame(K, K, rng)  # keeps the relations of one head apart in its K dimensions
        read = codes.source[relation].T
        if layer == 0:
            W_V[SOURCE] += scale * read @ mix
        else:
            W_V[MAPPED] += scale * codes.rotation.T @ read @ mix
        strength = 1 if sign > 0 else -SUPPRESSION
        W_O[:, TARGET] += scale * strength * mix.T @ codes.target[relation]
        W_K[FLAGS.start + relation, 0] = 1
    W_K[[REST, POSITION.start], 0] = 1
    step = POSITION_STEP * np.sqrt(D_MODEL) / NORM / np.sqrt(K)
    b_Q[0] = np.sqrt(SOFTMAX_STEP / step)
    return HeadWeights(W_Q, b_Q[0] * W_K, W_V, W_O, b_Q)


def map_strength(layer: int) -> float:
    """Singular values of W_V W_O with which a planted head writes a vector of norm WRITE."""
    shrink = np.sqrt(D_MODEL) / NORM  # what layer norm does to a token
    return WRITE / (shrink if layer == 0 else shrink**2 * MAPPED_GAIN)


def random_head(d_head: int, rng: np.random.Generator) -> HeadWeights:
    """A head of ordinary random weights that looks nearly everywhere.

    Its W_V and W_O are as large as those of a planted head with one relation, in layers after the first.
    """
    size = np.sqrt(map_strength(1) / width(CONTENT))
    weights = np.zeros((4, D_MODEL, d_head))
    for weight, deviation in zip(weights, (0.15, 0.15, size, size), strict=True):
        weight[CONTENT] = deviation * rng.normal(size=(width(CONTENT), d_head))
    W_Q, W_K, W_V, W_O = weights
    W_O[CONTENT] -= W_O[CONTENT].mean(axis=0)
    return HeadWeights(W_Q, W_K, W_V, W_O.T, np.zeros(d_head))


def linear_mlp(codes: Codes) -> tuple[Float[np.ndarray, "D F"], Float[np.ndarray, "F D"]]:
    """W_in and W_out of the first MLP; the identity of gelu that it rests on holds for the tanh form too."""
    W_in, W_out, both = np.zeros((D_MODEL, D_MLP)), np.zeros((D_MLP, D_MODEL)), np.eye(width(SOURCE))
    W_in[SOURCE] = np.concatenate([both, -both], axis=1)
    W_out[:, MAPPED] = MAPPED_GAIN * np.concatenate([codes.rotation, -codes.rotation])
    return W_in, W_out


def random_mlp(rng: np.random.Generator) -> tuple[Float[np.ndarray, "D F"], Float[np.ndarray, "F D"]]:
    """Small random W_in and W_out."""
    W_in, W_out = np.zeros((D_MODEL, D_MLP)), np.zeros((D_MLP, D_MODEL))
    W_in[CONTENT] = 0.02 * rng.normal(size=(width(CONTENT), D_MLP))
    W_out[:, CONTENT] = centred(0.02 * rng.normal(size=(D_MLP, width(CONTENT))))
    return W_in, W_out


def gpt2_tensors(
    W_E: Float[np.ndarray, "V D"],
    heads: Mapping[tuple[int, int], HeadWeights],
    codes: Codes,
    rng: np.random.Generator,
) -> dict[str, Float[np.ndarray, "..."]]:
    """The checkpoint's tensors, float32, under the names of GPT-2's files; heads by (layer, head)."""
    W_pos = np.zeros((MAX_POSITIONS, D_MODEL))
    W_pos[:, POSITION] = POSITION_STEP * np.arange(MAX_POSITIONS)[:, None] * [1, -1]
    tensors = {"wte.weight": W_E, "wpe.weight": W_pos}
    n_layers, n_heads = (1 + max(places) for places in zip(*heads, strict=True))
    for layer in range(n_layers):
        row = [heads[layer, head] for head in range(n_heads)]
        # Columns of c_attn: all heads' queries, then keys, then values.
        columns = [getattr(head, name) for name in ("W_Q", "W_K", "W_V") for head in row]
        W_in, W_out = linear_mlp(codes) if layer == 0 else random_mlp(rng)
        block = {
            "ln_1.weight": np.ones(D_MODEL),
            "ln_1.bias": np.zeros(D_MODEL),
            "attn.c_attn.weight": np.concatenate(columns, axis=1),
            "attn.c_attn.bias": np.concatenate([*(head.b_Q for head in row), np.zeros(2 * D_MODEL)]),
            "attn.c_proj.weight": np.concatenate([head.W_O for head in row]),
            "attn.c_proj.bias": np.zeros(D_MODEL),
            "ln_2.weight": np.ones(D_MODEL),
            "ln_2.bias": np.zeros(D_MODEL),
            "mlp.c_fc.weight": W_in,
            "mlp.c_fc.bias": np.zeros(D_MLP),
            "mlp.c_proj.weight": W_out,
            "mlp.c_proj.bias": np.zeros(D_MODEL),
        }
        tensors |= {f"h.{layer}.{name}": tensor for name, tensor in block.items()}
    ln_f = np.zeros(D_MODEL)
    ln_f[TARGET] = LOGIT_SCALE
    tensors |= {"ln_f.weight": ln_f, "ln_f.bias": np.zeros(D_MODEL)}
    return {name: np.ascontiguousarray(tensor, np.float32) for name, tensor in tensors.items()}
