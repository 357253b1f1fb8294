"""`python -m kernels.device_check --out DIR [--minutes 8]`: all that an accelerator is asked, in one go.

In order of worth, each section in a process of its own and within its share of the time:

    machine    versions, the device, what a large matmul and a large copy reach
    numbers    every kernel against its reference, float32 and bfloat16, small cases first
    speed      every op against XLA (and attention against cuDNN) at the shapes of published models
    tiles      the kernels with other tiles
    sweeps     whole sweeps on random weights of published sizes, by XLA and by the kernels
    torch      the usual way in torch on the same device, the same numbers
    profile    a trace of the slowest sweep, in DIR/profile

What a section finds is in DIR/device_check.json as soon as it is found: a section that hangs, crashes or runs
out of time keeps what it had, and the others run. Last comes a table, and which defaults should change.
Before it is sent anywhere, `python -m kernels.device_check --lower` lowers every kernel of it for both
platforms. `--tiny` runs all of it small, on any machine.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

# Section -> its share of the time. Those of SWEEPS need the models, which kernels do not know.
SHARES = {
    "machine": 0.06,
    "numbers": 0.2,
    "speed": 0.24,
    "tiles": 0.1,
    "sweeps": 0.25,
    "torch": 0.1,
    "profile": 0.05,
}
SWEEPS = ("sweeps", "torch", "profile")
MODULES = {name: "experiments.benchmarks.device" if name in SWEEPS else __spec__.name for name in SHARES}
TOLERANCES = {"float32": 2e-5, "bfloat16": 3e-2}  # relative to the largest number
GRACE = 20.0  # seconds that a section may take longer than its time
FASTER = 0.9  # a kernel is worth being the default below this share of XLA's time


# --- whoever starts it ----------------------------------------------------------------------------------


def main(arguments: list[str]) -> int:
    """Runs the sections and prints what they found; 1 where a number was wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m kernels.device_check", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--out", type=Path, help="where device_check.json goes")
    parser.add_argument("--minutes", type=float, default=8.0, help="for everything together")
    parser.add_argument("--only", default=",".join(SHARES), help="sections, a,b")
    parser.add_argument("--tiny", action="store_true", help="small, on any machine")
    parser.add_argument("--lower", action="store_true", help="only lower the kernels, for CUDA and TPU")
    parser.add_argument("--section", choices=SHARES, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.lower:
        return lower_all(given.tiny)
    if given.out is None:
        parser.error("--out DIR is needed")
    given.out.mkdir(parents=True, exist_ok=True)
    if given.section:
        run_section(SECTIONS[given.section], given.out, given.section, 60 * given.minutes, given.tiny)
        return 0
    unknown = set(given.only.split(",")) - set(SHARES)
    if unknown:
        parser.error(f"sections are {', '.join(SHARES)}; got {', '.join(sorted(unknown))}")
    found = run_sections(given.out, 60 * given.minutes, given.only.split(","), given.tiny)
    print("\n".join(report(found)))
    return int(any(record.get("wrong") for record in found))


def run_sections(out: Path, seconds: float, chosen: list[str], tiny: bool) -> list[dict[str, Any]]:
    """Each in a process of its own: a crash ends one, and memory of a device is free for the next."""
    found: list[dict[str, Any]] = []
    end, left = time.monotonic() + seconds, sum(SHARES[name] for name in chosen)
    for name in [name for name in SHARES if name in chosen]:
        # What the sections before did not need is shared out among those that are left.
        own = max(0.0, (end - time.monotonic()) * SHARES[name] / left)
        left -= SHARES[name]
        command = [sys.executable, "-m", MODULES[name], "--section", name, "--out", str(out)]
        command += ["--minutes", str(own / 60)] + ["--tiny"] * tiny
        lines = out / f"{name}.jsonl"
        lines.unlink(missing_ok=True)
        began = time.monotonic()
        # A section knows when its time is over; one that does not end by itself is ended.
        ended = _run(command, own + GRACE)
        found += (
            [json.loads(line) for line in lines.read_text("utf-8").splitlines()] if lines.exists() else []
        )
        found.append({"section": name, "what": "ended", "how": ended, "seconds": time.monotonic() - began})
        _write(out / "device_check.json", found)
        lines.unlink(missing_ok=True)
    return found


def _run(command: list[str], timeout: float) -> str:
    """How it ended, with the end of what it said where that was not well."""
    environment = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}  # torch shares the device
    try:
        done = subprocess.run(command, timeout=timeout, capture_output=True, text=True, env=environment)
    except subprocess.TimeoutExpired:
        return f"out of time after {timeout:.0f} s"
    return "well" if done.returncode == 0 else f"status {done.returncode}: {done.stderr[-2000:]}"


