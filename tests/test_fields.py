"""config.json: fields of real checkpoints, defaults held against transformers, refusals by name."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import transformers
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

import headjax
from checkpoints_convert import convert
from checkpoints_convert.engine import open_source, read_source_config
from checkpoints_convert.fields import NO_EFFECT, OFF
from headjax.config import LinearScaling, ModelConfig, Rotary, YarnScaling
from headjax.errors import InputError
from headjax.model.rotary import rotary_frequencies
from headjax.parameters.cache import ensure_converted
from headjax.parameters.converted import read_config, read_provenance
from tests.helpers import torch_oracle

ROOT = Path(__file__).resolve().parents[1]
# What every config.json gives, and nothing else: sizes that differ from each other and from every default.
SIZES = {
    "gpt2": {"n_embd": 24, "n_head": 3, "n_layer": 2, "vocab_size": 31},
    "gpt_neox": {
        "hidden_size": 64, "num_attention_heads": 2, "num_hidden_layers": 3, "intermediate_size": 70,
        "vocab_size": 31,
    },
    "phi": {
        "hidden_size": 64, "num_attention_heads": 2, "num_hidden_layers": 3, "intermediate_size": 70,
        "vocab_size": 31,
    },
    "llama": {
        "hidden_size": 64, "num_attention_heads": 2, "num_hidden_layers": 3, "intermediate_size": 70,
        "vocab_size": 31,
    },
    "qwen2": {
        "hidden_size": 64, "num_attention_heads": 2, "num_hidden_layers": 3, "intermediate_size": 70,
        "vocab_size": 31, "num_key_value_heads": 2,
    },
    "qwen3": {
        "hidden_size": 64, "num_attention_heads": 2, "num_hidden_layers": 3, "intermediate_size": 70,
        "vocab_size": 31, "num_key_value_heads": 2,
    },
    "mistral": {
        "hidden_size": 64, "num_attention_heads": 2, "num_hidden_layers": 3, "intermediate_size": 70,
        "vocab_size": 31, "num_key_value_heads": 2,
    },
    **{
        family: {
            "hidden_size": 64, "num_attention_heads": 2, "num_hidden_layers": 3, "intermediate_size": 70,
            "vocab_size": 31, "num_key_value_heads": 2,
        }
        for family in ("phi3", "gemma", "gemma2", "gemma3_text", "olmo2", "olmo3")
    },
    "gptj": {"n_embd": 256, "n_head": 2, "n_layer": 3, "vocab_size": 31},
    "gpt_neo": {"hidden_size": 64, "num_heads": 2, "num_layers": 24, "vocab_size": 31},
    "opt": {"hidden_size": 64, "num_attention_heads": 2, "num_hidden_layers": 3, "vocab_size": 31},
}  # fmt: skip
THEIRS = {
    "gpt2": transformers.GPT2Config,
    "gpt_neox": transformers.GPTNeoXConfig,
    "phi": transformers.PhiConfig,
    "llama": transformers.LlamaConfig,
    "qwen2": transformers.Qwen2Config,
    "qwen3": transformers.Qwen3Config,
    "mistral": transformers.MistralConfig,
    "phi3": transformers.Phi3Config,
    "gemma": transformers.GemmaConfig,
    "gemma2": transformers.Gemma2Config,
    "gemma3_text": transformers.Gemma3TextConfig,
    "olmo2": transformers.Olmo2Config,
    "olmo3": transformers.Olmo3Config,
    "gptj": transformers.GPTJConfig,
    "gpt_neo": transformers.GPTNeoConfig,
    "opt": transformers.OPTConfig,
}


@pytest.fixture
def read(tmp_path: Path):
    """What the converter reads from a config.json with these fields: sizes, and the family's switches."""

    def reading(model_type: str, ignore_fields=(), **fields) -> tuple[ModelConfig, dict[str, bool]]:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type} | fields))
        return read_source_config(tmp_path, ignore_fields)[1:]

    return reading


