"""Multi-head attention whose heads stay apart until the output projection."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Bool, Float, Int

from headjax.axes import HeadOutputs, Residual
from headjax.config import ModelConfig
from headjax.kernels.head_attention import head_attention
from headjax.kernels.variant_decode import variant_decode
from headjax.model.edits import HeadEdit
from headjax.model.norm import Norm
from headjax.model.rotary import apply_rotary


class Attention(nnx.Module):
    """W_Q [D H K], W_K and W_V [D G K], W_O [H K D], and their biases.

    The model axis comes first so that all heads are one matrix product; `stack` prepends axes. Where the
    config says `scores_by_layer`, `score_divisor` [H] is what every head's scores are divided by; where it
    says `qk_norm`, `q_norm` and `k_norm` (gain [K]) are the norms of each head's queries and keys.
    """

    def __init__(self, config: ModelConfig, init: nnx.Initializer, stack: tuple[int, ...], rngs: nnx.Rngs):
        self.config = config
        D, H, G, K = config.d_model, config.n_heads, config.n_kv_heads, config.d_head

        def weight(*shape: int) -> nnx.Param:
            return nnx.Param(init(rngs.params(), stack + shape))

        def bias(*shape: int) -> nnx.Param:
            return nnx.Param(jnp.zeros(stack + shape, self.W_Q.dtype))

        self.W_Q = weight(D, H, K)
        self.W_K = weight(D, G, K)
        self.W_V = weight(D, G, K)
        self.W_O = weight(H, K, D)
        self.b_Q = bias(H, K)
        self.b_K = bias(G, K)
        self.b_V = bias(G, K)
        self.b_O = bias(D)
        if config.qk_norm:
            self.q_norm = Norm(config, stack, self.W_Q.dtype, K)
            self.k_norm = Norm(config, stack, self.W_Q.dtype, K)
        if config.scores_by_layer:  # weights stay as stored, so what scales them goes along with them
            divisors = 1 + np.arange(math.prod(stack), dtype=np.float32).reshape(*stack, 1)
            self.score_divisor = nnx.Param(jnp.asarray(np.repeat(divisors, H, -1), self.W_Q.dtype))

    def project(
        self, x: Residual, positions: Int[Array, "B S"]
    ) -> tuple[HeadOutputs, Float[Array, "B S G K"], Float[Array, "B S G K"]]:
        """Queries, keys (both normed and rotated, if the model does so) and values of a normed residual."""
        q, k, v = (
            jnp.einsum("bsd,dnk->bsnk", x, weight[...], precision=self.config.precision)
            + jnp.expand_dims(bias[...], (0, 1))
            for weight, bias in ((self.W_Q, self.b_Q), (self.W_K, self.b_K), (self.W_V, self.b_V))
        )
        if self.config.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        if self.config.rotary is not None:
            q, k = (apply_rotary(heads, positions, self.config.rotary) for heads in (q, k))
        if self.config.scores_by_layer:
            q = q / jnp.expand_dims(self.score_divisor[...], (0, 1, 3))
        return q, k, v

    def attend(
        self,
        q: HeadOutputs,
        k: Float[Array, "B T G K"],
        v: Float[Array, "B T G K"],
        valid: Bool[Array, "B T"] | None,
        edit: HeadEdit | None = None,
    ) -> HeadOutputs:
        """z: each head's own output before W_O, as edited. `edit` is this layer's slice of a HeadEdit."""
        return head_attention(
            q,
            k,
            v,
            valid=valid,
            gain=None if edit is None else edit.gain,
            replacement=None if edit is None else edit.replacement,
            window=self.config.window,
            precision=self.config.precision,
            implementation=self.config.implementation,
        ).z

    def decode(
        self,
        q: Float[Array, "M B H K"],
        k: Float[Array, "B S G K"],
        v: Float[Array, "B S G K"],
        k_new: Float[Array, "M B G K"],
        v_new: Float[Array, "M B G K"],
        valid: Bool[Array, "B S"],
    ) -> Float[Array, "M B H K"]:
        """z at the last position of M variants that share the keys and values before it."""
        return variant_decode(
            *(q, k, v, k_new, v_new),
            valid=valid,
            window=self.config.window,
            precision=self.config.precision,
            implementation=self.config.implementation,
        )

    def pattern(
        self, q: HeadOutputs, k: Float[Array, "B S G K"], valid: Bool[Array, "B S"] | None
    ) -> Float[Array, "B H S S"]:
        """How much each position (third axis) attends to each (last): causal softmax, float32, rows of 1.

        Rows of padding that may attend to nothing are 0.
        """
        B, S, H, K = q.shape
        G = k.shape[2]
        grouped = q.reshape(B, S, G, H // G, K)  # query head h reads key/value head h // (H / G)
        scores = jnp.einsum(
            "bsgrk,btgk->bgrst",
            *(grouped, k),
            precision=self.config.precision,
            preferred_element_type=jnp.float32,
        )
        allowed = jnp.tril(jnp.ones((S, S), bool))[None]
        if self.config.window is not None:
            allowed = jnp.triu(allowed, 1 - self.config.window)
        if valid is not None:
            allowed = allowed & valid[:, None, :]
        allowed = allowed[:, None, None]
        weights = jax.nn.softmax(jnp.where(allowed, scores * K**-0.5, -1e30), axis=-1)
        return jnp.where(allowed, weights, 0).reshape(B, H, S, S)

    def output(self, z: HeadOutputs) -> Residual:
        """What the heads together write to the residual stream: their sum through W_O, plus b_O."""
        mixed = jnp.einsum("bshk,hkd->bsd", z, self.W_O[...], precision=self.config.precision)
        return mixed + jnp.expand_dims(self.b_O[...], (0, 1))