def _write(path: Path, found: list[dict[str, Any]]) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(found, indent=1), "utf-8")
    temporary.replace(path)


# --- a section ------------------------------------------------------------------------------------------


class Note:
    """Writes records down, and says when the time is over."""

    def __init__(self, path: Path, section: str, seconds: float):
        self._path, self._section, self._end = path, section, time.monotonic() + seconds
        self.directory = path.parent

    def __call__(self, what: str, **values: Any) -> None:
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"section": self._section, "what": what, **values}) + "\n")

    @property
    def seconds_left(self) -> float:
        return self._end - time.monotonic()

    def each(self, items: Any, label: Callable[[Any], str]) -> Iterator[Any]:
        """The items for as long as there is time; those that are left out are written down."""
        left_out = []
        for item in items:
            if self.seconds_left > 0:
                yield item
            else:
                left_out.append(label(item))
        if left_out:
            self("left out", names=left_out)


def run_section(
    section: Callable[[Note, bool], None], out: Path, name: str, seconds: float, tiny: bool
) -> None:
    """One section; what goes wrong in it is written down by the one that started it."""
    section(Note(out / f"{name}.jsonl", name, seconds), tiny)


def machine(note: Note, tiny: bool) -> None:
    """Versions, the device, and its rates."""
    import jax
    import jaxlib

    from . import bench

    device = jax.devices()[0]
    memory = (device.memory_stats() or {}).get("bytes_limit")
    note(
        "machine",
        jax=jax.__version__,
        jaxlib=jaxlib.__version__,
        python=sys.version.split()[0],
        backend=jax.default_backend(),
        device=device.device_kind,
        n_devices=jax.device_count(),
        capability=str(getattr(device, "compute_capability", "")),
        bytes=memory,
    )
    for dtype in bench.DTYPES:
        flops, copied = bench.roofline(dtype)
        note("rates", dtype=dtype, matmul_tflops=flops / 1e12, copy_gbytes=copied / 1e9)


class Check(NamedTuple):
    """One call of an op: (implementation, *arguments) -> arrays that must be as the reference gives them.

    Attributes:
      counts: the first array is of counts out of so many, of which near-equal logits may move some.
    """

    op: str
    name: str
    call: Callable[..., Any]
    arguments: tuple
    implementations: tuple[str, ...]
    counts: int = 0


