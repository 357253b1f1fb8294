"""Matching a checkpoint's tensors with a family's table, by name and shape alone.

Every tensor belongs to exactly one rule or is a known buffer, every parameter is filled exactly once;
all that is at fault is said at once.
"""

import dataclasses
import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from checkpoints_convert.reader import FLOATS, Tensor
from checkpoints_convert.rules import Family, Rule, axis_sizes, stored_shape
from headjax.config import ModelConfig
from headjax.errors import InputError, shown
from headjax.model import parameter_shapes

# A parameter's name and, for those of the blocks, the layer.
Key = tuple[str, int | None]
HEAD = "unembed.rows"
# Heads for other tasks beside the language model's, or in its place: classes, rewards, answers' ends.
OTHER_HEADS = re.compile(r"(score|classifier|qa_outputs|multiple_choice_head|(v|value|reward)_head)\.")
# Bytes of a tied head that are compared at a time.
BLOCK_BYTES = 1 << 24
# Faults that one message lists, and layers of each.
MAX_LISTED = 20


class Filling(NamedTuple):
    """What fills a parameter (of one layer): which part of which tensor, by which rule."""

    tensor: Tensor
    rule: Rule
    part: int


def match_tensors(
    directory: Path,
    family: Family,
    config: ModelConfig,
    switches: dict[str, bool],
    tensors: list[Tensor],
) -> tuple[dict[Key, Filling], list[str]]:
    """What fills which parameter (others are zeros), and the names of tensors that belong to something else:
    heads for other tasks, other parts of the model.

    Nothing is computed from the config's sizes before tensors have confirmed them. Raises InputError naming
    every tensor that is missing, belongs nowhere, is misshaped or doubled.
    """
    others = [tensor.name for tensor in tensors if tensor.name.startswith(family.others)]
    tensors = [tensor for tensor in tensors if not tensor.name.startswith(family.others)]
    tensors = _without_wrapper(directory, family, tensors)
    ignored = others + [tensor.name for tensor in tensors if OTHER_HEADS.match(tensor.name)]
    tensors = [tensor for tensor in tensors if not OTHER_HEADS.match(tensor.name)]
    _check_layers(directory, config, tensors)
    rules = [rule for rule in family.rules if rule.when is None or switches[rule.when]]
    tied = [rule for rule in rules if config.tied_embeddings and HEAD in rule.parameters]

    unclaimed: dict[str, list[Tensor]] = defaultdict(list)
    for tensor in tensors:
        unclaimed[tensor.name].append(tensor)
    with_prefix = any(name.startswith(family.prefix) for name in unclaimed)
    sizes, faults, fillings = axis_sizes(config), _Faults(), {}

    def claim(pattern: str, layer: int | None) -> list[Tensor]:
        """Takes the tensors of a name in any spelling, with and without the prefix."""
        names = pattern.replace("{l}", str(layer)).split("|")
        spellings = dict.fromkeys(
            spelling for name in names for spelling in (name, name.removeprefix(family.prefix))
        )
        return [tensor for spelling in spellings for tensor in unclaimed.pop(spelling, ())]

    for rule in rules:
        shape = stored_shape(rule.layout, sizes)
        for layer in _layers(rule.tensor, config):
            found = claim(rule.tensor, layer)
            if not found:
                if rule not in tied:
                    name = rule.tensor.split("|")[0].replace("{l}", str(layer))
                    name = name if with_prefix else name.removeprefix(family.prefix)
                    faults.add("-", name, f"{list(shape)} is missing")
            elif len(found) > 1:
                faults.add("x", found[0].name, "is given more than once: " + ", ".join(map(str, found)))
            elif found[0].shape != shape:
                faults.add("~", str(found[0]), f"must be {list(shape)}, is {list(found[0].shape)}")
            elif found[0].dtype not in FLOATS:
                faults.add("~", str(found[0]), f"must be a float, is {found[0].dtype}")
            else:
                for part, parameter in enumerate(rule.parameters):
                    fillings[parameter, layer] = Filling(found[0], rule, part)
    for pattern in family.buffers:
        for layer in _layers(pattern, config):
            claim(pattern, layer)
    for tensor in (tensor for same in unclaimed.values() for tensor in same):
        faults.add("+", str(tensor), f"{list(tensor.shape)} belongs nowhere")
    faults.refuse(directory, config)

    if (HEAD, None) in fillings and config.tied_embeddings:
        _check_tied(fillings.pop((HEAD, None)).tensor, fillings["embed.W_E", None].tensor)
    _check_table(family, [rule for rule in rules if rule not in tied], config)
    return fillings, sorted(ignored)