# --- defaults -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", THEIRS)
def test_a_field_that_is_absent_has_transformers_default(family: str, read):
    """transformers writes every default out; without them we must read the same."""
    explicit = THEIRS[family](**SIZES[family]).to_dict()
    explicit.pop("model_type")
    assert len(explicit) > len(SIZES[family]) + 8
    bare = read(family, **SIZES[family])
    assert bare == read(family, **explicit)
    config, switches = bare
    theirs = THEIRS[family](**SIZES[family])
    assert config.max_positions == theirs.max_position_embeddings
    assert config.tied_embeddings == theirs.tie_word_embeddings
    assert config.n_kv_heads == getattr(theirs, "num_key_value_heads", None) or config.n_heads
    eps = ("layer_norm_epsilon", "layer_norm_eps", "rms_norm_eps")
    # OPT's is that of torch's layer norm.
    assert config.norm_eps == next((getattr(theirs, name) for name in eps if hasattr(theirs, name)), 1e-5)
    if family == "gptj":
        assert config.rotary == Rotary(theirs.rotary_dim, 10_000.0)
    elif config.rotary is not None:
        both = theirs.rope_parameters
        of_kind = both if config.rotary_in_window else {"full_attention": both}
        ours = {"full_attention": config.rotary, "sliding_attention": config.rotary_in_window}
        for kind, rope in of_kind.items():
            assert ours[kind].theta == rope["rope_theta"]
            assert ours[kind].dim == config.d_head * rope.get("partial_rotary_factor", 1)
            assert ours[kind].scaling is None
    if hasattr(theirs, "layer_types"):
        window = {"full_attention": None, "sliding_attention": theirs.sliding_window}
        assert config.windows == tuple(window[kind] for kind in theirs.layer_types)
    scalar = getattr(theirs, "query_pre_attn_scalar", None)
    assert config.score_scale == (1.0 if family == "gpt_neo" else scalar and scalar**-0.5)
    assert config.logit_cap == getattr(theirs, "final_logit_softcapping", None)
    assert config.soft_cap == getattr(theirs, "attn_logit_softcapping", None)
    for name, on in switches.items():
        assert on == getattr(theirs, name)


@pytest.mark.parametrize("family", THEIRS)
def test_no_default_is_taken_where_a_field_is_given(family: str, read):
    """Every field that has a default is read, and changes what is read."""
    bare = read(family, **SIZES[family])
    llama_like = {
        "max_position_embeddings": 99, "rms_norm_eps": 0.5, "rope_theta": 77.0, "hidden_act": "relu",
        "tie_word_embeddings": True, "num_key_value_heads": 1,
    }  # fmt: skip
    gemma = {name: value for name, value in llama_like.items() if name != "hidden_act"} | {
        "hidden_activation": "relu", "tie_word_embeddings": False, "head_dim": 16, "attention_bias": True,
    }  # fmt: skip
    others = {
        "gpt2": {
            "n_inner": 50, "n_positions": 99, "layer_norm_epsilon": 0.5, "activation_function": "gelu",
            "tie_word_embeddings": False, "scale_attn_by_inverse_layer_idx": True,
        },
        "gpt_neox": {
            "max_position_embeddings": 99, "layer_norm_eps": 0.5, "rotary_pct": 0.5, "rotary_emb_base": 77.0,
            "hidden_act": "relu", "use_parallel_residual": False, "tie_word_embeddings": True,
            "attention_bias": False,
        },
        "phi": {
            "max_position_embeddings": 99, "layer_norm_eps": 0.5, "partial_rotary_factor": 0.25,
            "rope_theta": 77.0, "hidden_act": "relu", "tie_word_embeddings": True, "num_key_value_heads": 1,
            "head_dim": 16,
        },
        "llama": {
            "max_position_embeddings": 99, "rms_norm_eps": 0.5, "rope_theta": 77.0, "hidden_act": "relu",
            "tie_word_embeddings": True, "num_key_value_heads": 1, "head_dim": 16, "attention_bias": True,
            "mlp_bias": True,
        },
        "mistral": {**llama_like, "sliding_window": None, "head_dim": 16},
        "qwen2": llama_like,
        "qwen3": {**llama_like, "head_dim": 16, "attention_bias": True},
        "phi3": {**llama_like, "head_dim": 16, "sliding_window": 7, "partial_rotary_factor": 0.5},
        "gemma": {**llama_like, "tie_word_embeddings": False, "head_dim": 16, "attention_bias": True},
        "gemma2": {
            **gemma, "query_pre_attn_scalar": 99, "attn_logit_softcapping": 7.0, "sliding_window": 7,
            "final_logit_softcapping": None, "layer_types": ["full_attention"] * 3,
        },
        "gemma3_text": {
            **gemma, "query_pre_attn_scalar": 99, "final_logit_softcapping": 8.0, "sliding_window": 7,
            "sliding_window_pattern": 2, "rope_local_base_freq": 78.0,
        },
        "olmo2": {**llama_like, "attention_bias": True, "head_dim": 16},
        "olmo3": {
            **llama_like, "rope_theta": 500_000, "attention_bias": True, "head_dim": 16, "sliding_window": 7,
            "rope_parameters": {"sliding_attention": {"rope_type": "default", "rope_theta": 77.0}},
        },
        "gptj": {
            "n_inner": 50, "n_positions": 99, "layer_norm_epsilon": 0.5, "activation_function": "gelu",
            "tie_word_embeddings": True, "rotary_dim": 32,
        },
        "gpt_neo": {
            "intermediate_size": 50, "max_position_embeddings": 99, "layer_norm_epsilon": 0.5,
            "activation_function": "gelu", "tie_word_embeddings": False, "window_size": 7,
            "attention_types": [[["global"], 24]],
        },
        "opt": {
            "ffn_dim": 50, "max_position_embeddings": 99, "activation_function": "gelu", "enable_bias": False,
            "tie_word_embeddings": False,
        },
    }  # fmt: skip
    others["olmo3"].pop("rope_theta")  # stands in rope_parameters
    readings = [read(family, **SIZES[family] | {name: value}) for name, value in others[family].items()]
    assert all(reading != bare for reading in readings)
    assert len({str(reading) for reading in readings}) == len(readings)


