"""Reading a Hugging Face config.json so that no field goes unnoticed.

A family reads the fields it needs; what is left over must be one that changes no number, or a feature that
is off (tables below), or null. Anything else might change the model in a way we do not know of, and is
refused by name, unless the user says by `ignore_fields` to treat it as absent.
"""

import fnmatch
import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from headjax.config import LinearScaling, Llama3Scaling, Rotary, Scaling, YarnScaling
from headjax.errors import InputError, shown

Value = TypeVar("Value")
REQUIRED: Any = object()

# transformers' names of the activations that headjax.model knows.
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}

# Fields that change no number of a forward pass, whatever they say: who made the file and how, training and
# dropout, special tokens, sampling, what is returned, how (not what) the model is computed, and what is the
# same in float32. One may end in `*`.
NO_EFFECT = """
    _attn_implementation* _commit_hash _experts_implementation _flash_attn_2_enabled _model_name_or_path
    _name_or_path _num_labels _unsloth_* architectures attn_implementation auto_map author base_model
    base_model_*_plan base_model_name_or_path custom_pipelines date_created description disable_exllama dtype
    epoch finetuned_from finetuning_task flash_attn flash_rotary fused_dense fused_mlp global_step
    is_llama_config language license max_seq_len max_seq_length max_sequence_length merge_method mergekit*
    model_max_length model_name model_type model_version n_ctx n_special pretraining_tp seq_length tags
    tensor_parallel* torch_dtype torchscript training_args* transformers.js_config transformers_version
    transformers_weights trust_remote_code unsloth_* use_bfloat16 use_flash_attention* use_flash_attn
    use_flash_rotary use_fused_* use_memory_efficient_attention use_sdpa use_unsloth use_xformers* version
    xla_device

    activation_dropout attention_dropout attention_dropout_prob attention_probs_dropout_prob attn_pdrop
    classifier_dropout dropout emb_dropout_prob embd_dropout embd_pdrop embed_dropout freeze_*
    gradient_checkpointing hidden_dropout hidden_dropout_prob init_std initializer_range layerdrop
    neftune_noise_alpha resid_dropout resid_pdrop summary_activation summary_first_dropout
    summary_hidden_size summary_proj_to_labels summary_type summary_use_proj use_gradient_checkpointing

    additional_special_tokens added_tokens* bos_token bos_token_id cls_token_id decoder_start_token_id
    eos_token eos_token_id forced_bos_token_id forced_eos_token_id mask_token_id pad_token pad_token_id
    padding_side prefix sep_token_id special_tokens* tokenizer_class tokenizer_name* tokenizer_type unk_token
    unk_token_id

    bad_words_ids begin_suppress_tokens diversity_penalty do_sample early_stopping
    encoder_no_repeat_ngram_size exponential_decay_length_penalty generation_config length_penalty max_length
    max_new_tokens min_length no_repeat_ngram_size num_beam_groups num_beams num_return_sequences
    remove_invalid_values renormalize_logits repetition_penalty suppress_tokens task_specific_params
    temperature top_k top_p typical_p

    cache_implementation chunk_size_feed_forward cross_attention_hidden_size id2label is_decoder label2id
    loss_type num_labels output_attentions output_hidden_states output_past output_scores
    predict_special_tokens problem_type return_dict return_dict_in_generate tf_legacy_loss
    tie_encoder_decoder tie_last_hidden_states use_cache

    attention_softmax_in_fp32 reorder_and_upcast_attn scale_attention_softmax_in_fp32
""".split()  # noqa: SIM905
# Features that this package lacks, with the values that leave them off; a list may hold only such values.
OFF: dict[str, tuple[Any, ...]] = {
    "add_bias_linear": (False,),
    "add_cross_attention": (False,),
    "alibi": (False,),
    "attention_bias": (False,),
    "attn_logit_softcapping": (0,),
    "embedding_multiplier": (1,),
    "final_logit_softcapping": (0,),
    "is_causal": (True,),
    "is_encoder_decoder": (False,),
    "layer_types": ("full_attention",),
    "logit_scale": (1,),
    "logits_scaling": (1,),
    "mlp_bias": (False,),
    "mlp_only_layers": (),
    "multi_query": (False,),
    "no_rope_layers": (1,),  # a number a layer; where it is 1, the layer rotates
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
}
# A feature that is off -> fields that say how it would be done.
OFF_DETAILS = {"use_sliding_window": ("sliding_window", "max_window_layers")}
# Where weights are stored in a few bits each, by one library or another.
QUANTISED = ("quantization_config", "compression_config", "quantization")
# No size of a model comes near it; what is larger would only be noticed once memory is asked for it.
MAX_SIZE = 2**31 - 1
MAX_LAYERS = 10_000
MAX_NUMBER = 1e30  # as float32 has it


