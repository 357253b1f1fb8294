"""What each attention head of a language model does, and how much the model needs it.

Names are imported when first used, so that ``import headjax`` costs nothing.
"""

import logging
from importlib import import_module
from typing import Any

_EXPORTS = {
    "Head": "headjax.axes",
    "HeadEdit": "headjax.model.edits",
    "InputError": "headjax.errors",
    "ModelConfig": "headjax.config",
    "Output": "headjax.model",
    "Transformer": "headjax.model",
    "load_model": "headjax.zoo",
}
__all__ = sorted(_EXPORTS)

# Of transformers only tokenizers are used, which need no torch: that there is none is no news.
logging.getLogger("transformers").addFilter(lambda record: "PyTorch was not found" not in record.getMessage())


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'headjax' has no attribute {name!r}")
    return getattr(import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *_EXPORTS]