# --- fields of checkpoints that people have -----------------------------------------------------------

# (family, what the config.json of such a checkpoint has beside sizes) -> what is read from it.
FINE_TUNES = {
    "SmolLM2": (
        "llama",
        {
            "_model_name_or_path": "Smollm2 135M", "is_llama_config": True, "rope_interleaved": False,
            "rope_scaling": None, "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}},
            "unk_token_id": 0, "pretraining_tp": 1, "rope_theta": 100000,
        },
        {"rotary": Rotary(32, 1e5)},
    ),
    "unsloth": (
        "llama",
        {
            "unsloth_fixed": True, "unsloth_version": "2025.3.19", "_attn_implementation_autoset": True,
            "pad_token_id": 128004, "quantization_config": None, "tie_word_embeddings": True,
        },
        {"tied_embeddings": True},
    ),
    "Vicuna 16k": (
        "llama",
        {
            "max_sequence_length": 16384, "rope_scaling": {"factor": 4.0, "type": "linear"},
            "temperature": 0.9, "top_p": 0.6, "_flash_attn_2_enabled": True,
        },
        {"rotary": Rotary(32, 10000.0, LinearScaling(4.0))},
    ),
    "Yarn-Llama-2": (
        "llama",
        {
            "max_position_embeddings": 65536,
            "rope_scaling": {
                "factor": 16.0, "original_max_position_embeddings": 4096, "type": "yarn", "finetuned": True,
            },
            "auto_map": {"AutoModelForCausalLM": "modeling_llama_together_yarn.LlamaForCausalLM"},
        },
        {"rotary": Rotary(32, 10000.0, YarnScaling(16.0, 32.0, 1.0, 4096, 1 + 0.1 * np.log(16.0), True))},
    ),
    "a Qwen in Llama's clothes": (
        "llama",
        {
            "use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 21,
            "layer_types": ["full_attention"] * 3, "attention_bias": False, "use_mup": False,
        },
        {},
    ),
    "distilgpt2": (
        "gpt2",
        {
            "_num_labels": 1, "id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}, "n_ctx": 1024,
            "summary_type": "cls_index", "summary_use_proj": True, "summary_activation": None,
            "task_specific_params": {"text-generation": {"do_sample": True}}, "gradient_checkpointing": False,
            "output_past": True, "tokenizer_class": "GPT2Tokenizer", "prefix": None, "xla_device": None,
        },
        {},
    ),
    "Stanford's GPT-2": (
        "gpt2",
        {"scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True},
        {"scores_by_layer": True},
    ),
    "Dolly": (
        "gpt_neox",
        {
            "custom_pipelines": {"text-generation": {"impl": "instruct_pipeline.P", "pt": "AutoModel"}},
            "hidden_dropout_prob": 0, "attention_probs_dropout_prob": 0, "rotary_emb_base": 10000,
            "use_parallel_residual": True, "head_dim": 32,
        },
        {},
    ),
    "Phi-1.5": (
        "phi",
        {
            "auto_map": {"AutoConfig": "configuration_phi.PhiConfig"}, "embd_pdrop": 0.0, "resid_pdrop": 0.0,
            "num_key_value_heads": None, "qk_layernorm": False, "rope_scaling": None,
        },
        {},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FINE_TUNES)
def test_fine_tunes_are_read_as_they_come(name: str, read):
    family, fields, expected = FINE_TUNES[name]
    config, _ = read(family, **SIZES[family], **fields)
    bare, _ = read(family, **SIZES[family])
    changed = {
        key: value
        for key, value in vars(config).items()
        if value != getattr(bare, key) and key != "max_positions"
    }
    assert changed == expected


def test_fields_without_effect_change_nothing(read):
    names = [name.replace("*", "x") for name in NO_EFFECT]
    assert len(set(names)) == len(names)
    for family, sizes in SIZES.items():
        used = {"model_type"}
        anything = {name: {"whatever": [1, "2"]} for name in names if name not in used}
        assert read(family, **sizes, **anything) == read(family, **sizes)


# Which values leave a feature off, stated a second time: what is called off is not looked at again.
LEFT_OFF = """
    "add_bias_linear": (False,),
    "add_cross_attention": (False,),
    "alibi": (False,),
    "attention_bias": (False,),
    "attn_logit_softcapping": (0,),
    "embedding_multiplier": (1,),
    "final_logit_softcapping": (0,),
    "is_causal": (True,),
    "is_encoder_decoder": (False,),
    "layer_types": ('full_attention',),
    "logit_scale": (1,),
    "logits_scaling": (1,),
    "mlp_bias": (False,),
    "mlp_only_layers": (),
    "multi_query": (False,),
    "no_rope_layers": (1,),
    "num_experts": (0, 1),
    "num_local_experts": (0, 1),
    "per_layer_config": ({},),
    "pruned_heads": ({},),
    "qk_layernorm": (False,),
    "residual_multiplier": (1,),
    "rope_interleaved": (False,),
    "rope_traditional": (False,),
    "scale_attn_weights": (True,),
    "scale_emb": (1,),
    "use_alibi": (False,),
    "use_bidirectional_attention": (False,),
    "use_mrope": (False,),
    "use_mup": (False,),
    "use_qk_norm": (False,),
    "use_sliding_window": (False,),
"""


def test_what_leaves_a_feature_off():
    stated = (f"    {json.dumps(name)}: {value!r},\n" for name, value in OFF.items())
    assert "".join(stated) == LEFT_OFF.lstrip("\n")


@pytest.mark.parametrize("name", sorted(OFF))
def test_a_feature_we_lack_is_refused_unless_it_is_off(name: str, read):
    family = "mistral" if name in ("attention_bias", "mlp_bias") else "llama"  # which has those
    sizes = SIZES[family]
    bare = read(family, **sizes)
    for value in OFF[name]:
        assert read(family, **sizes, **{name: value}) == bare
        assert read(family, **sizes, **{name: [value] * 3}) == bare
    on = ["sliding_attention"] if name == "layer_types" else 17
    with pytest.raises(InputError, match=rf"ignore_fields={name} treats it as absent; got {name}=.*17|slid"):
        read(family, **sizes, **{name: on})
    assert read(family, (name,), **sizes, **{name: on}) == bare


def test_a_field_of_another_architecture_is_only_taken_where_it_says_the_same(read):
    for family in ("gpt2", "gpt_neox"):
        bare, _ = read(family, **SIZES[family])
        for name, size in (("head_dim", bare.d_head), ("num_key_value_heads", bare.n_heads)):
            assert read(family, **SIZES[family], **{name: size})[0] == bare
            with pytest.raises(InputError, match=rf"got {name}={size + 1} \({size} is understood\)"):
                read(family, **SIZES[family], **{name: size + 1})


def test_a_window_is_refused_unless_it_is_switched_off(read):
    with pytest.raises(InputError, match="ignore_fields=sliding_window treats it as absent"):
        read("llama", **SIZES["llama"], sliding_window=4096)
    with pytest.raises(InputError, match="ignore_fields=sliding_window,use_sliding_window treats"):
        read("llama", **SIZES["llama"], sliding_window=4096, use_sliding_window=True)


# What config.json says of windows -> what a position sees, or why it is refused; 3 layers.
WINDOWS = {
    "mistral, no word": ("mistral", {}, 4096),
    "mistral 0.1": ("mistral", {"sliding_window": 17}, 17),
    "mistral 0.3": ("mistral", {"sliding_window": None}, None),
    "qwen2, off": (
        "qwen2",
        {"use_sliding_window": False, "sliding_window": 17, "max_window_layers": 0, "use_mrope": False},
        None,
    ),
    "qwen2, off as saved today": (
        "qwen2",
        {"use_sliding_window": False, "sliding_window": None, "layer_types": ["full_attention"] * 3},
        None,
    ),
    "qwen2, on": ("qwen2", {"use_sliding_window": True, "sliding_window": 17, "max_window_layers": 0}, 17),
    "qwen2, on for layers that there are not": (
        "qwen2", {"use_sliding_window": True, "sliding_window": 17, "max_window_layers": 3}, None
    ),
    "qwen3, on": (
        "qwen3",
        {"use_sliding_window": True, "sliding_window": 17, "layer_types": ["sliding_attention"] * 3},
        17,
    ),
    "qwen3, on without a window": (
        "qwen3", {"use_sliding_window": True, "sliding_window": None, "max_window_layers": 0}, None
    ),
}  # fmt: skip
MIXED_WINDOWS = {
    "by number": (
        {"use_sliding_window": True, "sliding_window": 17, "max_window_layers": 1}, (None, 17, 17)
    ),
    "by name": (
        {
            "use_sliding_window": True,
            "sliding_window": 17,
            "layer_types": ["full_attention", "sliding_attention", "full_attention"],
        },
        (None, 17, None),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WINDOWS)
def test_windows_of_attention(name: str, read):
    family, fields, window = WINDOWS[name]
    config, _ = read(family, **SIZES[family], **fields)
    assert config.window == window
    assert ModelConfig.from_json(config.to_json()) == config
    theirs = THEIRS[family](**SIZES[family], **fields)
    kinds = set(getattr(theirs, "layer_types", ["sliding_attention"]))
    assert window == (theirs.sliding_window if kinds == {"sliding_attention"} else None)


@pytest.mark.parametrize("name", MIXED_WINDOWS)
@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_windows_that_differ_by_layer(family: str, name: str, read):
    fields, windows = MIXED_WINDOWS[name]
    config, _ = read(family, **SIZES[family], **fields)
    assert config.window == windows
    assert ModelConfig.from_json(config.to_json()) == config
    theirs = THEIRS[family](**SIZES[family], **fields)
    kinds = {"full_attention": None, "sliding_attention": theirs.sliding_window}
    assert windows == tuple(kinds[kind] for kind in theirs.layer_types)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"layer_types": "full_attention"},
            "layer_types must be a list of 3, of full_attention and sliding_attention; got 'full",
        ),
        ({"layer_types": ["linear_attention"] * 3}, "layer_types must be a list of 3, of full_attention and"),
        ({"layer_types": ["full_attention"] * 4}, "layer_types must be a list of 3, of full_attention and"),
        (
            {"layer_types": ["sliding_attention"] * 3},
            "layer_types must be full_attention where no sliding_window is set; got",
        ),
        ({"max_window_layers": -1}, "max_window_layers must be a whole number; got -1"),
        ({"max_window_layers": 2.5}, "max_window_layers must be a whole number; got 2.5"),
        ({"use_sliding_window": True, "sliding_window": 0}, "sliding_window must be a positive integer"),
    ],
)
def test_what_is_said_of_windows_must_make_sense(fields: dict, message: str, read):
    with pytest.raises(InputError, match=message):
        read("qwen2", **SIZES["qwen2"], **fields)


