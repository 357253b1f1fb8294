"""Benchmarks by name: ``python -m experiments.bench static``. Each checks its numbers before it times.

Every one prints device, threads and what ran, medians, the floor and its distance from it, and last the
ratio by which our way is faster than the usual one, ``ratio 37.2x``.
"""

import sys
from functools import partial

from experiments.benchmarks.ablation import bench_ablation
from experiments.benchmarks.dynamic import bench_dynamic
from experiments.benchmarks.scaling import bench_scaling
from experiments.benchmarks.static import bench_static
from experiments.benchmarks.stream import bench_stream
from experiments.benchmarks.wavefront import bench_wavefront

BENCHMARKS = {
    "static": bench_static,
    "static_with_hits": partial(bench_static, hit_share=0.05),
    "dynamic": bench_dynamic,
    "ablation": bench_ablation,
    "scaling": bench_scaling,
    "stream": bench_stream,
    "wavefront": bench_wavefront,
}


def main(arguments: list[str]) -> int:
    """Runs the benchmark that is named; 2 if there is none of that name."""
    if len(arguments) != 1 or arguments[0] not in BENCHMARKS:
        print(f"usage: python -m experiments.bench NAME, one of {', '.join(BENCHMARKS)}; got {arguments}")
        return 2
    BENCHMARKS[arguments[0]]()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
