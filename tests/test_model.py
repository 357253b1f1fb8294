"""The transformer itself: identities, edits, padding, and that depth costs no compile time."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from headjax.axes import Head
from headjax.config import Llama3Scaling, ModelConfig, Rotary
from headjax.edits import HeadEdit
from headjax.errors import InputError
from headjax.model import Transformer, build_model, model_parameters, parameter_shapes
from headjax.rotary import rotary_frequencies
from tests.tolerances import assert_close

GPT2 = ModelConfig(
    family="gpt2",
    n_layers=3,
    n_heads=5,
    n_kv_heads=5,
    d_head=7,
    d_model=23,
    d_mlp=29,
    vocab_size=53,
    max_positions=19,
    norm="layer",
    norm_eps=1e-4,
    rotary=None,
    activation="gelu_tanh",
    gated_mlp=False,
    parallel_residual=False,
    tied_embeddings=True,
)
LLAMA = dataclasses.replace(
    GPT2,
    family="llama",
    n_heads=6,
    n_kv_heads=2,
    d_head=10,
    norm="rms",
    rotary=Rotary(dim=10, theta=1e4, scaling=Llama3Scaling(8.0, 1.0, 4.0, 8192)),
    activation="silu",
    gated_mlp=True,
    tied_embeddings=False,
)
NEOX = dataclasses.replace(GPT2, family="gpt_neox", rotary=Rotary(dim=4, theta=1e4), parallel_residual=True)
CONFIGS = {"gpt2": GPT2, "llama": LLAMA, "gpt_neox": NEOX}
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 53, (2, 11)))


def informative_model(config: ModelConfig) -> Transformer:
    """Random parameters of which none is at its initial value."""
    rng = np.random.default_rng(1)
    return build_model(
        config,
        {
            name: jnp.asarray(
                name.endswith("scale") + rng.normal(0, 0.3, shape) * (4 / shape[-1] ** 0.5), jnp.float32
            )
            for name, shape in parameter_shapes(config).items()
        },
    )


@pytest.fixture(scope="module", params=CONFIGS, ids=str)
def model(request: pytest.FixtureRequest) -> Transformer:
    return informative_model(CONFIGS[request.param])


def test_shapes_and_names(model: Transformer):
    c = model.config
    output = model(TOKENS, return_z=True)
    assert output.logits.shape == (2, 11, c.vocab_size)
    assert output.logits.dtype == jnp.float32
    assert output.z.shape == (c.n_layers, 2, 11, c.n_heads, c.d_head)
    assert model(TOKENS).z is None
    assert model.W_E.shape == (c.vocab_size, c.d_model)
    assert model.W_U.shape == (c.d_model, c.vocab_size)
    assert model.W_Q.shape == (c.n_layers, c.n_heads, c.d_model, c.d_head)
    assert model.W_K.shape == model.W_V.shape == (c.n_layers, c.n_kv_heads, c.d_model, c.d_head)
    assert model.W_O.shape == (c.n_layers, c.n_heads, c.d_head, c.d_model)


def test_heads_through_W_O_sum_to_the_attention_output(model: Transformer):
    z = model(TOKENS, return_z=True).z[0]
    block = jax.tree.map(lambda leaf: leaf[0], model.blocks)
    summed = sum(z[:, :, h] @ model.W_O[0, h] for h in range(model.config.n_heads))
    assert_close(block.attn.output(z), summed + block.attn.b_O[...][None, None])


def test_gain_one_changes_nothing_and_gain_zero_replaces(model: Transformer):
    c = model.config
    clean = model(TOKENS, return_z=True)
    no_op = HeadEdit.ablate(c, [], n_positions=11)
    assert_close(model(TOKENS, edit=no_op).logits, clean.logits)

    replacement = jnp.asarray(np.random.default_rng(2).normal(size=(c.n_layers, 2, 11, c.n_heads, c.d_head)))
    replacement = replacement.astype(jnp.float32)
    edit = HeadEdit.ablate(c, ["L1H3", "2.0"], n_positions=11, positions="last", replacement=replacement)
    edited = model(TOKENS, edit=edit, return_z=True)
    assert_close(edited.z[1, :, -1, 3], replacement[1, :, -1, 3])
    assert_close(edited.z[2, :, -1, 0], replacement[2, :, -1, 0])
    assert_close(edited.z[:, :, :-1], clean.z[:, :, :-1])  # causal: earlier positions see nothing of it
    assert_close(edited.z[1, :, -1, :3], clean.z[1, :, -1, :3])
    assert np.abs(edited.logits[:, -1] - clean.logits[:, -1]).max() > 1e-2


def test_a_head_is_the_slice_before_the_output_projection(model: Transformer):
    """The trap: zeroing a d_head-wide slice of what W_O returns ablates no head."""
    c = model.config
    block = jax.tree.map(lambda leaf: leaf[0], model.blocks)
    z = model(TOKENS, return_z=True).z[0]
    ablated = block.attn.output(z.at[:, :, 0].set(0))
    after = block.attn.output(z).at[:, :, : c.d_head].set(0)
    assert_close(ablated, block.attn.output(z) - z[:, :, 0] @ model.W_O[0, 0])
    assert np.abs(ablated - after).max() > 0.1 * np.abs(ablated).max()


def test_left_padding_changes_no_prompt(model: Transformer):
    clean = model(TOKENS, return_z=True)
    padded = jnp.concatenate([jnp.full((2, 4), 7, TOKENS.dtype), TOKENS], axis=1)
    mask = jnp.arange(15)[None, :] >= jnp.array([4, 4])[:, None]
    output = model(padded, mask=mask, return_z=True)
    assert_close(output.logits[:, 4:], clean.logits)
    assert_close(output.z[:, :, 4:], clean.z)


def test_gradient_with_respect_to_the_gain_is_the_effect_of_a_small_change(model: Transformer):
    c = model.config
    edit = HeadEdit.ablate(c, [], n_positions=11)

    def answer_logit(gain: jax.Array) -> jax.Array:
        return model(TOKENS, edit=edit._replace(gain=gain)).logits[:, -1, 5].sum()

    gradient = jax.grad(answer_logit)(edit.gain)
    at = np.unravel_index(jnp.abs(gradient).argmax(), gradient.shape)
    step = 0.01
    difference = answer_logit(edit.gain.at[at].add(step)) - answer_logit(edit.gain.at[at].add(-step))
    np.testing.assert_allclose(gradient[at], difference / (2 * step), rtol=2e-2)


def test_depth_costs_no_tracing():
    """A 48-layer model's program is as long as a 4-layer one's."""

    def program(n_layers: int) -> int:
        config = dataclasses.replace(LLAMA, n_layers=n_layers)
        model = nnx.eval_shape(lambda: Transformer(config, rngs=nnx.Rngs(0)))
        jaxpr = jax.make_jaxpr(lambda m: m(TOKENS, return_z=True))(model)
        return str(jaxpr).count(" = ")

    assert program(48) == program(4)


def test_compiled_once(model: Transformer, count_compiles):
    more_tokens = [(TOKENS + shift) % 53 for shift in range(1, 4)]
    model(TOKENS)
    with count_compiles() as compiled:
        for tokens in more_tokens:
            model(tokens)
    assert compiled == []
    with count_compiles() as compiled:
        model(TOKENS[:, :8])
    assert compiled  # the counter counts


def test_every_product_carries_the_config_precision(model: Transformer):
    """float32 stays float32 where a device's default matmul is less."""
    program = str(jax.make_jaxpr(lambda m: m(TOKENS, mask=jnp.ones((2, 11), bool)))(model))
    assert model.config.precision == "highest"
    assert 0 < program.count("dot_general[") == program.count("precision=(Precision.HIGHEST")


