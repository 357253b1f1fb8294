"""Puts small faults into the source, one at a time, and says which of them a test notices. Run by hand:

    nice python -m tests.helpers.mutate --n 100 --seed 0
    nice python -m tests.helpers.mutate --n 20 --files 'headjax/engine/hits.py' 'kernels/**' --list

A fault changes what a user gets: a comparison or a sign turned, a number or a default changed, an entry of a
table or a part of a key left out, arguments or axes swapped, a check skipped, a config's field ignored, a
published number or a relation's word changed. Faults are drawn by kind, so that no kind hides another. The
tree is copied once; the checkout is never touched. A test counts only if it passes without the fault.

Why not mutmut or cosmic-ray: mutmut 3 changes function bodies alone, so that tables, defaults of dataclasses
and published data, where most unnoticed faults were, would stay as they are, and it needs the whole suite
under its own tracing first. cosmic-ray runs the one given test command for every fault, which with this suite
is hours for a hundred. Here the tests named after a file run first, then those that import it, then those
that reach it through other modules, each only if the fault got past the one before.
"""

import argparse
import ast
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import IO

import pytest

from tests.helpers.faults import Fault, draw_faults

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("headjax/**/*", "kernels/**/*", "checkpoints_convert/**/*", "experiments/**/*")
# What the tests import and no fault touches: read once, so that a forked process starts at once; pytest says
# of some that they were there before it.
LIBRARIES = (
    "jax",
    "flax.nnx",
    "orbax.checkpoint",
    "matplotlib.pyplot",
    "scipy.stats",
    "transformers",
    "torch",
)
PYTEST = ("-x", "-n", "0", "-p", "no:cacheprovider", "--tb=no", "-rfE")
PYTEST += ("-W", "ignore::pytest.PytestAssertRewriteWarning")
PASSED, NO_TESTS = 0, 5  # exit statuses of pytest
UNDECIDED = "UNDECIDED: "  # a hang, or only a slow machine: run it again with --only and --limit
FORK = multiprocessing.get_context("fork")


# --- the tests of a file --------------------------------------------------------------------------------


def module_of(file: str) -> str:
    """`headjax/engine/hits.py` -> `headjax.engine.hits`, `kernels/tpu.py` -> `headjax.kernels.tpu`.

    Data belong to the module of the nearest package that names their folder, or to the package.
    """
    path = Path(file)
    if path.suffix != ".py":
        package = next(folder for folder in path.parents if (ROOT / folder / "__init__.py").is_file())
        folder = path.relative_to(package).parts[0]
        naming = (
            module
            for module in sorted((ROOT / package).glob("*.py"))
            if f'"{folder}"' in module.read_text("utf-8")
        )
        path = next((module.relative_to(ROOT) for module in naming), package)
    name = ".".join(path.with_suffix("").parts).removesuffix(".__init__")
    return f"headjax.{name}" if name.split(".")[0] == "kernels" else name


@cache
def imports() -> dict[str, set[str]]:
    """Module -> the modules of ours that it names in an import."""
    files = [path for top in SOURCES for path in ROOT.glob(top) if path.suffix == ".py"]
    files += (ROOT / "tests").rglob("*.py")
    modules = {module_of(path.relative_to(ROOT).as_posix()): path for path in files}
    named = {}
    for module, path in modules.items():
        package = module if path.name == "__init__.py" else module.rpartition(".")[0]
        found = set()
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom):
                above = package.rsplit(".", node.level - 1)[0] if node.level else ""
                source = ".".join(filter(None, (above, node.module)))
                found |= {source, *(f"{source}.{alias.name}" for alias in node.names)}
            elif isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
        named[module] = found & set(modules)
    return named


@cache
def choose_tests(file: str) -> tuple[tuple[str, ...], ...]:
    """The test files of a source file, nearest first: named after it, importing it, and so on outwards.

    Of equally near ones those come first that need least of the packages.
    """
    module = module_of(file)
    words = set(re.split(r"[._]", module)[1:])
    found = [{name for name in imports() if set(name.removeprefix("tests.test_").split("_")) <= words}]
    reach = {module}
    while more := {name for name, used in imports().items() if used & reach} - reach:
        reach |= more
        found.append(more - set().union(*found))
    levels = [sorted(level, key=lambda name: (len(needs(name)), name)) for level in found]
    files = [
        [f"{name.replace('.', '/')}.py" for name in level if name.startswith("tests.test_")]
        for level in levels
    ]
    return tuple(tuple(level) for level in files if level)


@cache
def needs(module: str) -> set[str]:
    """The modules of ours that a module imports, and those that they import."""
    reach, new = set(), {module}
    while new:
        reach |= new
        new = set().union(*(imports()[name] for name in new)) - reach
    return reach


# --- running them ---------------------------------------------------------------------------------------


