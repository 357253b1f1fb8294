"""What a run says while it works, and what it measured about itself for run.json."""

import contextlib
import importlib.metadata
import platform
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

import jax
import tqdm

from headjax.engine.mesh import is_first_process
from headjax.kernels import dispatch

PACKAGES = ("headjax", "jax", "jaxlib", "flax", "orbax-checkpoint", "transformers", "numpy", "matplotlib")
T = TypeVar("T")


class Stages:
    """Times the stages of a run and records what computes them.

    Each has a progress bar on a terminal and one line elsewhere.
    """

    def __init__(self, progress: bool):
        self.bars = progress and sys.stderr.isatty() and is_first_process()
        self.seconds: dict[str, float] = {}
        self.seconds_each: dict[str, float] = {}
        self.ran: set[dispatch.Choice] = set()

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measures what happens inside and prints its one line."""
        start = time.perf_counter()
        with dispatch.recording() as ran:
            yield
        self.ran |= ran
        self.seconds[name] = self.seconds.get(name, 0) + time.perf_counter() - start
        if not self.bars and is_first_process():
            print(f"{name}: {self.seconds[name]:.1f} s", file=sys.stderr, flush=True)

    def track(self, items: Iterable[T], total: int | None = None, label: str = "") -> Iterable[T]:
        """The items, shown as a progress bar where there is a terminal to show it on, and timed."""
        start, n = time.perf_counter(), 0
        for item in tqdm.tqdm(items, desc=label, total=total, leave=False, disable=not self.bars):
            yield item
            n += 1
        if n:
            self.seconds_each[label] = (time.perf_counter() - start) / n
            if n > 1 and not self.bars and is_first_process():
                print(f"{label}: {self.seconds_each[label]:.2f} s each of {n}", file=sys.stderr, flush=True)


def versions() -> dict[str, str]:
    """Versions of Python and of every package that determines the numbers."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def devices() -> dict[str, object]:
    """What the run computes on."""
    return {
        "platform": jax.default_backend(),
        "kind": jax.devices()[0].device_kind,
        "count": jax.device_count(),
        "processes": jax.process_count(),
        "machine": platform.machine(),
    }


def peak_memory() -> dict[str, int]:
    """Largest resident memory of this process (where Python can tell it: not on Windows) and of each device
    that reports one, in bytes."""
    peak = {}
    with contextlib.suppress(ImportError):
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        peak["host"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    for device in jax.local_devices():
        statistics = device.memory_stats() or {}
        if "peak_bytes_in_use" in statistics:
            peak[str(device)] = statistics["peak_bytes_in_use"]
    return peak
