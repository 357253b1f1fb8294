"""Run configs by the short names of fields, as on a command line but with values."""

import dataclasses
from typing import Any

from experiments.config import SECTIONS, RunConfig, put, put_all
from headjax.analyses.registry import find_analysis


def altered(config: RunConfig, **fields: Any) -> RunConfig:
    """The config with some fields changed; a field of several analyses is changed in all of them."""
    if "analyses" in fields:
        kinds = fields.pop("analyses")
        if isinstance(kinds, tuple):
            kinds = {
                one if isinstance(one, str) else one.kind: config.analyses.get(one) or find_analysis(one)()
                if isinstance(one, str)
                else one
                for one in kinds
            }
        config = put(config, "analyses", kinds)
    changes = {place: value for name, value in fields.items() for place in places(config, name)}
    return put_all(config, changes)


def places(config: RunConfig, name: str) -> list[str]:
    """Every dotted place of a field."""
    if name in {field.name for field in dataclasses.fields(RunConfig)} - set(SECTIONS):
        return [name]
    found = [f"{s}.{name}" for s, options in SECTIONS.items() if name in options.__dataclass_fields__]
    own = [f"analyses.{one}.{name}" for one, of in config.analyses.items() if name in of.__dataclass_fields__]
    assert found or own, f"no field {name} in {list(config.analyses)}"
    return found or own


def run_config(model: Any, **fields: Any) -> RunConfig:
    """A config with some fields."""
    return altered(RunConfig(model), **fields)
