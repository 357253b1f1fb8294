"""Benchmark of a user's first minute: whole runs, the first one after an installation and the next.

README's demo, and relation scores and head ablation with weights of GPT-2 small's size (random ones, under
the words of the trained model). Cold: nothing is converted and no compiled program is kept. Warm: a second
run, to another directory.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from experiments.benchmarks.measure import usable_cores
from experiments.benchmarks.torch_gpt2 import GPT2_SMALL, gpt2_twins
from experiments.trained import MODELS
from headjax.report.table import aligned

DEMO = ("experiments/configs/demo.py",)
# A process that runs as a user's does and says at its end what was compiled, and for how long.
CHILD = """
import json, sys
import jax
compiled = []
def listen(event, seconds, **_):
    if event == "/jax/core/compile/backend_compile_duration":
        compiled.append(seconds)
jax.monitoring.register_event_duration_secs_listener(listen)
from experiments.run import execute, parse_overrides
execute(sys.argv[1], parse_overrides(sys.argv[2:]), False, False)
print(json.dumps([len(compiled), sum(compiled)]))
"""
DONE = re.compile(r": (?!check|load|convert)\w+: [\d.]+ s$")  # what a run says when an analysis is done


class Lap(NamedTuple):
    """Seconds to the first numbers and to the end, programs, seconds of compiling or reading those."""

    first: float
    whole: float
    programs: int
    compiling: float


def lap(arguments: tuple[str, ...], out: Path, cache: Path) -> Lap:
    """Runs it. Raises AssertionError where it fails."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("JAX_COMPILATION")
    }
    environment |= {"HEADJAX_CACHE": str(cache)}
    command = [sys.executable, "-c", CHILD, *arguments, f"--config.out={out}"]
    start, first, said = time.perf_counter(), None, ""
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        for line in process.stderr or ():
            said += line
            if first is None and DONE.search(line):
                first = time.perf_counter() - start
        printed = process.stdout.read() if process.stdout else ""
    whole = time.perf_counter() - start
    if process.returncode or first is None:
        raise AssertionError(f"{' '.join(arguments)}: {said[-2000:]}")
    programs, compiling = json.loads(printed.splitlines()[-1])
    return Lap(first, whole, programs, compiling)


def write_small(directory: Path) -> None:
    """A checkpoint of GPT-2 small's size, under a tokenizer of the trained model's words and of fillers."""
    _, theirs = gpt2_twins(GPT2_SMALL)
    theirs.save_pretrained(directory)
    source = MODELS["trained-gpt2"]
    for file in source.glob("*token*"):
        shutil.copy(file, directory)
    tokenizer = json.loads((source / "tokenizer.json").read_text("utf-8"))
    words = tokenizer["model"]["vocab"]
    words |= {f"filler{i}": i for i in range(len(words), GPT2_SMALL.vocab_size)}
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer), "utf-8")


def bench_first() -> float:
    """Prints the table; returns how many times faster the demo is the second time."""
    print(f"{usable_cores()} cores; whole processes, imports included")
    lines, ratios = [("run", "", "first numbers", "end", "programs", "compiling", "of all")], {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_small(folder / "gpt2-small")
        small = ("experiments/configs/sweeps.py", f"--config.model={folder / 'gpt2-small'}")
        runs = {
            "demo": DEMO,
            "relation scores, GPT-2 small": (*small, "--config.analyses=relation_scores"),
            "head ablation, GPT-2 small": (*small, "--config.analyses=head_ablation", "--config.n_prompts=2"),
        }
        for name, arguments in runs.items():
            cache = folder / f"cache of {name}"
            laps = [lap(arguments, folder / f"{when} {name}", cache) for when in ("cold", "warm")]
            for when, one in zip(("cold", "warm"), laps, strict=True):
                seconds = (f"{one.first:.1f} s", f"{one.whole:.1f} s")
                share = f"{one.compiling / one.whole:.0%}"
                lines.append((name, when, *seconds, str(one.programs), f"{one.compiling:.1f} s", share))
            ratios[name] = laps[0].whole / laps[1].whole
            print(aligned(lines[-2:]), flush=True)
    print(aligned(lines, numbers=(2, 3, 4, 5, 6)))
    print(f"ratio {ratios['demo']:.1f}x")
    return ratios["demo"]