def _without_wrapper(directory: Path, family: Family, tensors: list[Tensor]) -> list[Tensor]:
    """The tensors under the family's names, where something has put the same words before all of them.

    torch.compile saves them as `_orig_mod.*`, data parallel training as `module.*`. What precedes the name of
    the embedding is such a wrapper; heads for other tasks stay outside it.
    """
    if any(".lora_" in tensor.name for tensor in tensors):
        raise InputError(
            f"{directory}: weights must be a whole model's; these hold a LoRA adapter that is not merged: "
            "merge it (PEFT's merge_and_unload) and save the model"
        )
    embedding = family.rules[0].tensor
    names = [tensor.name for tensor in tensors]
    for full in (embedding, embedding.removeprefix(family.prefix)):
        wrappers = {name.removesuffix(full) for name in names if f".{name}".endswith(f".{full}")}
        if wrappers:
            break
    if len(wrappers) != 1 or wrappers == {""}:
        return tensors
    (wrapper,) = wrappers
    outside = [n for n in names if not n.startswith(wrapper) and not OTHER_HEADS.match(n)]
    if outside:
        raise InputError(
            f"{directory}: all names of tensors must begin with {shown(wrapper)}, as the embedding's does, "
            f"or none; {len(outside)} of {len(names)} do not: {shown(', '.join(sorted(outside)))}"
        )
    return [dataclasses.replace(tensor, name=tensor.name.removeprefix(wrapper)) for tensor in tensors]


def _check_layers(directory: Path, config: ModelConfig, tensors: list[Tensor]) -> None:
    """Holds the number of layers against the names, before anything is done for each of them."""
    numbers = (re.match(r"[^\d]*\.(\d{1,9})\.", f".{tensor.name}") for tensor in tensors)
    n_found = len({int(number[1]) for number in numbers if number})
    if config.n_layers > n_found:
        raise InputError(
            f"{directory / 'config.json'}: the number of layers must be that of the tensors, {n_found}; "
            f"got {config.n_layers}"
        )


def _layers(pattern: str, config: ModelConfig) -> Iterable[int | None]:
    return range(config.n_layers) if "{l}" in pattern else (None,)


def _check_table(family: Family, rules: list[Rule], config: ModelConfig) -> None:
    """A table that fills a parameter twice or not at all is a bug of ours."""
    parameters = set(parameter_shapes(config))
    filled = [parameter for rule in rules for parameter in rule.parameters]
    off = {parameter for rule in family.rules if rule.when for parameter in rule.parameters} - set(filled)
    zeros = (off | set(family.zeros)) & parameters
    assert sorted([*filled, *zeros]) == sorted(parameters), (filled, zeros, parameters)


def _check_tied(head: Tensor, embedding: Tensor) -> None:
    """A file may repeat the tied head; a different one contradicts config.json."""
    n_rows, width = head.shape
    step = max(1, BLOCK_BYTES // (4 * width))
    blocks = ((start, min(start + step, n_rows)) for start in range(0, n_rows, step))
    if not all(np.array_equal(head.rows(*block), embedding.rows(*block)) for block in blocks):
        raise InputError(
            f"{head.file}: config.json ties the head to the embedding, so {head.name} must equal "
            f"{embedding.name} or be absent; it differs"
        )


class _Faults:
    """Faults of tensors as in a diff: - missing, + belongs nowhere, ~ wrong, x doubled; layers folded."""

    def __init__(self) -> None:
        self.layers: dict[tuple[str, str, str], list[str]] = defaultdict(list)

    def add(self, sign: str, tensor: str, what: str) -> None:
        # A tensor's layer is the first number in its name.
        before, layer, after = re.fullmatch(r"(.*?\.)(\d+)(\..*)|.*", tensor).groups()
        if layer is None:
            self.layers[sign, tensor, what] = []
        else:
            pattern = f"{before}*{after}"
            self.layers[sign, pattern, what.replace(f"{before}{layer}.", f"{before}*.")].append(layer)

    def refuse(self, directory: Path, config: ModelConfig) -> None:
        """Raises InputError if there is any fault."""

        def listed(layers: list[str]) -> str:
            return ", ".join(layers[:MAX_LISTED]) + (", ..." if len(layers) > MAX_LISTED else "")

        lines = [
            f"{sign} {shown(ValueError(tensor))} {what}" + (f" (layer {listed(layers)})" if layers else "")
            for (sign, tensor, what), layers in self.layers.items()
        ]
        if len(lines) > MAX_LISTED:
            lines = [*lines[:MAX_LISTED], f"and {len(lines) - MAX_LISTED} more"]
        if lines:
            raise InputError(
                f"{directory}: tensors must be those of a {config.family} model of {config.n_layers} layers: "
                + "; ".join(lines)
            )