def test_parameters_round_trip(model: Transformer):
    rebuilt = build_model(model.config, model_parameters(model))
    assert_close(rebuilt(TOKENS).logits, model(TOKENS).logits)
    assert ModelConfig.from_json(model.config.to_json()) == model.config


def test_llama3_rotary_scaling_keeps_stretches_and_interpolates():
    plain = rotary_frequencies(Rotary(128, 500000.0))
    scaled = rotary_frequencies(Rotary(128, 500000.0, Llama3Scaling(8.0, 1.0, 4.0, 8192)))
    wavelengths = 2 * np.pi / plain
    np.testing.assert_array_equal(scaled[wavelengths < 8192 / 4], plain[wavelengths < 8192 / 4])
    np.testing.assert_array_equal(scaled[wavelengths > 8192], plain[wavelengths > 8192] / 8)
    between = (wavelengths > 8192 / 4) & (wavelengths < 8192)
    assert between.any()
    assert ((scaled < plain) & (scaled > plain / 8))[between].all()


def test_bfloat16_parameters_stay_close_to_float32():
    model = informative_model(LLAMA)
    half = build_model(LLAMA, {k: v.astype(jnp.bfloat16) for k, v in model_parameters(model).items()})
    output = half(TOKENS, return_z=True)
    assert output.z.dtype == jnp.bfloat16
    assert_close(output.logits.astype(jnp.float32), model(TOKENS).logits, "bfloat16")


@pytest.mark.parametrize("label", ["L9H6", "9.6", "(9, 6)", (9, 6), "l9h6", " 9.6 "])
def test_head_labels(label):
    assert Head.parse(label) == Head(9, 6)
    assert str(Head.parse(label)) == "L9H6"


@pytest.mark.parametrize("label", ["9", "L9", "H6L9", "9,6", "", "L9H6H7"])
def test_unreadable_head_labels_are_refused(label):
    with pytest.raises(InputError, match="a head is written L9H6"):
        Head.parse(label)


def test_a_head_the_model_does_not_have_is_refused():
    with pytest.raises(InputError, match="3 layers of 5 heads; got L3H0"):
        HeadEdit.ablate(GPT2, ["L3H0"], n_positions=11)