def _is_off(value: Any, off: tuple[Any, ...]) -> bool:
    return all(one in off for one in value) if isinstance(value, list) else value in off


class Fields:
    """The fields of one JSON object, each taken once; `finish` refuses those that nobody took.

    A field that is null counts as absent (but for `size_or_null`), and so does one that is named in `ignored`
    (one within another as `rope_scaling.factor`). All methods raise InputError naming file and field.
    """

    def __init__(
        self, values: Mapping[str, Any], file: Path, within: str = "", ignored: Collection[str] = ()
    ):
        self.values = {
            name: value
            for name, value in values.items()
            if value is not None and within + name not in ignored
        }
        self.nulls = {name for name, value in values.items() if value is None}
        self.file = file
        self.within = within
        self.ignored = ignored
        self.taken: set[str] = set()

    def refuse(self, rule: str, got: Any) -> InputError:
        return InputError(f"{self.file}: {self.within}{rule}; got {shown(got)}")

    def take(self, *names: str, default: Any = REQUIRED) -> Any:
        """The value of a field that has several spellings; those present must agree."""
        self.taken.update(names)
        found = {name: self.values[name] for name in names if name in self.values}
        if not found:
            if default is REQUIRED:
                raise InputError(f"{self.file}: {self.within}{' or '.join(names)} must be given")
            return default
        value, *others = found.values()
        if any(other != value for other in others):
            raise self.refuse(f"{' and '.join(found)} are one field and must agree", list(found.values()))
        return value

    def size(self, *names: str, default: Any = REQUIRED, most: int = MAX_SIZE) -> int:
        value = self.take(*names, default=default)
        if type(value) is not int or not 1 <= value <= most:
            raise self.refuse(f"{names[0]} must be a positive integer of at most {most:,}", value)
        return value

    def size_or_null(self, name: str, default: int | None) -> int | None:
        """A size that a null turns off, where absent is not the same as null; None where it is off."""
        if name in self.nulls or (default is None and name not in self.values):
            self.taken.add(name)
            return None
        return self.size(name, default=default)

    def number(self, *names: str, default: Any = REQUIRED) -> Any:
        """A positive number as a float, or the default, which may be None."""
        value = self.take(*names, default=default)
        if value is None:
            return None
        if type(value) not in (int, float) or not 0 < value < MAX_NUMBER:
            raise self.refuse(f"{names[0]} must be a positive number", value)
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        value = self.take(name, default=default)
        if type(value) is not bool:
            raise self.refuse(f"{name} must be true or false", value)
        return value

    def choice(self, *names: str, table: Mapping[str, Value], default: Any = REQUIRED) -> Value:
        value = self.take(*names, default=default)
        if not isinstance(value, str) or value not in table:
            raise self.refuse(f"{names[0]} must be one of {', '.join(table)}", value)
        return table[value]

    def inner(self, *names: str) -> "Fields":
        """The fields of a nested object (of the first spelling that is given); none where absent."""
        value = self.take(*names, default={})
        if not isinstance(value, dict):
            raise self.refuse(f"{names[0]} must be an object", value)
        given = next((name for name in names if name in self.values), names[0])
        return Fields(value, self.file, f"{self.within}{given}.", self.ignored)

    def finish(
        self,
        no_effect: Iterable[str] = NO_EFFECT,
        off: Mapping[str, tuple[Any, ...]] = OFF,
        **more_off: Any,
    ) -> None:
        """Refuses every field that nobody took, unless it has no effect or says that a feature is off.

        Args:
          no_effect: names, or their beginnings and a `*`.
          off: name -> the values that leave a feature off.
          more_off: name -> the only value that is allowed.
        """
        off = {**off, **{name: (value,) for name, value in more_off.items()}}
        left = {name: value for name, value in self.values.items() if name not in self.taken}
        known = re.compile("|".join(map(fnmatch.translate, no_effect)))
        details = [
            detail
            for name, details in OFF_DETAILS.items()
            if name in left and _is_off(left[name], off.get(name, ()))
            for detail in details
        ]
        wrong = {
            name: value
            for name, value in left.items()
            if not (known.match(name) or name in details or (name in off and _is_off(value, off[name])))
        }
        for name in QUANTISED:
            if name in wrong:
                raise self.refuse(
                    f"the weights are quantised ({name}) and must be floats: take the model that they were "
                    f"made from; ignore_fields={name} is for a file whose weights are floats all the same",
                    wrong[name],
                )
        if wrong:
            got = (
                f"{self.within}{name}={shown(value)}"
                + (f" ({shown(off[name][0])} is understood)" if off.get(name) else "")
                for name, value in sorted(wrong.items())
            )
            names = ",".join(f"{self.within}{name}" for name in sorted(wrong))
            raise InputError(
                f"{self.file}: a field that is not understood may change the model; "
                f"ignore_fields={names} treats it as absent; got {', '.join(got)}"
            )


