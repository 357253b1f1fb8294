"""The decoder-only transformer of every family: pure functions, then modules from leaf to root.

Parameters of all blocks are stacked along a leading layer axis and the blocks run under one scan, so
that tracing and compiling cost the same at 4 layers as at 80. Modules are pytrees: pass a model to
`jax.jit` or `jax.grad` like any other argument.
"""

from collections.abc import Mapping
from functools import cache, partial, reduce
from typing import Any, NamedTuple, SupportsIndex

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.sharding import NamedSharding, PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Float, Int

from headjax.axes import Head, Logits, Residual, TokenMask, Tokens
from headjax.config import ModelConfig
from headjax.inputs import check_tokens
from headjax.model.attention import Setting, layer_settings
from headjax.model.block import Block, gained
from headjax.model.edits import HeadEdit, check_edit, check_head
from headjax.model.norm import Norm


class Output(NamedTuple):
    """What a forward pass returns.

    Attributes:
      logits: [B S V], float32.
      z: [L B S H K], every head's own output before W_O, as edited; None unless asked for.
      pattern: [L B H S S], how much each position (fourth axis) attends to each (last); None unless
        asked for.
      residual: [L+1 B S D], the residual stream before each layer and, last, before the final norm; None
        unless asked for.
    """

    logits: Logits
    z: Float[Array, "L B S H K"] | None
    pattern: Float[Array, "L B H S S"] | None = None
    residual: Float[Array, "L1 B S D"] | None = None


def mask_positions(mask: TokenMask) -> Int[Array, "B S"]:
    """Position of every token, counted from the first real one; 0 on padding."""
    return jnp.maximum(jnp.cumsum(jnp.asarray(mask, jnp.int32), axis=1) - 1, 0)


def scaled_embedding(config: ModelConfig, rows: Float[Array, "*rows D"]) -> Float[Array, "*rows D"]:
    """Rows of W_E as they enter the residual stream."""
    return rows if config.embedding_scale == 1 else rows * jnp.asarray(config.embedding_scale, rows.dtype)


class Embed(nnx.Module):
    """W_E [V D], and W_pos [P D] where positions are learned."""

    def __init__(self, config: ModelConfig, init: nnx.Initializer, rngs: nnx.Rngs):
        self.config = config
        self.W_E = nnx.Param(init(rngs.params(), (config.vocab_size, config.d_model)))
        if config.rotary is None:
            self.W_pos = nnx.Param(init(rngs.params(), (config.max_positions, config.d_model)))

    def __call__(self, tokens: Tokens, positions: Int[Array, "B S"]) -> Residual:
        x = scaled_embedding(self.config, self.W_E[...][tokens])
        return x + self.W_pos[...][positions] if hasattr(self, "W_pos") else x


class Unembed(nnx.Module):
    """rows [V D], one a token, as checkpoints store them (absent where tied to W_E), and b_U [V]."""

    def __init__(self, config: ModelConfig, init: nnx.Initializer, rngs: nnx.Rngs, dtype: DTypeLike):
        if not config.tied_embeddings:
            self.rows = nnx.Param(init(rngs.params(), (config.vocab_size, config.d_model)))
        self.b_U = nnx.Param(jnp.zeros((config.vocab_size,), dtype))


