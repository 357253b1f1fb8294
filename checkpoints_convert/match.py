"""Matching a checkpoint's tensors with a family's table, by name and shape alone.

Every tensor belongs to exactly one rule or is a known buffer, every parameter is filled exactly once;
all that is at fault is said at once.
"""

import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from checkpoints_convert.reader import FLOATS, Tensor
from checkpoints_convert.rules import Family, Rule, axis_sizes, stored_shape
from headjax.config import ModelConfig
from headjax.errors import InputError

# A parameter's name and, for those of the blocks, the layer.
Key = tuple[str, int | None]
HEAD = "unembed.rows"
# Bytes of a tied head that are compared at a time.
BLOCK_BYTES = 1 << 24


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
    parameters: set[str],
) -> dict[Key, Filling]:
    """What fills which parameter; those of `parameters` that are not in the result are zeros.

    Raises InputError naming every tensor that is missing, belongs nowhere, is misshaped or doubled.
    """
    rules = [rule for rule in family.rules if rule.when is None or switches[rule.when]]
    tied = [rule for rule in rules if config.tied_embeddings and HEAD in rule.parameters]
    _check_table(family, [rule for rule in rules if rule not in tied], parameters)

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
    return fillings


def _layers(pattern: str, config: ModelConfig) -> Iterable[int | None]:
    return range(config.n_layers) if "{l}" in pattern else (None,)


def _check_table(family: Family, rules: list[Rule], parameters: set[str]) -> None:
    """A table that fills a parameter twice or not at all is a bug of ours."""
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
        lines = [
            f"{sign} {tensor} {what}" + (f" (layer {', '.join(layers)})" if layers else "")
            for (sign, tensor, what), layers in self.layers.items()
        ]
        if lines:
            raise InputError(
                f"{directory}: tensors must be those of a {config.family} model of {config.n_layers} layers: "
                + "; ".join(lines)
            )