def test_quantised_weights_have_their_own_sentence(read):
    for name in ("quantization_config", "quantization", "compression_config"):
        with pytest.raises(InputError, match=rf"the weights are quantised \({name}\) and must be floats"):
            read("llama", **SIZES["llama"], **{name: {"quant_method": "gptq"}})
        read("llama", (name,), **SIZES["llama"], **{name: {"quant_method": "gptq"}})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"num_hidden_layers": 2_000_000_000},
            "num_hidden_layers must be a positive integer of at most 10,000",
        ),
        (
            {"vocab_size": 10**18},
            "vocab_size must be a positive integer of at most 2,147,483,647; got 1000000",
        ),
        ({"num_attention_heads": 10**9}, "num_key_value_heads|head_dim must be a positive integer"),
        ({"rms_norm_eps": 10**400}, "rms_norm_eps must be a positive number; got 1000"),
        ({"bad": "x" * 10**6}, "got bad='xxx"),
    ],
)
def test_sizes_without_measure_are_refused_in_a_short_line(fields: dict, message: str, read):
    with pytest.raises(InputError, match=message) as caught:
        read("llama", **SIZES["llama"] | fields)
    assert len(str(caught.value)) < 800


# --- rotary embedding ---------------------------------------------------------------------------------

# rope_parameters of a Llama whose head is 32 wide and which has 512 positions.
ROPES = {
    "linear": {"rope_type": "linear", "factor": 3.5},
    "llama3": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128},
    "yarn, all the model's positions": {"rope_type": "yarn", "factor": 4.0},
    "yarn, no factor": {"rope_type": "yarn", "factor": None, "original_max_position_embeddings": 64},
    "yarn, other ramp": {"rope_type": "yarn", "factor": 4.0, "beta_fast": 7.0, "beta_slow": 0.5},
    "yarn, ramp not widened": {
        "rope_type": "yarn", "factor": 4.0, "beta_fast": 7.0, "beta_slow": 0.5, "truncate": False,
    },
    "yarn, null for the ramp's width": {
        "rope_type": "yarn", "factor": 4.0, "beta_fast": 7.0, "beta_slow": 0.5, "truncate": None,
    },
    "yarn, ramp of no width": {"rope_type": "yarn", "factor": 2.0, "beta_fast": 5000.0, "beta_slow": 4000.0},
    "yarn, own attention factor": {"rope_type": "yarn", "factor": 4.0, "attention_factor": 1.7},
    "yarn, mscale": {"rope_type": "yarn", "factor": 40.0, "mscale": 0.707, "mscale_all_dim": 1.3},
    "yarn, half of mscale": {"rope_type": "yarn", "factor": 40.0, "mscale": 0.707},
    "yarn, factor below one": {"rope_type": "yarn", "factor": 0.5},
}  # fmt: skip


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
@pytest.mark.parametrize("name", ROPES)
def test_rotary_frequencies_are_transformers(name: str, family: str, read):
    """By their formulas, in the new spelling and in the old one; GPT-NeoX rotates half of a head."""
    part = {} if family == "llama" else {"partial_rotary_factor": 0.5}
    sizes = SIZES[family] | {"max_position_embeddings": 512}
    rope = {"rope_theta": 900.0} | part | ROPES[name]
    theirs = THEIRS[family](**sizes, rope_parameters=dict(rope), head_dim=32)
    frequencies, factor = ROPE_INIT_FUNCTIONS[rope["rope_type"]](theirs)
    new = read(family, **sizes, rope_parameters=rope)[0].rotary
    old = dict(ROPES[name])
    outside = {"rope_theta": 900.0, "original_max_position_embeddings": None} | part
    if "factor" in old:  # which some configs give beside the object, not in it
        outside["original_max_position_embeddings"] = old.pop("original_max_position_embeddings", None)
    old["type"] = old.pop("rope_type")
    assert read(family, **sizes, **outside, rope_scaling=old)[0].rotary == new
    np.testing.assert_allclose(rotary_frequencies(new), frequencies.numpy(), rtol=3e-6)
    assert getattr(new.scaling, "attention_factor", 1.0) == pytest.approx(factor)
    config = ModelConfig.from_json(read(family, **sizes, rope_parameters=rope)[0].to_json())
    assert config.rotary == new


