"""Benchmarks by name: ``python -m experiments.bench static``. Each checks its numbers before it times.

    python -m experiments.bench NAME
    python -m experiments.bench real --model DIRECTORY     # peers, too, takes a model
    python -m experiments.bench all [--model DIRECTORY]

Every one prints device, threads and what ran, medians, the floor and its distance from it, and last the
ratio by which our way is faster than the usual one, ``ratio 37.2x``. `all` runs one after the other, each in
a process of its own, and ends with a table of the ratios.
"""

import argparse
import datetime
import importlib
import platform
import subprocess
import sys
from importlib.metadata import version

from headjax.errors import InputError
from headjax.report.table import aligned
from headjax.zoo import find_source

# Name -> its module in experiments.benchmarks, its function, and what that is given.
BENCHMARKS = {
    "static": ("static", "bench_static", {}),
    "static_with_hits": ("static", "bench_static", {"hit_share": 0.05}),
    "dynamic": ("dynamic", "bench_dynamic", {}),
    "ablation": ("ablation", "bench_ablation", {}),
    "first": ("first", "bench_first", {}),
    "scaling": ("scaling", "bench_scaling", {}),
    "stream": ("stream", "bench_stream", {}),
    "wavefront": ("wavefront", "bench_wavefront", {}),
    "real": ("real", "bench_real", {}),
    "peers": ("peers", "bench_peers", {}),
}
OF_A_MODEL = ("real", "peers")
VERSIONS = ("jax", "flax", "torch", "transformers")


def bench_all(model: str | None) -> int:
    """Runs every benchmark (those of a real model where there is one); 1 if any failed."""
    lines, failed = [("benchmark", "ratio", "seconds")], False
    for name in BENCHMARKS:
        if name in OF_A_MODEL and model is None:
            continue
        command = [sys.executable, "-m", "experiments.bench", name]
        command += ["--model", model] if name in OF_A_MODEL else []
        started = datetime.datetime.now()
        print(f"=== {name}", flush=True)
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            last = ""
            for last in process.stdout or ():
                print(last, end="", flush=True)
        seconds = (datetime.datetime.now() - started).total_seconds()
        ratio = last.removeprefix("ratio ").strip() if process.returncode == 0 else "failed"
        lines.append((name, ratio, f"{seconds:.0f}"))
        failed |= process.returncode != 0
    versions = ", ".join(f"{package} {version(package)}" for package in VERSIONS)
    print(f"{datetime.date.today()}, Python {platform.python_version()}, {versions}")
    print(aligned(lines, numbers=(1, 2)))
    return int(failed)


def main(arguments: list[str]) -> int:
    """Runs the benchmark that is named."""
    parser = argparse.ArgumentParser(prog="experiments.bench")
    parser.add_argument(
        "name", choices=(*BENCHMARKS, "all"), metavar="NAME", help=f"{', '.join(BENCHMARKS)}, all"
    )
    parser.add_argument("--model", metavar="DIRECTORY", help="of a real model's Hugging Face checkpoint")
    asked = parser.parse_args(arguments)
    if asked.model is not None:
        try:
            find_source(asked.model)
        except InputError as error:  # said before anything runs
            parser.error(str(error))
    if asked.name == "all":
        return bench_all(asked.model)
    if (asked.model is None) == (asked.name in OF_A_MODEL):
        rule = f"--model goes with {', '.join(OF_A_MODEL)} and all"
        parser.error(rule if asked.model else f"{asked.name} needs --model")
    module, function, options = BENCHMARKS[asked.name]
    if asked.model is not None:
        options = {"model": asked.model}
    try:
        getattr(importlib.import_module(f"experiments.benchmarks.{module}"), function)(**options)
    except InputError as error:
        parser.error(str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
