"""What every benchmark measures the same way."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def seconds(run: Callable[[], object]) -> float:
    """Wall time of one run."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def matmul_rate(n: int = 4096) -> float:
    """FLOP/s of a large float32 product here: the best of five, after one that compiles."""
    x = jnp.ones((n, n))
    product = jax.jit(lambda x: jnp.matmul(x, x, precision="highest"))
    times = [seconds(lambda: product(x).block_until_ready()) for _ in range(6)]
    return 2 * n**3 / min(times[1:])


def host_rate(n: int = 1024) -> float:
    """FLOP/s of a float32 product of numpy's on this machine's CPU; touches no other device."""
    x = np.ones((n, n), np.float32)
    return 2 * n**3 / min(seconds(lambda: x @ x) for _ in range(5))


def measured_in_child(module: str, *arguments: object) -> dict[str, Any]:
    """What a module that is run in a fresh process measures: the JSON in the last line that it prints."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    child = subprocess.run(command, capture_output=True, text=True)
    if child.returncode:
        raise RuntimeError(child.stderr)
    return json.loads(child.stdout.splitlines()[-1])


def usable_cores() -> int:
    """CPU cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def bytes_read() -> int:
    """Bytes that this process has read from files so far, as Linux counts them."""
    return int(Path("/proc/self/io").read_text("utf-8").split()[1])


def peak_resident() -> int:
    """Most resident memory of this process since it was started, in bytes; on Linux."""
    lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmHWM")))
