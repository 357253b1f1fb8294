"""The transformer itself: identities, edits, padding, and that depth costs no compile time."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from headjax import load_model
from headjax.analyses.attention_patterns import attention_patterns
from headjax.axes import Head
from headjax.config import Llama3Scaling, ModelConfig, Rotary
from headjax.errors import InputError
from headjax.model import Transformer, build_model, model_parameters, one_block
from headjax.model.edits import HeadEdit, check_edit
from headjax.model.rotary import rotary_frequencies
from tests.helpers.models import CONFIGS, GPT2, LLAMA, TOKENS, informative_model
from tests.helpers.tolerances import assert_close
from tests.helpers.torch_or_skip import torch


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
    assert model.W_K.shape == model.W_V.shape == (c.n_layers, c.n_heads, c.d_model, c.d_head)
    assert model.W_O.shape == (c.n_layers, c.n_heads, c.d_head, c.d_model)


def test_weights_of_a_head_are_those_that_its_output_is_made_with(model: Transformer):
    """By query head, also where query heads share keys and values: against numpy and the stored weights."""
    c, attn = model.config, model.blocks.attn
    share = c.n_heads // c.n_kv_heads
    W_Q, W_K, W_V, W_O = (np.asarray(getattr(attn, name)[...]) for name in ("W_Q", "W_K", "W_V", "W_O"))
    for layer, head in np.ndindex(c.n_layers, c.n_heads):
        values, keys = W_V[layer, :, head // share], W_K[layer, :, head // share]
        np.testing.assert_array_equal(model.W_V[layer, head], values)
        np.testing.assert_array_equal(model.W_K[layer, head], keys)
        assert_close(model.OV(layer, head), values @ W_O[layer, head])
        assert_close(model.QK(layer, head), W_Q[layer, :, head] @ keys.T)
    # A text of one token attends to itself alone: z is its value vector.
    z = model(TOKENS[:, :1], return_z=True).z[0, :, 0]
    x = jax.tree.map(lambda leaf: leaf[0], model.blocks).ln1(
        model.embed(TOKENS[:, :1], jnp.zeros((2, 1), int))
    )
    for head in range(c.n_heads):
        assert_close(z[:, head], x[:, 0] @ model.W_V[0, head] + attn.b_V[0, head // share][None])
    for accessor in (model.OV, model.QK):
        for wrong in ((0, c.n_heads), (c.n_layers, 0)):
            with pytest.raises(InputError, match=f"{c.n_layers} layers of {c.n_heads} heads"):
                accessor(*wrong)
        for wrong in ((-1, 0), (0, -1), (True, 0)):
            with pytest.raises(InputError, match="a head is written"):
                accessor(*wrong)


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


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_gain_one_is_a_no_op_to_the_last_bit(dtype: str):
    parameters = model_parameters(informative_model(LLAMA))
    model = build_model(LLAMA, {name: value.astype(dtype) for name, value in parameters.items()})
    edit = HeadEdit.ablate(LLAMA, [], n_positions=11)
    np.testing.assert_array_equal(model(TOKENS, edit=edit).logits, model(TOKENS).logits)


def test_tokens_of_any_library_are_read():
    model = informative_model(LLAMA)
    expected = model(TOKENS, mask=TOKENS >= 0).logits
    mask = np.ones((2, 11), int)
    for tokens in (np.asarray(TOKENS), np.asarray(TOKENS, np.uint8), np.asarray(TOKENS).tolist()):
        np.testing.assert_array_equal(model(tokens, mask=mask.tolist()).logits, expected)
    tensors = torch.tensor(np.asarray(TOKENS)), torch.tensor(mask)
    np.testing.assert_array_equal(model(tensors[0], mask=tensors[1]).logits, expected)
    padded = np.where(np.arange(11) < 2, -100, np.asarray(TOKENS))  # what padding holds reaches nothing
    model(padded, mask=padded >= 0)


WRONG_TOKENS = {
    "from 0 to 52, the vocabulary; got 53": [[1, 53]],
    "from 0 to 52, the vocabulary; got -1": np.array([[1, -1]]),
    "from 0 to 52, the vocabulary; got 4294967297": np.array([[2**32 + 1]]),
    "from 0 to 52, the vocabulary; got 60": jnp.array([[60]]),
    r"\[prompts, positions\].*shape \[3\]": [1, 2, 3],
    r"\[prompts, positions\].*shape \[0, 3\]": np.zeros((0, 3), int),
    r"\[prompts, positions\].*shape \[1, 0\]": [[]],
    "whole numbers, the ids of a tokenizer; got float32": np.ones((1, 3), np.float32),
    "whole numbers, the ids of a tokenizer; got bool": np.ones((1, 3), bool),
    "at most 19 tokens, the model's positions; got 20": np.zeros((1, 20), int),
    "rows of one length": [[1], [1, 2]],
    "tokens must be numbers; got 'The capital'": "The capital",
    "tokens must be numbers; got None": None,
}


@pytest.mark.parametrize("rule", WRONG_TOKENS)
def test_tokens_that_do_not_fit_are_refused(rule: str):
    model = informative_model(LLAMA)
    with pytest.raises(InputError, match=rule):
        model(WRONG_TOKENS[rule])
    with pytest.raises(InputError, match=rule):
        attention_patterns(model, WRONG_TOKENS[rule])


@pytest.mark.parametrize(
    ("mask", "rule"),
    [
        (np.ones((2, 10), bool), r"the shape of its tokens; got \[2, 10\] and \[2, 11\]"),
        (np.ones(11, bool), r"the shape of its tokens; got \[11\]"),
        (np.full((2, 11), 2), "True and False, or of 1 and 0"),
        (np.ones((2, 11), np.float32), "True and False, or of 1 and 0"),
        (np.zeros((2, 11), bool), "the mask of prompt 0 has none"),
    ],
)
def test_a_mask_that_does_not_fit_is_refused(mask, rule: str):
    with pytest.raises(InputError, match=rule):
        informative_model(GPT2)(TOKENS, mask=mask)


def test_padding_does_not_count_as_positions():
    """Twenty places, of which nineteen at most hold tokens, in a model of nineteen positions."""
    tokens, mask = np.ones((1, 20), int), np.arange(20)[None] > 0
    model = informative_model(GPT2)
    assert_close(model(tokens, mask=mask).logits[:, 1:], model(tokens[:, 1:]).logits)
    with pytest.raises(InputError, match="at most 19 tokens"):
        model(tokens, mask=np.ones((1, 20), bool))


ABLATE = {
    "'positions' must be one of last, all; got 'first'": {"positions": "first"},
    "'n_positions' must be a whole number from 1 to 19; got 0": {"n_positions": 0},
    "'n_positions' must be a whole number from 1 to 19; got 20": {"n_positions": 20},
    "'n_positions' must be a whole number from 1 to 19; got True": {"n_positions": True},
    "must be a list of heads; got the single 'L1H3'": {"heads": "L1H3"},
    "L1H3 is named twice": {"heads": ["L1H3", "1.3"]},
    "3 layers of 5 heads; got L1H5": {"heads": ["L1H5"]},
    r"a head is written .* got \(-1, 0\)": {"heads": [(-1, 0)]},
    r"replacement must be .* K=7 or 1; got float32 \[3, 1, 1, 5, 6\]": {
        "replacement": np.zeros((3, 1, 1, 5, 6), np.float32)
    },
    r"replacement must be .*; got int64 \[3, 1, 1, 1, 1\]": {"replacement": np.zeros((3, 1, 1, 1, 1), int)},
}


@pytest.mark.parametrize("rule", ABLATE)
def test_edits_that_mean_nothing_are_refused(rule: str):
    with pytest.raises(InputError, match=rule):
        HeadEdit.ablate(GPT2, **({"heads": ["L1H3"], "n_positions": 11} | ABLATE[rule]))


def test_an_edit_that_does_not_fit_the_tokens_is_refused():
    model = informative_model(GPT2)
    for_others = HeadEdit.ablate(GPT2, ["L1H3"], n_positions=7)
    with pytest.raises(InputError, match=r"gain must be .* S=11 or 1, H=5; got float32 \[3, 1, 7, 5\]"):
        model(TOKENS, edit=for_others)
    own = HeadEdit.ablate(GPT2, ["L1H3"], n_positions=11)
    with pytest.raises(InputError, match=r"replacement must be .* B=2 or 1"):
        model(TOKENS, edit=own._replace(replacement=jnp.zeros((3, 4, 1, 1, 1))))
    with pytest.raises(InputError, match=r"must be a HeadEdit.*; got 'L1H3'"):
        check_edit("L1H3", (2, 11), GPT2)
    tensor = HeadEdit.ablate(GPT2, ["L1H3"], n_positions=11, replacement=torch.zeros(3, 1, 1, 1, 1))
    np.testing.assert_array_equal(model(TOKENS, edit=tensor).logits, model(TOKENS, edit=own).logits)


@pytest.mark.parametrize(
    ("how", "rule"),
    [
        ({"dtype": "int8"}, "dtype must be one of float32, bfloat16, float16; got 'int8'"),
        ({"dtype": "double precision"}, "dtype must be one of .* got 'double precision'"),
        ({"precision": "hihgest"}, "precision must be one of highest, high, default; got 'hihgest'"),
        ({"implementation": "cuda"}, "implementation must be one of .*xla.* got 'cuda'"),
    ],
)
def test_settings_that_load_model_does_not_know_are_refused(how: dict, rule: str):
    with pytest.raises(InputError, match=rule):
        load_model("gpt2", **how)


@pytest.mark.parametrize(
    "label", ["L9H6", "9.6", "(9, 6)", (9, 6), (np.int64(9), np.uint8(6)), Head(9, 6), "l9h6", " 9.6 "]
)
def test_head_labels(label):
    assert Head.parse(label) == Head(9, 6)
    assert str(Head.parse(label)) == "L9H6"


UNREADABLE = {
    **{label: label for label in ("9", "L9", "H6L9", "9,6", "", "L9H6H7", "L-1H0", "L\u0669H\u0666")},
    "digits": "L9H" + "6" * 5000,
    "fractions": (1.5, 2),
    "negative": (-1, 2),
    "booleans": (True, np.False_),
    "huge": (10**5000, 2),
    "three": (1, 2, 3),
    "text": ("9", "6"),
    "a number": 9.6,
    "none": None,
}


@pytest.mark.parametrize("label", UNREADABLE.values(), ids=UNREADABLE)
def test_unreadable_head_labels_are_refused(label):
    with pytest.raises(InputError, match="a head is written L9H6") as refusal:
        Head.parse(label)
    assert len(str(refusal.value)) < 300


def test_a_head_the_model_does_not_have_is_refused():
    with pytest.raises(InputError, match="3 layers of 5 heads; got L3H0"):
        HeadEdit.ablate(GPT2, ["L3H0"], n_positions=11)


def test_what_a_config_says_of_its_layers_is_no_parameter():
    """Windows, rotary bases and divisors that differ by layer go along with it, and are not trained."""
    rotary = dataclasses.replace(LLAMA.rotary, theta=300.0)
    more = {"window": (4, None, 4), "rotary_in_window": rotary, "scores_by_layer": True}
    config = dataclasses.replace(LLAMA, **more)
    model = build_model(config, model_parameters(informative_model(LLAMA)))
    assert set(model_parameters(model)) == set(model_parameters(informative_model(LLAMA)))
    attn = model.blocks.attn
    np.testing.assert_array_equal(attn.window, [4, 2**30, 4])
    np.testing.assert_array_equal(attn.score_divisor, [1, 2, 3])
    np.testing.assert_array_equal(attn.frequencies[0], rotary_frequencies(rotary))
    np.testing.assert_array_equal(attn.frequencies[1], rotary_frequencies(LLAMA.rotary))
    tokens = np.arange(12).reshape(2, 6)
    slopes = jax.grad(lambda model: model(tokens).logits.sum())(model)
    for name in ("window", "frequencies", "amplitude", "score_divisor"):
        assert not np.any(getattr(slopes.blocks.attn, name))
    assert np.any(slopes.blocks.attn.W_Q)
    # One layer alone has its own.
    alone = one_block(
        config, {k: v[1] for k, v in model_parameters(model).items() if k.startswith("blocks.")}, 1
    )
    assert float(alone.attn.window[...]) == 2**30
    np.testing.assert_array_equal(alone.attn.frequencies, rotary_frequencies(LLAMA.rotary))
