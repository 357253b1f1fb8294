"""What a run says while it works, and what it measured about itself for run.json."""

import contextlib
import importlib.metadata
import platform
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from types import MappingProxyType
from typing import TypeVar

import jax
import tqdm

from headjax.engine.mesh import is_first_process
from headjax.kernels import dispatch

PACKAGES = ("headjax", "jax", "jaxlib", "flax", "orbax-checkpoint", "transformers", "numpy", "matplotlib")
T = TypeVar("T")


# Where there is no terminal: a line of progress at every tenth of a loop, but for those that follow each
# other within some seconds, and at least every minute.
TENTHS, SECONDS_APART, SECONDS_SILENT = 10, 5.0, 60.0


class Stages:
    """Times the stages of a run and records what computes them.

    On a terminal loops have progress bars. Elsewhere a stage is named when it begins and when it ends, and a
    loop that takes long says now and then how far it is.
    """

    def __init__(self, progress: bool):
        self.bars = progress and sys.stderr.isatty() and is_first_process()
        self.seconds: dict[str, float] = {}
        self.seconds_each: dict[str, float] = {}
        self.ran: set[dispatch.Choice] = set()

    @contextlib.contextmanager
    def stage(self, name: str, quick: bool = False) -> Iterator[None]:
        """Measures what happens inside, and names it after and, unless it is `quick`, before."""
        start = time.perf_counter()
        if not quick:
            self._say(f"{name} ...")
        with dispatch.recording() as ran:
            yield
        self.ran |= ran
        self.seconds[name] = self.seconds.get(name, 0) + time.perf_counter() - start
        self._say(f"{name}: {self.seconds[name]:.1f} s")

    def track(self, items: Iterable[T], total: int | None = None, label: str = "") -> Iterable[T]:
        """The items, timed; how far they are is shown on the way."""
        start, n = time.perf_counter(), 0
        said, tenth = start, 0
        for item in tqdm.tqdm(items, desc=label, total=total, leave=False, disable=not self.bars):
            yield item
            n += 1
            now = time.perf_counter()
            new_tenth = total is not None and TENTHS * n // total > tenth
            if n != total and now - said > (SECONDS_APART if new_tenth else SECONDS_SILENT):
                said, tenth = now, TENTHS * n // (total or n)
                self._say(f"{label}: {n}{progress(n, total, now - start)}")
        if n:
            self.seconds_each[label] = (time.perf_counter() - start) / n
            if n > 1:
                self._say(f"{label}: {self.seconds_each[label]:.2f} s each of {n}")

    def _say(self, line: str) -> None:
        if not self.bars and is_first_process():
            print(line, file=sys.stderr, flush=True)


def progress(n: int, total: int | None, seconds: float) -> str:
    """How many there are, and how long the others will take if they take as long; "" where nobody knows."""
    if total is None:
        return ""
    left = seconds / n * (total - n)
    return f" of {total}, {left:.0f} s to go" if left < 120 else f" of {total}, {left / 60:.0f} min to go"


@cache
def versions() -> Mapping[str, str]:
    """Versions of Python and of every package that determines the numbers."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return MappingProxyType(found)


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