def checks(dtype: str, tiny: bool) -> Iterator[Check]:
    """Small ones with every option first, then one of a model's size for each op."""
    import jax.numpy as jnp

    from .bench import PRECISION, random
    from .head_attention import IMPLEMENTATIONS as ATTENTION
    from .head_attention import head_attention
    from .variant_decode import IMPLEMENTATIONS as DECODE
    from .variant_decode import variant_decode
    from .vocab_rank import IMPLEMENTATIONS as RANK
    from .vocab_rank import vocab_rank

    def attention(name: str, B: int, S: int, T: int, H: int, G: int, K: int, **options: Any) -> Check:
        q = random(0, B, S, H, K, dtype=dtype)
        k, v = (random(i, B, T, G, K, dtype=dtype) for i in (1, 2))

        def call(implementation: str, q: Any, k: Any, v: Any) -> Any:
            how = {"precision": PRECISION, "implementation": implementation}
            return head_attention(q, k, v, **options, **how).z

        return Check("head_attention", name, call, (q, k, v), tuple(ATTENTION))

    def decode(name: str, M: int, B: int, S: int, H: int, G: int, K: int, **options: Any) -> Check:
        shapes = ((M, B, H, K), (B, S, G, K), (B, S, G, K), (M, B, G, K), (M, B, G, K))
        arrays = tuple(random(i, *shape, dtype=dtype) for i, shape in enumerate(shapes))

        def call(implementation: str, *arrays: Any) -> Any:
            return variant_decode(*arrays, **options, precision=PRECISION, implementation=implementation)

        return Check("variant_decode", name, call, arrays, tuple(DECODE))

    def rank(name: str, H: int, N: int, K: int, D: int, V: int, **options: Any) -> Check:
        q, W_O = random(0, H, N, K, dtype=dtype), random(1, H, K, D, dtype=dtype) * D**-0.5
        unembed = random(2, V, D, dtype=dtype)
        target = jnp.arange(N, dtype=jnp.int32) * 7 % V

        def call(implementation: str, q: Any, unembed: Any, target: Any, W_O: Any) -> Any:
            how = {"W_O": W_O, "precision": PRECISION, "implementation": implementation}
            ranks = vocab_rank(q, unembed, target, **options, **how)
            return [part for part in (ranks.above, ranks.logit, ranks.lse) if part is not None]

        return Check("vocab_rank", name, call, (q, unembed, target, W_O), tuple(RANK), V)

    def mask(B: int, T: int) -> Any:
        return jnp.arange(T)[None] >= jnp.arange(B)[:, None]

    yield attention("plain", 2, 40, 40, 4, 2, 64)
    yield attention("options", 2, 40, 72, 6, 2, 80, window=33, soft_cap=20.0, scale=0.1, valid=mask(2, 72))
    yield attention("edited", 2, 40, 40, 4, 4, 64, gain=jnp.full((2, 40, 4), 0.3))
    yield decode("plain", 3, 2, 17, 4, 2, 64)
    yield decode("options", 5, 3, 40, 6, 2, 64, window=9, soft_cap=20.0, valid=mask(3, 40))
    yield rank("through W_O", 3, 100, 64, 192, 1111)
    yield rank("few queries, bias, lse", 2, 20, 64, 128, 1111, bias=jnp.linspace(-1, 1, 1111), with_lse=True)
    if not tiny:
        yield attention("Llama-3.1-8B, 2048", 1, 2048, 2048, 32, 8, 128)
        yield attention("a head of 256, window", 1, 1024, 1024, 8, 4, 256, window=512, soft_cap=50.0)
        yield decode("Llama-3.1-8B", 1024, 8, 64, 32, 8, 128)
        yield rank("Llama-3.1-8B", 2, 1500, 128, 4096, 128256)


def numbers(note: Note, tiny: bool) -> None:
    """Every kernel that can run here against its reference."""
    dtypes = ("float32",) if tiny else TOLERANCES
    every = ((dtype, check) for dtype in dtypes for check in checks(dtype, tiny))
    for dtype, check in note.each(every, lambda one: f"{one[1].op}, {one[1].name}, {one[0]}"):
        expected = _arrays(check, "reference")
        for name in check.implementations:
            if name == "reference":
                continue
            about = {"op": check.op, "case": check.name, "dtype": dtype, "implementation": name}
            try:
                with _where(name, tiny):
                    differs = _difference(check, _arrays(check, name), expected)
                note("number", **about, differs=differs, wrong=not differs <= TOLERANCES[dtype])
            except NotImplementedError as error:
                note("not here", **about, why=str(error))
            except Exception as error:
                note("failed", **about, why=f"{type(error).__name__}: {error}"[:500], wrong=True)


def _arrays(check: Check, implementation: str) -> list[Any]:
    """What an implementation gives, in float64."""
    import jax
    import numpy as np

    found = jax.jit(lambda *arguments: check.call(implementation, *arguments))(*check.arguments)
    return [np.asarray(array).astype(np.float64) for array in jax.tree.leaves(found)]