class Transformer(nnx.Module):
    """A language model: tokens to logits, with every head's output on the way.

    Weights carry the field's names (Elhage et al. 2021; TransformerLens). `W_Q W_K W_V W_O` have an axis of
    query heads in the second place, also where query heads share keys and values (they are stored once, in
    `blocks.attn`), so that ``model.W_V[layer, head]`` is the [D K] matrix of that head. JAX takes an index
    that is out of range for the last one; `OV` and `QK` refuse it.
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32):
        """A randomly initialised model (normal, deviation 0.02); `headjax.load_model` reads a real one."""
        init = partial(nnx.initializers.normal(0.02), dtype=dtype)
        self.config = config
        self.embed = Embed(config, init, rngs)
        self.blocks = Block(config, init, (config.n_layers,), rngs)
        self.ln_final = Norm(config, (), dtype)
        self.unembed = Unembed(config, init, rngs, dtype)

    def __call__(
        self,
        tokens: Any,
        *,
        mask: Any = None,
        edit: HeadEdit | None = None,
        return_z: bool = False,
        return_pattern: bool = False,
        return_residual: bool = False,
    ) -> Output:
        """Runs the model.

        Args:
          tokens: [B S] token ids: an array of any library, or lists.
          mask: [B S], False on padding; pad on the left so that every prompt ends at S - 1.
          edit: what is done to the heads' outputs.
          return_z, return_pattern, return_residual: also return these of all layers.

        Raises InputError for ids that the vocabulary does not have, more tokens than positions, and a mask or
        an edit that does not fit. Inside `jax.jit` values cannot be looked at: there only shapes are checked.
        """
        tokens, mask = check_tokens(tokens, mask, self.config)
        edit = None if edit is None else check_edit(edit, tokens.shape, self.config)
        asked = {"return_z": return_z, "return_pattern": return_pattern, "return_residual": return_residual}
        return self._run(tokens, mask, edit, **{name: bool(value) for name, value in asked.items()})

    @partial(jax.jit, static_argnames=("return_z", "return_pattern", "return_residual"))
    def _run(
        self,
        tokens: Tokens,
        mask: TokenMask | None,
        edit: HeadEdit | None,
        *,
        return_z: bool,
        return_pattern: bool,
        return_residual: bool,
    ) -> Output:
        positions = mask_positions(jnp.ones(tokens.shape, bool) if mask is None else mask)
        valid = None if mask is None else jnp.asarray(mask)

        def layer(x: Residual, inputs: tuple[Block, HeadEdit | None]) -> tuple[Residual, tuple]:
            block, layer_edit = inputs
            q, k, v = block.project(x, positions)
            z = block.attn.attend(q, k, v, valid, layer_edit)
            pattern = block.attn.pattern(q, k, valid) if return_pattern else None
            return block.finish(x, z), (z if return_z else None, pattern, x if return_residual else None)

        final, (z, pattern, residual) = jax.lax.scan(
            layer, self.embed(tokens, positions), (self.blocks, edit)
        )
        if residual is not None:
            residual = jnp.concatenate([residual, final[None]])
        return Output(self.logits(final), z, pattern, residual)

    def logits(self, x: Float[Array, "*rows D"]) -> Float[Array, "*rows V"]:
        """Final norm, unembedding and cap of a residual; float32 whatever the parameters are."""
        product = jnp.einsum(
            "...d,vd->...v",
            self.ln_final(x),
            self.unembed_rows,
            precision=self.config.precision,
            preferred_element_type=jnp.float32,
        )
        bias = self.unembed.b_U[...].astype(jnp.float32)
        return capped(self.config, product + jnp.expand_dims(bias, tuple(range(x.ndim - 1))))

    @property
    def W_E(self) -> Float[Array, "V D"]:
        """Token embedding."""
        return self.embed.W_E[...]

    @property
    def unembed_rows(self) -> Float[Array, "V D"]:
        """The unembedding with one row a token; W_E itself where the checkpoint ties them."""
        return self.embed.W_E[...] if self.config.tied_embeddings else self.unembed.rows[...]

    @property
    def W_U(self) -> Float[Array, "D V"]:
        """Unembedding."""
        return self.unembed_rows.T

    @property
    def b_U(self) -> Float[Array, " V"]:
        """Unembedding bias (zeros where the family has none)."""
        return self.unembed.b_U[...]

    @property
    def W_Q(self) -> Float[Array, "L H D K"]:
        """Query weights of every head."""
        return jnp.moveaxis(self.blocks.attn.W_Q[...], 2, 1)

    @property
    def W_K(self) -> Float[Array, "L H D K"]:
        """Key weights that every query head meets; heads that share a key/value head have the same."""
        return self._of_query_heads(self.blocks.attn.W_K[...])

    @property
    def W_V(self) -> Float[Array, "L H D K"]:
        """Value weights that every query head reads; heads that share a key/value head have the same."""
        return self._of_query_heads(self.blocks.attn.W_V[...])

    @property
    def W_O(self) -> Float[Array, "L H K D"]:
        """Output weights of every head."""
        return self.blocks.attn.W_O[...]

    def _of_query_heads(self, weights: Float[Array, "L D G K"]) -> Float[Array, "L H D K"]:
        # Query head h reads key/value head h // (H / G).
        share = self.config.n_heads // self.config.n_kv_heads
        return jnp.repeat(jnp.moveaxis(weights, 2, 1), share, axis=1)

    def OV(self, layer: SupportsIndex, head: SupportsIndex) -> Float[Array, "D D"]:
        """What a head writes for what it reads, as a row vector times ``W_V W_O``; float32, no biases.

        Weights as stored: where a norm follows attention, neither its gain nor its scale is in it.
        Raises InputError for a head that the model does not have.
        """
        layer, head = check_head(Head.parse((layer, head)), self.config)
        attn, share = self.blocks.attn, self.config.n_heads // self.config.n_kv_heads
        return self._product("dk,ke->de", attn.W_V[layer, :, head // share], attn.W_O[layer, head])

    def QK(self, layer: SupportsIndex, head: SupportsIndex) -> Float[Array, "D D"]:
        """How a query (row) scores a key (column), ``W_Q W_K^T``; float32, no biases.

        Nothing that scores are divided by is in it: sqrt(K), the layer where GPT-2 does that too, and the
        lengths of queries and keys where they are normed (nor the gains of these norms; a norm over all heads
        together makes a head's scores depend on the others'). Nor is a soft cap, which bends large scores.

        Where the model rotates queries and keys, this is the score of a position with itself: between two
        others the rotation by their distance stands between the factors.
        Raises InputError for a head that the model does not have.
        """
        layer, head = check_head(Head.parse((layer, head)), self.config)
        attn, share = self.blocks.attn, self.config.n_heads // self.config.n_kv_heads
        return self._product("dk,ek->de", attn.W_Q[layer, :, head], attn.W_K[layer, :, head // share])

    def _product(self, axes: str, left: Array, right: Array) -> Float[Array, "D D"]:
        how = {"precision": self.config.precision, "preferred_element_type": jnp.float32}
        return jnp.einsum(axes, left, right, **how)


def capped(config: ModelConfig, logits: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The logits as the model gives them: within its cap, where it has one. Their order stays."""
    cap = config.logit_cap
    return logits if cap is None else cap * jnp.tanh(logits / cap)


