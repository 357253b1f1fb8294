"""What each attention head of a language model does, and how much the model needs it.

Names are imported when first used, so that ``import headjax`` costs nothing.
"""

import logging
from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_EXPORTS = {
    "Compute": ("headjax.study", "Compute"),
    "Data": ("headjax.study", "Data"),
    "GridSet": ("headjax.grid", "GridSet"),
    "Head": ("headjax.axes", "Head"),
    "HeadEdit": ("headjax.model.edits", "HeadEdit"),
    "HeadGrid": ("headjax.grid", "HeadGrid"),
    "InputError": ("headjax.errors", "InputError"),
    "ModelConfig": ("headjax.config", "ModelConfig"),
    "Output": ("headjax.model", "Output"),
    "Prompt": ("headjax.data.prompts", "Prompt"),
    "Relation": ("headjax.data.relations", "Relation"),
    "Result": ("headjax.result", "Result"),
    "Study": ("headjax.study", "Study"),
    "Transformer": ("headjax.model", "Transformer"),
    "analyses": ("headjax.analyses", ""),
    "figures": ("headjax.figures", ""),
    "load_model": ("headjax.parameters.cache", "load_model"),
    "load_relations": ("headjax.data.relations", "load_relations"),
    "open": ("headjax.study", "open_study"),
}
__all__ = sorted(_EXPORTS)

# Of transformers only tokenizers are used, which need no torch: that there is none is no news.
logging.getLogger("transformers").addFilter(lambda record: "PyTorch was not found" not in record.getMessage())


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'headjax' has no attribute {name!r}")
    module, member = _EXPORTS[name]
    found = import_module(module)
    return getattr(found, member) if member else found


def __dir__() -> list[str]:
    return [*globals(), *_EXPORTS]
