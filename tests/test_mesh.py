"""Eight devices give what one gives: every sweep, every family, head counts that divide and that do not."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from headjax.analyses import relation_scores as static
from headjax.analyses.attention_patterns import attention_patterns
from headjax.analyses.dynamic_scores import dynamic_scores
from headjax.analyses.gradient_attribution import gradient_attribution
from headjax.analyses.head_ablation import head_ablation
from headjax.analyses.logit_attribution import logit_attribution
from headjax.analyses.path_patching import Receiver, direct_effects, path_patching
from headjax.analyses.relation_scores import relation_scores
from headjax.engine import variants
from headjax.engine.curves import ablation_curves
from headjax.engine.hits import screening_stages
from headjax.engine.mesh import WHOLE, make_mesh, parameter_sharding, place
from headjax.engine.replacement import find_replacement
from headjax.engine.variant_step import variant_step
from headjax.errors import InputError
from headjax.model import Transformer, model_parameters
from tests.helpers import torch_oracle
from tests.helpers.meshes import assert_same, on_mesh
from tests.helpers.models import CONFIGS, LLAMA, informative_model
from tests.helpers.random_prompts import random_prompts
from tests.helpers.relation_oracle import RULE, random_weights, some_relations
from tests.helpers.twins import twins

# Everything that can be split is: heads, key/value heads, MLP hidden units, vocabulary.
EVEN = dataclasses.replace(LLAMA, n_heads=8, n_kv_heads=4, d_mlp=44, vocab_size=212)


HEADS_RANKED = np.arange(1, 1 + EVEN.n_layers * EVEN.n_heads).reshape(EVEN.n_layers, EVEN.n_heads) / 100


def prompts_of(model: Transformer):
    corrupted = random_prompts(model.config.vocab_size, seed=1)
    return dataclasses.replace(random_prompts(model.config.vocab_size), corrupted=corrupted.tokens)


SWEEPS = {
    "zero ablation": head_ablation,
    "ablation, last position": lambda model, prompts: head_ablation(model, prompts, ablation="mean"),
    "ablation, all positions": lambda model, prompts: head_ablation(
        model, prompts, ablation="resample", positions="all", variant_batch=5
    ),
    "dynamic scores": lambda model, prompts: (
        dynamic_scores(model, prompts, np.full(len(prompts.tokens), 9, np.int32)).scores
    ),
    "logit attribution": lambda model, prompts: logit_attribution(model, prompts, metric="logit_diff"),
    "gradient attribution": lambda model, prompts: gradient_attribution(
        model,
        prompts,
        metric="logprob",
        positions="last",
        replacement=find_replacement(model, prompts, "resample", positions="last"),
    ),
    "direct effects": direct_effects,
    "paths to the logits": path_patching,
    "paths to receivers": lambda model, prompts: path_patching(
        model, prompts, (Receiver.parse("L1H3.k"), Receiver.parse("L2H1.q")), variant_batch=5
    ),
    "ablation curves": lambda model, prompts: [
        values
        for values in jax.tree.leaves(
            ablation_curves(model, prompts, {"capitals": HEADS_RANKED}, max_heads=3, n_random_draws=1)
        )
        if isinstance(values, np.ndarray)
    ],
    "attention patterns": lambda model, prompts: attention_patterns(model, prompts.tokens, prompts.mask),
}
# Of the families, head counts divide by neither, by one of query and key/value heads, or are 5 on 2.
CASES = [
    *((name, None, {"data": 2, "model": 4}) for name in SWEEPS if name != "zero ablation"),
    *(("zero ablation", family, {"data": 4, "model": 2}) for family in torch_oracle.FAMILIES),
    ("zero ablation", None, {"data": 8, "model": 1}),
]


@pytest.mark.parametrize(("name", "family", "shape"), CASES)
def test_eight_devices_do_what_one_does(name, family, shape):
    model = informative_model(EVEN) if family is None else twins(family)[0]
    prompts = prompts_of(model)
    spread_out = on_mesh(model, shape)
    assert len(spread_out.W_E.devices()) == 8
    assert_same(SWEEPS[name](spread_out, prompts), SWEEPS[name](model, prompts))


def test_heads_that_no_number_of_devices_divides():
    """14 query heads on 2 key/value heads, as Qwen2.5 0.5B has, of which 4 devices share a copy."""
    config = dataclasses.replace(CONFIGS["llama"], n_heads=14, n_kv_heads=2)
    model = informative_model(config)
    prompts = prompts_of(model)
    for shape in ({"data": 2, "model": 4}, {"data": 4, "model": 2}):
        assert_same(head_ablation(on_mesh(model, shape), prompts), head_ablation(model, prompts))


def test_few_prompts_share_the_devices_by_variants(monkeypatch):
    """Three prompts on four copies of the model: each copy runs its share of the ablated heads."""
    model = informative_model(EVEN)
    prompts = random_prompts(EVEN.vocab_size, lengths=(7, 5, 6))
    rows = []

    def watched(model, clean, edit, *arguments, **static):
        rows.append(len(edit.gain))
        return variant_step(model, clean, edit, *arguments, **static)

    monkeypatch.setattr(variants, "variant_step", watched)
    spread_out = on_mesh(model, {"data": 4, "model": 2})
    sharded = head_ablation(spread_out, prompts, ablation="resample", variant_batch=6)
    assert_same(sharded, head_ablation(model, prompts, ablation="resample"))
    assert rows[0] == 2  # six variants, filled up to eight, on four copies


# --- the static sweep ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("heads", "kv_heads"), [(8, 2), (5, 5), (6, 3)])
def test_static_scores_on_eight_devices(heads, kv_heads):
    """Heads that divide, that need several layers at once, that share a key/value head between devices."""
    pairs = some_relations(2003)
    one, eight = (
        relation_scores(random_weights(heads, kv_heads, L=5)[0], pairs, RULE, mesh=mesh)
        for mesh in (None, make_mesh({"data": 2, "model": 4}))
    )
    assert_same(eight, one)


def test_devices_never_wait_for_each_other_in_the_static_sweep():
    """No collective in the compiled program, neither inside its loops nor outside of them."""
    mesh, heads, n_pairs = make_mesh({}), 8, 61
    weights, _ = random_weights(heads, 2)
    targets = np.arange(n_pairs, dtype=np.int32)
    dealt = static.deal_heads([next(weights.layers)], np.array([True] * heads), mesh)
    shared = (
        jnp.zeros((2, n_pairs, 37)),
        screening_stages(weights.unembed, targets),
        *(targets, np.zeros(n_pairs, np.int32), np.full(n_pairs, 7, np.int32)),
    )
    shared = jax.tree.map(lambda values: place(values, mesh, WHOLE), shared)
    program = static.compile_scores(mesh, 1, "highest").lower(*dealt, *shared).compile().as_text()
    assert "while(" in program
    for collective in ("all-reduce", "all-gather", "all-to-all", "collective-permute", "reduce-scatter"):
        assert collective not in program


# --- the mesh itself ----------------------------------------------------------------------------------


def test_by_default_every_device_has_its_own_prompts():
    assert dict(make_mesh(None).shape) == {"data": 8, "model": 1}


def test_an_axis_that_is_left_out_takes_the_other_devices():
    assert dict(make_mesh({"model": 4}).shape) == {"data": 2, "model": 4}


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"data": 3, "model": 2}, "a mesh must hold all 8 devices; data 3 x model 2 are 6"),
        ({"model": 3}, "a mesh must hold all 8 devices; model 3 are 3"),
        ({"heads": 8}, "a mesh has the axes data and model; got heads"),
        ({"data": 0, "model": 8}, "sizes of a mesh must be at least 1; got data 0"),
    ],
)
def test_a_mesh_that_does_not_fit_the_devices_is_refused(shape, message):
    with pytest.raises(InputError, match=message):
        make_mesh(shape)


@pytest.mark.parametrize(
    ("model_bytes", "split"),
    [(0, 1), (50, 1), (51, 2), (100, 2), (101, 4), (200, 4), (201, 8), (400, 8), (10**6, 8)],
)
def test_a_copy_of_the_model_takes_half_of_the_devices_that_hold_it(monkeypatch, model_bytes, split):
    """Devices of 100 bytes each; a model that fits nowhere is split as far as possible."""
    device = type("Device", (), {"memory_stats": lambda self: {"bytes_limit": 100}})()
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    assert dict(make_mesh(None, model_bytes).shape) == {"data": 8 // split, "model": split}


def test_one_axis_given_leaves_the_rest_to_the_other():
    assert dict(make_mesh({"data": 2}).shape) == {"data": 2, "model": 4}
    assert dict(make_mesh({"data": 8}).shape) == {"data": 8, "model": 1}
    assert make_mesh({"data": 2, "model": 4}).axis_names == ("data", "model")


# The axis along which each parameter is split over the devices of one copy; all others are whole on each.
SPLIT = {
    # Vocabulary, heads, hidden units.
    **{name: 0 for name in ("embed.W_E", "unembed.rows", "unembed.b_U")},
    **{f"blocks.attn.{name}": 2 for name in ("W_Q", "W_K", "W_V")},
    **{f"blocks.attn.{name}": 1 for name in ("W_O", "b_Q", "b_K", "b_V")},
    **{f"blocks.mlp.{name}": 2 for name in ("W_in", "W_gate")},
    **{f"blocks.mlp.{name}": 1 for name in ("W_out", "b_in", "b_gate")},
}


def test_every_parameter_is_split_where_the_work_is():
    mesh = make_mesh({"data": 2, "model": 4})
    for name, values in model_parameters(informative_model(EVEN)).items():
        spec = tuple(parameter_sharding(name, values.shape, mesh).spec)
        split = [axis for axis, part in enumerate(spec) if part is not None]
        assert split == ([SPLIT[name]] if name in SPLIT else []), name
        assert set(spec) <= {None, "model"}
        if name.startswith("blocks."):  # one layer of it lies as the stacked one does
            assert tuple(parameter_sharding(name, values.shape[1:], mesh).spec) == spec[1:], name
    odd = parameter_sharding("blocks.attn.W_Q", (3, 31, 6, 7), mesh).spec  # 6 heads on 4 devices: whole
    assert not any(odd)