@cache
def abstract_model(config: ModelConfig, dtype: DTypeLike = jnp.float32) -> Transformer:
    """The model with shapes in place of arrays; costs no memory. `fill` gives it arrays."""
    return nnx.eval_shape(lambda: Transformer(config, rngs=nnx.Rngs(0), dtype=dtype))


@cache
def abstract_block(config: ModelConfig) -> Block:
    """The same of a block alone."""
    return nnx.eval_shape(lambda: Block(config, nnx.initializers.zeros, (), nnx.Rngs(0)))


@cache
def parameter_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every parameter, e.g. ``blocks.attn.W_Q`` -> (L, D, H, K)."""
    return {name: leaf.shape for name, leaf in model_parameters(abstract_model(config)).items()}


def model_parameters(model: Transformer) -> dict[str, Array | jax.ShapeDtypeStruct]:
    """Name -> array of every parameter."""
    parameters = nnx.to_flat_state(nnx.state(model, nnx.Param))
    return {".".join(path): variable.get_value() for path, variable in parameters}


def build_model(config: ModelConfig, parameters: Mapping[str, Array]) -> Transformer:
    """A model around arrays that exist already, named as `model_parameters` names them."""
    return fill(abstract_model(config), parameters)


def one_block(config: ModelConfig, parameters: Mapping[str, Array], layer: int) -> Block:
    """A block alone, from ``blocks.*`` of one layer, without the L axis."""
    return fill(abstract_block(config), parameters, "blocks.", layer)


def first_mlp(config: ModelConfig, parameters: Mapping[str, Array]) -> Block:
    """The first block with its MLP and the MLP's norms alone, for `Block.mlp_write`: from `first_mlp_names`
    of layer 0."""
    block = nnx.clone(abstract_block(config))
    for name in ("attn", "ln1", "ln1_post"):
        if hasattr(block, name):
            delattr(block, name)
    return fill(block, parameters, "blocks.", 0)


def first_mlp_names(config: ModelConfig) -> tuple[str, ...]:
    """The parameters of a block's MLP and of the norms before and after it."""
    of_mlp = ("blocks.mlp.", "blocks.ln2.", "blocks.ln2_post.")
    return tuple(name for name in parameter_shapes(config) if name.startswith(of_mlp))


def write_names(config: ModelConfig) -> tuple[str, ...]:
    """The parameters of a block that say what a head writes, for `unit_W_O`."""
    return ("blocks.attn.W_O",) + ("blocks.ln1_post.scale",) * (config.norms != "before")


def unit_W_O(config: ModelConfig, parameters: Mapping[str, Array]) -> Float[Array, "H K D"]:
    """`Block.writes` from the parameters of `write_names` of one layer: W_O, with the gain of the norm after
    attention where there is one, at unit scale."""
    W_O, *gain = (parameters[name] for name in write_names(config))
    return gained(W_O, jnp.zeros(W_O.shape[-1]), *gain)[0] if gain else W_O


def fill(
    module: nnx.Module, parameters: Mapping[str, Array], prefix: str = "", layer: int | None = None
) -> nnx.Module:
    """An abstract module with arrays in its places; `prefix` is the module's own name among them, and `layer`
    which one it is where it is a single one."""
    # Not by merging a state of arrays: what flax was given then stays until Python searches for cycles.
    module = nnx.clone(module)
    for path, variable in nnx.to_flat_state(nnx.state(module)):
        owner = reduce(getattr, path[:-1], module)
        if isinstance(variable, Setting):
            values = layer_settings(owner.config)[path[-1]]
            beside = parameters[prefix + ".".join((*path[:-1], "W_Q"))]
            value = _placed_like(values if layer is None else np.asarray(values[layer]), beside)
        else:
            value = parameters[prefix + ".".join(path)]
        setattr(owner, path[-1], variable.replace(value))
    return module


def _placed_like(values: Float[np.ndarray, "*shape"], beside: Any) -> Array:
    """An array on the devices of another, whole on each."""
    sharding = getattr(beside, "sharding", None)
    if not isinstance(sharding, NamedSharding):
        return jnp.asarray(values)
    whole = NamedSharding(sharding.mesh, PartitionSpec())
    return jax.make_array_from_callback(values.shape, whole, lambda part: values[part])
