"""Where kernels may run: on their own hardware, or, for tests, interpreted or merely lowered.

A kernel is written for one platform. Called by name on another it raises NotImplementedError, unless
the caller says that no hardware is meant: ``with interpreted():`` runs it on the CPU in Pallas'
interpret mode, ``with lowered():`` lets it be traced for `jax.export`.
"""

import contextlib
import contextvars
from collections.abc import Iterator
from typing import Literal

import jax

_mode: contextvars.ContextVar[Literal["run", "interpret", "lower"]] = contextvars.ContextVar(
    "mode", default="run"
)


@contextlib.contextmanager
def _entered(mode: Literal["interpret", "lower"]) -> Iterator[None]:
    token = _mode.set(mode)
    try:
        yield
    finally:
        _mode.reset(token)


def interpreted() -> contextlib.AbstractContextManager[None]:
    """Kernels traced inside run in Pallas' interpret mode: slow, on any machine."""
    return _entered("interpret")


def lowered() -> contextlib.AbstractContextManager[None]:
    """Kernels traced inside are only lowered, for a platform that this machine need not have."""
    return _entered("lower")


def is_interpreted() -> bool:
    return _mode.get() == "interpret"


def is_lowered() -> bool:
    return _mode.get() == "lower"


def require(platform: Literal["tpu", "gpu"], implementation: str) -> None:
    """Raises NotImplementedError where a kernel of this platform cannot run but is meant to."""
    if _mode.get() == "run" and jax.default_backend() != platform:
        raise NotImplementedError(
            f"{implementation} runs on a {platform.upper()}; this process computes on "
            f"{jax.default_backend().upper()}"
        )