@pytest.mark.parametrize(
    ("rope", "message"),
    [
        ({"type": "dynamic", "factor": 2.0}, "rope_scaling.rope_type must be one of .*yarn; got 'dynamic'"),
        (
            {"type": "longrope", "short_factor": [1.0], "long_factor": [2.0]},
            "rope_scaling.long_factor must be 1 throughout: others make longrope depend on the prompt",
        ),
        (
            {"type": "su", "short_factor": [1.0], "long_factor": [1.0]},
            "rope_type must be one of .*; got 'su'",
        ),
        (
            {"type": "linear", "factor": 2.0, "alpha": 3},
            "ignore_fields=rope_scaling.alpha treats it as absent; got rope_scaling.alpha=3",
        ),
        ({"type": "linear"}, "rope_scaling.factor must be given"),
        (
            {"rope_type": "llama3", "factor": 2.0, "low_freq_factor": 4, "high_freq_factor": 4},
            "below high_freq",
        ),
        ({"rope_type": "yarn", "type": "linear", "factor": 2.0}, "rope_type and type are one field"),
        ({"rope_type": "yarn", "factor": 2.0, "rope_theta": 1}, "rope_theta must be above 1 for yarn"),
        ({"rope_type": "yarn", "factor": 2.0, "truncate": "no"}, "truncate must be true or false; got 'no'"),
        ({"rope_type": "default", "mrope_section": [1, 2]}, "got rope_scaling.mrope_section=\\[1, 2\\]"),
        ("linear", "rope_scaling|rope_parameters must be an object; got 'linear'"),
    ],
)
def test_a_rotary_embedding_that_is_not_understood_is_refused(rope: dict, message: str, read):
    with pytest.raises(InputError, match=message):
        read("llama", **SIZES["llama"], rope_scaling=rope)


