"""Multi-head attention whose heads stay apart until the output projection."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Bool, Float, Int

from headjax.axes import HeadOutputs, Residual
from headjax.config import ModelConfig
from headjax.kernels.head_attention import head_attention
from headjax.kernels.head_attention.scores import scores_of
from headjax.kernels.variant_decode import variant_decode
from headjax.model.edits import HeadEdit
from headjax.model.norm import Norm
from headjax.model.rotary import apply_rotary, rotary_amplitude, rotary_frequencies


class Setting(nnx.Variable):
    """Numbers of a layer that its config says: no parameter of a checkpoint, and not trained.

    float32, also those that are whole: a model must be something that can be differentiated.
    """


def layer_settings(config: ModelConfig) -> dict[str, Float[np.ndarray, "L ..."]]:
    """Attribute of `Attention` -> what it is in every layer, of what differs between the layers.

    They go along with the layers' parameters, so that one program serves layers of every kind.
    """
    layers, settings = range(config.n_layers), {}
    if isinstance(config.window, tuple):
        # Where there is none: more positions than any cache holds.
        settings["window"] = [config.windows[layer] or 2**30 for layer in layers]
    if config.rotary_in_window is not None:
        settings["frequencies"] = [rotary_frequencies(config.rotaries[layer]) for layer in layers]
        settings["amplitude"] = [rotary_amplitude(config.rotaries[layer]) for layer in layers]
    if config.scores_by_layer:
        settings["score_divisor"] = [1.0 + layer for layer in layers]
    return {name: np.array(values, np.float32) for name, values in settings.items()}


class Attention(nnx.Module):
    """W_Q [D H K], W_K and W_V [D G K], W_O [H K D], and their biases.

    The model axis comes first so that all heads are one matrix product; `stack` prepends axes. Where the
    config says `qk_norm`, `q_norm` and `k_norm` are the norms of queries and keys: of each head's (gain [K])
    or of all heads' (gain [H K], [G K]). What else the config says for each layer by itself are `Setting`s.
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
        if config.qk_norm is not None:
            joint = config.qk_norm == "joint"
            self.q_norm = Norm(config, stack, self.W_Q.dtype, (H, K) if joint else (K,))
            self.k_norm = Norm(config, stack, self.W_Q.dtype, (G, K) if joint else (K,))
        for name, values in layer_settings(config).items():  # of one layer alone: of which, `fill` knows
            setattr(self, name, Setting(jnp.asarray(values if stack else values[0])))

    def project(
        self, x: Residual, positions: Int[Array, "B S"]
    ) -> tuple[HeadOutputs, Float[Array, "B S G K"], Float[Array, "B S G K"]]:
        """Queries, keys (both normed and rotated, if the model does so) and values of what heads read."""
        q, k, v = (
            jnp.einsum("bsd,dnk->bsnk", x, weight[...], precision=self.config.precision)
            + jnp.expand_dims(bias[...], (0, 1))
            for weight, bias in ((self.W_Q, self.b_Q), (self.W_K, self.b_K), (self.W_V, self.b_V))
        )
        if self.config.qk_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if self.config.rotary_in_window is not None:
            how = self.setting("frequencies"), self.setting("amplitude")
            q, k = (apply_rotary(heads, positions, *how) for heads in (q, k))
        elif self.config.rotary is not None:
            how = rotary_frequencies(self.config.rotary), rotary_amplitude(self.config.rotary)
            q, k = (apply_rotary(heads, positions, *how) for heads in (q, k))
        if self.config.scores_by_layer:
            q = q / self.setting("score_divisor").astype(q.dtype)
        return q, k, v

    def setting(self, name: str) -> Float[Array, "..."]:
        """What the config says of this layer: a constant for whoever differentiates the model."""
        return jax.lax.stop_gradient(getattr(self, name)[...])

    @property
    def scores(self) -> dict[str, Any]:
        """How products become scores, and which keys have one, as kernels take it."""
        window = self.config.window
        if isinstance(window, tuple):
            window = self.setting("window").astype(jnp.int32)
        return {"scale": self.config.score_scale, "soft_cap": self.config.soft_cap, "window": window}

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
            **self.scores,
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
            **self.scores,
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
        how, at = self.scores, jnp.arange(S)
        scores = scores_of(scores, K**-0.5 if how["scale"] is None else how["scale"], how["soft_cap"])
        allowed = (at[None, :] <= at[:, None])[None]
        if how["window"] is not None:
            allowed &= (at[None, :] > at[:, None] - how["window"])[None]
        if valid is not None:
            allowed = allowed & valid[:, None, :]
        allowed = allowed[:, None, None]
        weights = jax.nn.softmax(jnp.where(allowed, scores, -1e30), axis=-1)
        return jnp.where(allowed, weights, 0).reshape(B, H, S, S)

    def output(self, z: HeadOutputs) -> Residual:
        """The sum of the heads through W_O, plus b_O."""
        mixed = jnp.einsum("bshk,hkd->bsd", z, self.W_O[...], precision=self.config.precision)
        return mixed + jnp.expand_dims(self.b_O[...], (0, 1))