def _difference(check: Check, found: list[Any], expected: list[Any]) -> float:
    """The largest, as a share of the largest number; of counts, which near ties move, of all tokens."""
    sizes = [abs(array).max() for array in expected]
    if check.counts:
        sizes[0] = check.counts
    pairs = zip(found, expected, sizes, strict=True)
    return max(float(abs(one - other).max() / size) for one, other, size in pairs)


def _where(implementation: str, tiny: bool) -> contextlib.AbstractContextManager:
    """Interprets, in a small run, a kernel of another platform."""
    import jax

    from . import platform

    other = platform.PLATFORMS.get(implementation, jax.default_backend()) != jax.default_backend()
    interpreted = (
        tiny and other and (implementation != "pallas_mosaic_gpu" or jax.__version_info__ >= (0, 11))
    )
    return platform.interpreted() if interpreted else contextlib.nullcontext()


def speed(note: Note, tiny: bool) -> None:
    """Every op at the shapes of published models, on a CPU of small ones."""
    import jax

    from . import bench

    if tiny:  # which shows that it runs, and measures nothing
        bench.REPEATS = 1
    cases = [(op, dtype) for op in bench.OPS for dtype in bench.DTYPES]
    rates = {dtype: bench.roofline(dtype) for dtype in bench.DTYPES}
    for op, dtype in note.each(cases, ", ".join):
        for case in bench.OPS[op](dtype):
            for timing in bench.timings(case, rates[dtype]):
                tflops = timing.seconds and case.flops / timing.seconds / 1e12
                wrong = timing.seconds is None and timing.differs is not None
                note(
                    "time", op=op, case=case.name, dtype=dtype, **timing._asdict(), tflops=tflops, wrong=wrong
                )
            jax.clear_caches()
            if tiny or note.seconds_left <= 0:
                break


# Of a kernel's module: its constants, and what else to try. The first of each is what it has.
TILES = {
    "pallas_mosaic_gpu": {
        "head_attention": {"KEYS": (64, 128), "STAGES": (2, 3)},
        "vocab_rank": {"STAGES": (3, 2, 4), "BLOCKS": (264, 132, 528)},
    },
    "pallas_mosaic_tpu": {
        "head_attention": {"BLOCK": (512, 256, 1024)},
        "vocab_rank": {"BLOCK": (512, 256), "CONTRACTED": (2048, 1024)},
    },
}


def tiles(note: Note, tiny: bool) -> None:
    """The kernels of this platform, one constant changed at a time, at the largest case of their op."""
    import importlib

    import jax

    from . import bench, platform

    backend = jax.default_backend()
    own = next((name for name, needed in platform.PLATFORMS.items() if needed == backend), None)
    if own is None:
        note("no kernels of this platform", backend=backend)
        return
    package = __spec__.parent
    tries = [
        (op, constant, value)
        for op, constants in TILES[own].items()
        for constant, values in constants.items()
        for value in values
    ]
    rates = bench.roofline("bfloat16")
    for op, constant, value in note.each(tries, str):
        *_, case = bench.OPS[op]("bfloat16")
        module = importlib.import_module(f"{package}.{op}.{own}")
        usual = getattr(module, constant)
        jax.clear_caches()
        try:
            setattr(module, constant, value)
            (timing,) = bench.timings(case._replace(implementations=(own,)), rates)
            note(
                "tile", op=op, case=case.name, constant=constant, value=value, usual=usual, **timing._asdict()
            )
        except Exception as error:
            note("tile failed", op=op, constant=constant, value=value, why=str(error)[:500])
        finally:
            setattr(module, constant, usual)


SECTIONS = {"machine": machine, "numbers": numbers, "speed": speed, "tiles": tiles}


# --- before it is sent ----------------------------------------------------------------------------------