def test_a_field_within_another_can_be_ignored(read):
    config, _ = read(
        "llama",
        ["rope_scaling.alpha"],
        **SIZES["llama"],
        rope_scaling={"type": "linear", "factor": 2.0, "alpha": 3},
    )
    assert config.rotary.scaling == LinearScaling(2.0)
    config, _ = read(
        "llama", ["rope_scaling"], **SIZES["llama"], rope_scaling={"type": "dynamic", "factor": 2}
    )
    assert config.rotary.scaling is None


# --- ignore_fields ------------------------------------------------------------------------------------


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    """A checkpoint with fields that are not understood."""
    directory = tmp_path / "odd"
    torch_oracle.save_model("gpt2", directory)
    file = directory / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"alibi": True, "depth": 2}))
    return directory


def test_ignored_fields_are_recorded_and_kept_apart(odd: Path, tmp_path: Path):
    cache = tmp_path / "cache"
    with pytest.raises(InputError, match="ignore_fields=alibi,depth treats it"):
        ensure_converted(odd, cache)
    with pytest.raises(InputError, match="ignore_fields=depth treats it"):
        ensure_converted(odd, cache, ["alibi"])
    ignoring = ensure_converted(odd, cache, ["depth", "alibi", "of another model"])
    assert read_provenance(ignoring)["ignored_fields"] == ["alibi", "depth"]
    made = (ignoring / "headjax.json").stat().st_mtime_ns
    assert ensure_converted(odd, cache, ("alibi", "depth")) == ignoring
    assert (ignoring / "headjax.json").stat().st_mtime_ns == made
    # With another choice it is another conversion; one that nothing was ignored for is not taken for it.
    edited = json.loads((odd / "config.json").read_text()) | {"scale_attn_by_inverse_layer_idx": True}
    (odd / "config.json").write_text(json.dumps(edited))
    every = ["alibi", "depth", "scale_attn_by_inverse_layer_idx"]
    scaled, plain = ensure_converted(odd, cache, every[:2]), ensure_converted(odd, cache, every)
    assert scaled != plain
    assert (read_config(scaled).scores_by_layer, read_config(plain).scores_by_layer) == (True, False)
    # One that was put in the other's place is not taken for it.
    convert(odd, scaled, ignore_fields=every)
    assert not read_config(scaled).scores_by_layer
    assert read_config(ensure_converted(odd, cache, every[:2])).scores_by_layer
    # A converted directory stays what it is.
    assert headjax.load_model(plain, ignore_fields=["alibi"]).config.n_layers == 3
    with pytest.raises(InputError, match="was converted with ignore_fields=alibi,depth, and must be"):
        headjax.load_model(scaled, ignore_fields=every)