def read_rotary(
    fields: Fields,
    d_head: int,
    max_positions: int,
    default_fraction: float = 1.0,
    default_theta: float = 10000.0,
) -> Rotary:
    """The rotary embedding in any of its spellings.

    Since transformers 5 all of it is in `rope_parameters`; before, base and fraction were fields of
    their own (for GPT-NeoX under other names) and `rope_scaling` held the rest.
    """
    rope = fields.inner("rope_parameters", "rope_scaling")
    for name, spellings in {
        "rope_theta": ("rope_theta", "rotary_emb_base"),
        "partial_rotary_factor": ("partial_rotary_factor", "rotary_pct"),
        "original_max_position_embeddings": ("original_max_position_embeddings",),
    }.items():
        outside = fields.take(*spellings, default=None)
        if outside is not None and rope.values.setdefault(name, outside) != outside:
            rule = f"{name} must agree with the field outside, {shown(outside)}"
            raise rope.refuse(rule, rope.values[name])
    return _read_rope(rope, d_head, max_positions, default_fraction, default_theta)


def read_rotaries(
    fields: Fields, d_head: int, max_positions: int, theta: float, theta_in_window: float
) -> tuple[Rotary, Rotary]:
    """The rotary embeddings of layers that see everything and of those that see a window.

    Since transformers 5 `rope_parameters` has one for each kind of layer; before, `rope_theta` and
    `rope_scaling` were those of the former, `rope_local_base_freq` the base of the latter. `theta` and
    `theta_in_window` are the bases where nothing is said.
    """
    kinds = fields.inner("rope_parameters")
    old = fields.inner("rope_scaling"), fields.take("rope_theta", default=None)
    local = fields.number("rope_local_base_freq", default=theta_in_window)
    full, in_window = kinds.inner("full_attention"), kinds.inner("sliding_attention")
    kinds.finish((), {})
    if old[0].values or old[1] is not None:
        if full.values:
            raise fields.refuse("rope_parameters must stand for rope_theta and rope_scaling", full.values)
        full = old[0]
        if old[1] is not None:
            full.values.setdefault("rope_theta", old[1])
    how = d_head, max_positions, 1.0
    return _read_rope(full, *how, theta), _read_rope(in_window, *how, local)


def _read_rope(
    rope: Fields, d_head: int, max_positions: int, default_fraction: float, default_theta: float
) -> Rotary:
    read_scaling = rope.choice("rope_type", "type", table=SCALINGS, default="default")
    theta = rope.number("rope_theta", default=default_theta)
    fraction = rope.number("partial_rotary_factor", default=default_fraction)
    dim = int(d_head * fraction)
    if dim % 2 or not 0 < dim <= d_head:
        raise rope.refuse(f"partial_rotary_factor must rotate an even part of {d_head}", fraction)
    scaling = read_scaling(rope, max_positions)
    if isinstance(scaling, YarnScaling) and theta <= 1:
        raise rope.refuse("rope_theta must be above 1 for yarn", theta)
    # Only some kinds have a use for it; `finetuned` says how the model was made.
    rope.finish(no_effect=("finetuned", "original_max_position_embeddings"), off={})
    return Rotary(dim=dim, theta=theta, scaling=scaling)


