"""A model of ours as Hugging Face files: the conversion's tables, read from right to left."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Float
from safetensors.numpy import save_file
from tokenizers import Tokenizer

from checkpoints_convert.families import FAMILIES
from checkpoints_convert.fields import Fields
from checkpoints_convert.rules import Rule, axis_sizes, stored_shape
from experiments.planted.words import tokenizer_config
from headjax.config import ModelConfig
from headjax.model import parameter_shapes


def read_fields(fields: Mapping[str, object]) -> tuple[ModelConfig, tuple[Rule, ...]]:
    """The config that config.json's fields stand for, and the rules of the tensors that such a model has."""
    family = FAMILIES[fields["model_type"]]
    config, switches = family.read_config(Fields(fields, Path("config.json")))
    present = set(parameter_shapes(config))
    rules = [rule for rule in family.rules if rule.when is None or switches[rule.when]]
    return config, tuple(rule for rule in rules if present >= set(rule.parameters))


def free_parameters(rules: tuple[Rule, ...]) -> dict[str, str]:
    """Parameter -> the one that it is a copy of, mostly itself; those not named are zeros.

    Two parameters that one tensor fills whole are the same numbers (Phi's two norms).
    """
    shared = {name: rule.parameters[0] for rule in rules if not is_split(rule) for name in rule.parameters}
    return shared | {name: name for rule in rules if is_split(rule) for name in rule.parameters}


def is_split(rule: Rule) -> bool:
    """Whether a rule's parameters are parts of its tensor, not copies of it."""
    return rule.layout.split(" -> ")[1][0].isdigit()


def to_tensors(
    parameters: Mapping[str, Float[np.ndarray, "..."]], config: ModelConfig, rules: tuple[Rule, ...]
) -> Iterator[tuple[str, Float[np.ndarray, "..."]]]:
    """Name and values of every tensor, laid out as the family stores it."""
    sizes = axis_sizes(config)
    for rule in rules:
        stacked = "{l}" in rule.tensor
        for layer in range(config.n_layers) if stacked else (None,):
            parts = [parameters[name][layer] if stacked else parameters[name] for name in rule.parameters]
            name = rule.tensor.split("|")[0].replace("{l}", str(layer))
            yield name, join_layout(parts, rule.layout, sizes)


def join_layout(
    parts: list[Float[np.ndarray, "..."]], layout: str, sizes: Mapping[str, int]
) -> Float[np.ndarray, "..."]:
    """The tensor as stored, from its parameters: what `rules.split_layout` takes apart."""
    stored, wanted = (side.replace("(", "").replace(")", "").split() for side in layout.split(" -> "))
    values = np.stack(parts) if wanted[0].isdigit() else parts[0]
    arranged = values.transpose([wanted.index(letter) for letter in stored])
    return np.ascontiguousarray(arranged.reshape(stored_shape(layout, dict(sizes))))


def write_model(
    directory: Path,
    fields: Mapping[str, object],
    parameters: Mapping[str, Float[np.ndarray, "..."]],
    tokenizer: Tokenizer,
) -> None:
    """config.json, model.safetensors, tokenizer.json and tokenizer_config.json."""
    config, rules = read_fields(fields)
    directory.mkdir(parents=True, exist_ok=True)
    save_file(
        dict(to_tensors(parameters, config, rules)),
        directory / "model.safetensors",
        metadata={"format": "pt"},
    )
    tokenizer.save(str(directory / "tokenizer.json"))
    about_tokenizer = tokenizer_config(config.max_positions)
    for name, content in (("config.json", fields), ("tokenizer_config.json", about_tokenizer)):
        (directory / name).write_text(json.dumps(content, indent=1) + "\n", "utf-8")