def test_command_lines_take_ignore_fields(odd: Path, tmp_path: Path):
    def run(*arguments: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "checkpoints_convert", f"--model={odd}", *arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)

    refused = run(f"--out={tmp_path / 'out'}")
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "ignore_fields=alibi,depth" in refused.stderr
    done = run(f"--out={tmp_path / 'out'}", "--ignore_fields=alibi,depth")
    assert done.stdout.startswith("ignored fields: alibi, depth\n"), done.stderr


# --- sizes against tensors ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"n_layer": 10_000}, "config.json: the number of layers must be that of the tensors, 3; got 10000"),
        ({"n_layer": 4}, "config.json: the number of layers must be that of the tensors, 3; got 4"),
        (
            {"vocab_size": 10**9},
            "transformer.wte.weight in .* must be \\[1000000000, 42\\], is \\[101, 42\\]",
        ),
        (
            {"n_positions": 10**9},
            "transformer.wpe.weight in .* must be \\[1000000000, 42\\], is \\[37, 42\\]",
        ),
        ({"n_inner": 10**9}, "must be \\[42, 1000000000\\], is \\[42, 59\\] \\(layer 0, 1, 2\\)"),
        ({"n_embd": 7 * 10**8}, "must be \\[101, 700000000\\], is \\[101, 42\\]"),
    ],
)
def test_sizes_are_held_against_tensors_before_they_are_used(
    fields: dict, message: str, odd: Path, monkeypatch
):
    def never(*_):
        raise AssertionError("sizes that no tensor has confirmed")

    monkeypatch.setattr("checkpoints_convert.match.parameter_shapes", never)
    monkeypatch.setattr("checkpoints_convert.engine.parameter_shapes", never)
    edited = json.loads((odd / "config.json").read_text()) | fields
    (odd / "config.json").write_text(json.dumps(edited))
    with pytest.raises(InputError, match=message):
        open_source(odd, ["alibi", "depth"])
    with pytest.raises(InputError, match=message):
        convert(odd, odd.parent / "out", ignore_fields=["alibi", "depth"])


