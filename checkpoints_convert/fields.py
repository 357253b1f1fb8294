"""Reading a Hugging Face config.json so that no field goes unnoticed.

A family reads the fields it needs; what is left over must be one that changes no number (below), or
null. Anything else might change the model in a way we do not know of, and is refused by name.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from headjax.config import Llama3Scaling, Rotary
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

# Bookkeeping, training, tokens and sampling: whatever they say, the forward pass is the same.
IGNORED = frozenset(
    """
    _attn_implementation _attn_implementation_autoset _name_or_path _num_labels architectures
    attn_implementation auto_map bad_words_ids begin_suppress_tokens bos_token_id chunk_size_feed_forward
    classifier_dropout cross_attention_hidden_size decoder_start_token_id diversity_penalty do_sample
    dtype early_stopping encoder_no_repeat_ngram_size eos_token_id exponential_decay_length_penalty
    finetuning_task forced_bos_token_id forced_eos_token_id gradient_checkpointing id2label
    initializer_range is_decoder label2id length_penalty max_length min_length model_type
    no_repeat_ngram_size num_beam_groups num_beams num_labels num_return_sequences output_attentions
    output_hidden_states output_past output_scores pad_token_id predict_special_tokens prefix
    problem_type remove_invalid_values repetition_penalty return_dict return_dict_in_generate
    sep_token_id suppress_tokens task_specific_params temperature tf_legacy_loss tie_encoder_decoder
    tie_last_hidden_states tokenizer_class top_k top_p torch_dtype torchscript transformers_version
    typical_p use_bfloat16 use_cache
    """.split()  # noqa: SIM905
)
# Fields of every family with the only values that mean "not used".
UNUSED = {
    "add_cross_attention": (False,),
    "is_encoder_decoder": (False,),
    "per_layer_config": ({},),
    "pruned_heads": ({},),
    "quantization_config": ({},),
}


class Fields:
    """The fields of one JSON object, each taken once; `finish` refuses those that nobody took.

    A field that is null counts as absent. All methods raise InputError naming file and field.
    """

    def __init__(self, values: Mapping[str, Any], file: Path, within: str = ""):
        self.values = {name: value for name, value in values.items() if value is not None}
        self.file = file
        self.within = within
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

    def size(self, *names: str, default: Any = REQUIRED) -> int:
        value = self.take(*names, default=default)
        if type(value) is not int or value < 1:
            raise self.refuse(f"{names[0]} must be a positive integer", value)
        return value

    def number(self, *names: str, default: Any = REQUIRED) -> float:
        value = self.take(*names, default=default)
        if type(value) not in (int, float) or not 0 < value < float("inf"):
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
        return Fields(value, self.file, f"{given}.")

    def unused(self, **allowed: tuple[Any, ...]) -> None:
        """Fields of features that we lack: absent, or at a value that leaves the feature off."""
        for name, values in allowed.items():
            value = self.take(name, default=values[0])
            if value not in values:
                raise self.refuse(f"{name} must be {' or '.join(map(repr, values))}", value)

    def finish(self, ignored: Iterable[str] = ()) -> None:
        """Refuses every field that was neither taken nor is known to change nothing."""
        unknown = sorted(set(self.values) - self.taken - set(ignored))
        if unknown:
            found = ", ".join(f"{self.within}{name}={shown(self.values[name])}" for name in unknown)
            raise InputError(
                f"{self.file}: a field that is not known may change the model and must be null; got {found}"
            )


def read_rotary(fields: Fields, d_head: int, max_positions: int, default_fraction: float) -> Rotary:
    """The rotary embedding in any of its spellings.

    Since transformers 5 all of it is in `rope_parameters`; before, base and fraction were fields of
    their own (for GPT-NeoX under other names) and `rope_scaling` held the rest.
    """
    rope = fields.inner("rope_parameters", "rope_scaling")
    for name, spellings in {
        "rope_theta": ("rope_theta", "rotary_emb_base"),
        "partial_rotary_factor": ("partial_rotary_factor", "rotary_pct"),
    }.items():
        outside = fields.take(*spellings, default=None)
        if outside is not None and rope.values.setdefault(name, outside) != outside:
            raise rope.refuse(f"{name} must agree with the field outside, {outside!r}", rope.values[name])
    scaled = rope.choice("rope_type", "type", table={"default": False, "llama3": True}, default="default")
    theta = rope.number("rope_theta", default=10000.0)
    fraction = rope.number("partial_rotary_factor", default=default_fraction)
    dim = int(d_head * fraction)
    if dim % 2 or not 0 < dim <= d_head:
        raise rope.refuse(f"partial_rotary_factor must rotate an even part of {d_head}", fraction)
    scaling = None
    if scaled:
        scaling = Llama3Scaling(
            factor=rope.number("factor"),
            low_freq_factor=rope.number("low_freq_factor"),
            high_freq_factor=rope.number("high_freq_factor"),
            original_max_positions=rope.size("original_max_position_embeddings", default=max_positions),
        )
    rope.finish()
    return Rotary(dim=dim, theta=theta, scaling=scaling)