def read_window(
    fields: Fields, n_layers: int, window: int | None, default: Sequence[str]
) -> int | tuple[int | None, ...] | None:
    """The window of all layers, or of each, as `layer_types` says; `default` are those where it says nothing.

    Raises InputError for kinds of layers that there are not, and for a window that has no size.
    """
    kinds = fields.take("layer_types", default=None)
    kinds = list(default) if kinds is None else kinds
    known = ("full_attention", "sliding_attention")
    if not isinstance(kinds, list) or len(kinds) != n_layers or any(kind not in known for kind in kinds):
        raise fields.refuse(f"layer_types must be a list of {n_layers}, of {' and '.join(known)}", kinds)
    if window is None and known[1] in kinds:
        raise fields.refuse("layer_types must be full_attention where no sliding_window is set", kinds)
    windows = tuple(window if kind == known[1] else None for kind in kinds)
    return windows[0] if len(set(windows)) == 1 else windows


def _linear(rope: Fields, _max_positions: int) -> LinearScaling:
    return LinearScaling(factor=rope.number("factor"))


def _llama3(rope: Fields, max_positions: int) -> Llama3Scaling:
    scaling = Llama3Scaling(
        factor=rope.number("factor"),
        low_freq_factor=rope.number("low_freq_factor"),
        high_freq_factor=rope.number("high_freq_factor"),
        original_max_positions=rope.size("original_max_position_embeddings", default=max_positions),
    )
    if scaling.low_freq_factor >= scaling.high_freq_factor:
        rule = f"low_freq_factor must be below high_freq_factor, {scaling.high_freq_factor}"
        raise rope.refuse(rule, scaling.low_freq_factor)
    return scaling


def _yarn(rope: Fields, max_positions: int) -> YarnScaling:
    """As transformers reads it: two fields `mscale` take the place of the paper's factor, both or none."""

    def by_length(mscale: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1

    original = rope.size("original_max_position_embeddings", default=max_positions)
    factor = rope.number("factor", default=max_positions / original)
    mscale, all_dim = rope.number("mscale", default=None), rope.number("mscale_all_dim", default=None)
    attention_factor = by_length(mscale) / by_length(all_dim) if mscale and all_dim else by_length(1)
    return YarnScaling(
        factor=factor,
        beta_fast=rope.number("beta_fast", default=32.0),
        beta_slow=rope.number("beta_slow", default=1.0),
        original_max_positions=original,
        attention_factor=rope.number("attention_factor", default=attention_factor),
        # With null transformers does not widen the ramp, without the field it does.
        truncate="truncate" not in rope.nulls and rope.flag("truncate", default=True),
    )


def _longrope(rope: Fields, max_positions: int) -> None:
    """LongRoPE depends on the length of the prompt, unless all its factors are 1."""
    for name in ("short_factor", "long_factor"):
        factors = rope.take(name)
        if not isinstance(factors, list) or any(factor != 1 for factor in factors):
            raise rope.refuse(
                f"{name} must be 1 throughout: others make longrope depend on the prompt", factors
            )
    if rope.size("original_max_position_embeddings", default=max_positions) != max_positions:
        rule = f"original_max_position_embeddings must be {max_positions}, the model's, for longrope"
        raise rope.refuse(rule, rope.values["original_max_position_embeddings"])


# `rope_type` -> what reads its fields. Dynamic scaling depends on the length of the prompt, and is not among
# them.
SCALINGS: dict[str, Callable[[Fields, int], Scaling | None]] = {
    "default": lambda _rope, _max_positions: None,
    "linear": _linear,
    "llama3": _llama3,
    "longrope": _longrope,
    "yarn": _yarn,
}