# --- families -----------------------------------------------------------------------------------------


def test_a_gemma_3_that_sees_is_read_as_the_part_that_reads_text(read):
    """The 4B's own config.json: what it does not say, transformers takes from its defaults."""
    text = {
        "hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text", "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024,
    }  # fmt: skip
    others = {"vision_config": {"hidden_size": 1152}, "mm_tokens_per_image": 256, "boi_token_index": 255999}
    config, _ = read("gemma3", text_config=text, **others)
    theirs = transformers.Gemma3TextConfig(**text)
    assert (config.n_heads, config.n_kv_heads, config.d_head) == (8, 4, 256)
    assert config.vocab_size == theirs.vocab_size == 262_208
    assert config.rotary == Rotary(256, 1e6, LinearScaling(8.0))
    assert config.rotary_in_window == Rotary(256, 1e4)
    assert [layer for layer in range(34) if config.windows[layer] is None] == [5, 11, 17, 23, 29]
    assert config.embedding_scale == 2560**0.5
    with pytest.raises(InputError, match=r"ignore_fields=text_config\.alibi treats it as absent"):
        read("gemma3", text_config=text | {"alibi": True}, **others)
    with pytest.raises(
        InputError, match=r"ignore_fields=text_config\.rope_scaling\.alpha treats it as absent"
    ):
        read("gemma3", text_config=text | {"rope_scaling": text["rope_scaling"] | {"alpha": 2}}, **others)


def test_the_first_files_of_gemma_say_gelu_and_mean_its_approximation(read):
    bare = read("gemma", **SIZES["gemma"])
    for fields in ({"hidden_act": "gelu"}, {"hidden_act": "gelu", "hidden_activation": None}):
        assert read("gemma", **SIZES["gemma"], **fields) == bare
    assert bare[0].activation == "gelu_tanh"


@pytest.mark.parametrize(
    ("family", "fields", "message"),
    [
        ("opt", {"do_layer_norm_before": False}, "got do_layer_norm_before=False"),
        ("opt", {"word_embed_proj_dim": 32}, r"got word_embed_proj_dim=32 \(64 is understood\)"),
        ("gptj", {"rotary_dim": 7}, "rotary_dim must be an even part of 128; got 7"),
        (
            "gpt_neo",
            {"attention_types": [[["global", "none"], 12]]},
            "must be global or local for each of 24",
        ),
        ("gpt_neo", {"attention_types": [[["global"], 10**9]]}, "must be global or local for each of 24"),
        ("olmo3", {"rope_theta": 10000.0}, "rope_theta must be 500000, or stand in rope_parameters"),
        ("gemma2", {"sliding_window": None}, "layer_types must be full_attention where no sliding_window"),
        ("gemma3_text", {"sliding_window_pattern": 0}, "sliding_window_pattern must be a positive whole"),
        ("gemma3_text", {"attn_logit_softcapping": 50.0}, "got attn_logit_softcapping=50.0"),
        (
            "phi3",
            {"rope_scaling": {"type": "longrope", "short_factor": [1.1], "long_factor": [1]}},
            "must be 1",
        ),
    ],
)
def test_what_a_family_cannot_be_is_refused(family: str, fields: dict, message: str, read):
    with pytest.raises(InputError, match=message):
        read(family, **SIZES[family], **fields)


def test_longrope_whose_factors_are_one_is_none(read):
    rope = {"type": "longrope", "short_factor": [1.0] * 16, "long_factor": [1] * 16}
    assert read("phi3", **SIZES["phi3"], rope_scaling=rope) == read("phi3", **SIZES["phi3"])