class Tree:
    """A copy of the checkout in which one file at a time is changed."""

    def __init__(self, folder: Path, limit: float):
        self.root, self.limit = folder / "tree", limit
        listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        for name in subprocess.check_output(listed, cwd=ROOT, text=True).split("\0"):
            if (ROOT / name).is_file():
                (self.root / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, self.root / name)
        if (ROOT.parent / "shared").is_dir():  # where the tests look for real data
            (folder / "shared").symlink_to(ROOT.parent / "shared")
        self.written = time.time_ns()
        self.sound: dict[str, bool] = {}  # test -> whether it passes without a fault

    def write(self, file: str, content: bytes) -> None:
        """Writes a file with a time of its own: bytecode is told by whole seconds and size alone."""
        self.written += 2_000_000_000
        (self.root / file).write_bytes(content)
        os.utime(self.root / file, ns=(self.written, self.written))

    def failing(self, tests: tuple[str, ...], *options: str) -> str | None:
        """The first test that fails; UNDECIDED and why where there is no telling; None where all pass."""
        with tempfile.TemporaryFile("w+") as output:
            process = FORK.Process(target=self.run_pytest, args=([*PYTEST, *options, *tests], output))
            process.start()
            process.join(self.limit)
            if process.is_alive():
                os.killpg(process.pid, signal.SIGKILL)
                process.join()
                return UNDECIDED + "time limit"
            output.seek(0)
            text = output.read()
        if process.exitcode in (PASSED, NO_TESTS):
            return None
        if process.exitcode < 0:
            return f"a crash, signal {-process.exitcode}"
        found = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", text, re.MULTILINE)
        return found[1] if found else f"{UNDECIDED}pytest ended with {process.exitcode}, {text[-200:]!r}"

    def run_pytest(self, arguments: list[str], output: IO[str]) -> None:
        """In a process of its own, and a group of its own, so that what a test started ends with it."""
        os.setsid()
        for stream in (1, 2):
            os.dup2(output.fileno(), stream)
        os.chdir(self.root)
        sys.path = [str(self.root), *(path for path in sys.path if Path(path or ".").resolve() != ROOT)]
        ours = ("headjax", "checkpoints_convert", "experiments", "tests")
        for name in [name for name in sys.modules if name.split(".")[0] in ours]:
            del sys.modules[name]  # the checkout's; the tree has its own
        # An editable installation would answer with the checkout's packages.
        sys.meta_path = [finder for finder in sys.meta_path if "Editable" not in repr(finder)]
        for name in ours:
            assert Path(find_spec(name).origin).is_relative_to(self.root), name
        os._exit(pytest.main(arguments))

    def notices(self, fault: Fault, widest: int) -> str | None:
        """The test that fails with the fault and passes without it; None where there is none."""
        original = (self.root / fault.file).read_bytes()
        changed = original[: fault.start] + fault.text.encode() + original[fault.end :]
        levels = choose_tests(fault.file)[:widest]
        stages = [(level, "not slow") for level in levels] + [(sum(levels, ()), "slow")]
        for tests, marked in stages if levels else ():
            while True:
                unsound = [f"--deselect={test}" for test, passes in self.sound.items() if not passes]
                self.write(fault.file, changed)
                test = self.failing(tests, "-m", marked, *unsound)
                self.write(fault.file, original)
                if test and test not in self.sound and test.startswith("tests/"):
                    self.sound[test] = self.failing((test,)) is None
                if not test or self.sound.get(test, True):
                    break
            if test:
                return test
        return None


def main() -> None:
    """Draws faults, runs the tests on each and prints what became of it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--n", type=int, default=100, help="faults to draw")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--files", nargs="+", default=SOURCES, help="globs of source files")
    parser.add_argument("--only", type=int, nargs="+", help="numbers of the faults to run again")
    parser.add_argument("--list", action="store_true", help="print the faults and run nothing")
    parser.add_argument("--widest", type=int, default=9, help="how far outwards: 1 is the nearest tests")
    parser.add_argument("--limit", type=float, default=600, help="seconds for the tests of one step")
    arguments = parser.parse_args()
    faults = dict(enumerate(draw_faults(ROOT, arguments.files, arguments.n, arguments.seed)))
    if arguments.only:
        faults = {number: faults[number] for number in arguments.only}
    if arguments.list:
        for number, fault in faults.items():
            print(f"{number:3}  {fault}")
        return
    os.environ |= {"JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1"}  # as conftest.py, which comes after them
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", f"{tempfile.gettempdir()}/headjax-mutate-cache")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    for library in LIBRARIES:
        import_module(library)
    survivors = []
    with tempfile.TemporaryDirectory(prefix="headjax-mutate-") as folder:
        tree = Tree(Path(folder), arguments.limit)
        for number, fault in faults.items():
            begun = time.monotonic()
            noticed = tree.notices(fault, arguments.widest)
            verdict = f"noticed by {noticed}"
            if noticed is None or noticed.startswith(UNDECIDED):
                verdict = noticed or "SURVIVED"
                survivors.append(f"{number:3}  {fault}  {verdict}")
            print(f"{number:3}  {fault}\n     {verdict} ({time.monotonic() - begun:.0f} s)", flush=True)
    print(f"{len(faults) - len(survivors)} of {len(faults)} noticed; the others:", *survivors, sep="\n")


if __name__ == "__main__":
    main()
