"""Where kernels may run: on their own hardware, or, for tests, interpreted or merely lowered.

A kernel is written for one platform. Called by name on another it raises NotImplementedError, unless
the caller says that no hardware is meant: ``with interpreted():`` runs it on the CPU in Pallas'
interpret mode, ``with lowered():`` lets it be traced for `jax.export`.
"""

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator
from typing import Any, Literal

import jax

PLATFORMS = {"pallas_mosaic_tpu": "tpu", "pallas_mosaic_gpu": "gpu"}  # the others run everywhere

_mode: contextvars.ContextVar[Literal["run", "interpret", "lower"]] = contextvars.ContextVar(
    "mode", default="run"
)
_target: contextvars.ContextVar[str | None] = contextvars.ContextVar("target", default=None)


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


@contextlib.contextmanager
def targeting(platform: str) -> Iterator[None]:
    """Programs traced inside are cut into the tiles and chunks of this platform, which need not be here."""
    token = _target.set(platform)
    try:
        yield
    finally:
        _target.reset(token)


def target() -> str:
    """The platform that programs are traced for."""
    return _target.get() or jax.default_backend()


def is_interpreted() -> bool:
    return _mode.get() == "interpret"


def is_lowered() -> bool:
    return _mode.get() == "lower"


def narrow(kernel: Callable) -> Callable:
    """Traces a kernel with 32-bit indices, the only ones on these chips, whatever JAX_ENABLE_X64 says."""

    @functools.wraps(kernel)
    def traced(*args: Any, **kwargs: Any) -> Any:
        with jax.enable_x64(False):
            return kernel(*args, **kwargs)

    return traced


def require(implementation: str | None) -> None:
    """Raises NotImplementedError where an implementation for another platform is meant to run."""
    here = target()
    needed = PLATFORMS.get(implementation, here)
    if _mode.get() == "run" and here != needed:
        raise NotImplementedError(
            f"{implementation} runs on a {needed.upper()}; this process computes on {here.upper()}"
        )