def lower_all(tiny: bool) -> int:
    """Lowers every kernel of the checks and of the timings, without a device; 1 where one cannot be."""
    import jax
    from jax.export import export

    from . import bench, platform

    failed = 0
    for dtype in ("bfloat16",) if tiny else TOLERANCES:
        cases = [(check.op, check.name, check.call, check.arguments) for check in checks(dtype, tiny)]
        cases += [
            (op, case.name, case.call, case.arguments)
            for op, made in bench.OPS.items()
            for case in made(dtype)
        ]
        for op, name, call, arguments in cases:
            shapes = jax.tree.map(lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype), arguments)
            for implementation, target in platform.PLATFORMS.items():
                said = "lowered"
                try:
                    with platform.lowered():
                        program = jax.jit(lambda *a, i=implementation, call=call: call(i, *a))
                        export(program, platforms=["cuda" if target == "gpu" else target])(*shapes)
                except NotImplementedError as error:
                    said = f"not for this: {error}"
                except Exception as error:
                    said, failed = f"FAILED: {type(error).__name__}: {error}"[:300], 1
                print(f"{op:15} {name:28} {dtype:9} {implementation:18} {said}")
    return failed


# --- what it says ---------------------------------------------------------------------------------------


def report(found: list[dict[str, Any]]) -> Iterator[str]:
    """The table for BUILD.md, what was wrong or left out, and which defaults should change."""
    for record in found:
        if record["what"] == "machine":
            yield f"{record['device']} ({record['backend']}), JAX {record['jax']}, Python {record['python']}"
        if record["what"] == "rates":
            rates = f"matmul {record['matmul_tflops']:.1f} TFLOP/s, copy {record['copy_gbytes']:.0f} GB/s"
            yield f"{record['dtype']}: {rates}"
    checked = [record for record in found if record["what"] == "number"]
    yield f"numbers: {sum(not r['wrong'] for r in checked)} of {len(checked)} right"
    for record in found:
        if record.get("wrong"):
            about = {key: value for key, value in record.items() if key not in ("section", "what", "wrong")}
            yield f"WRONG: {record['what']}, {about}"
    timed = [record for record in found if record["what"] == "time" and record["seconds"]]
    if timed:
        yield "\n| op | case | dtype | implementation | ms | TFLOP/s | of the roofline |"
        yield "|---|---|---|---|---|---|---|"
    for r in timed:
        numbers = f"{1e3 * r['seconds']:.3f} | {r['tflops']:.1f} | {r['of_roofline']:.0%}"
        yield f"| {r['op']} | {r['case']} | {r['dtype']} | {r['implementation']} | {numbers} |"
    for record in found:
        if record["what"] == "tile" and record["seconds"]:
            of = f"{record['op']}, {record['constant']} {record['value']} (usual {record['usual']})"
            yield f"tile: {of}: {1e3 * record['seconds']:.3f} ms"
        if record["what"] in ("sweep", "ratio"):
            about = {key: value for key, value in record.items() if key not in ("section", "what")}
            yield f"{record['what']}: {about}"
    yield from better_defaults(timed)
    for record in found:
        if record["what"] == "left out":
            yield f"left out, {record['section']}: {', '.join(record['names'])}"
        if record["what"] == "ended" and record["how"] != "well":
            yield f"section {record['section']} ended otherwise: {record['how']}"


def better_defaults(timed: list[dict[str, Any]]) -> Iterator[str]:
    """Ops whose kernel is faster than XLA in every case that both were timed in."""
    times: dict[tuple[str, str, str], dict[str, float]] = {}
    for r in timed:
        times.setdefault((r["op"], r["case"], r["dtype"]), {})[r["implementation"]] = r["seconds"]
    for op in dict.fromkeys(op for op, *_ in times):
        of_op = [each for (own, *_), each in times.items() if own == op and "xla" in each]
        for name in dict.fromkeys(name for each in of_op for name in each if name.startswith("pallas")):
            both = [each[name] / each["xla"] for each in of_op if name in each]
            verdict = "should be the default" if max(both) < FASTER else "stays by name"
            yield f"{op}: {name} takes {min(both):.2f} to {max(both):.2f} of XLA's time: {verdict}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
