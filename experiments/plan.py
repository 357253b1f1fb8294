"""What a run would cost, before it runs: `python -m experiments.run --config FILE --dry_run`.

Reads config.json or headjax.json, the tokenizer and the prompts; no weights, and no device is touched. What
each analysis costs it says itself; here it is laid out and held against the devices' memory.
"""

import contextlib
import math
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp

from experiments.benchmarks.measure import host_rate
from experiments.check import check_study, reads_models, study_at
from experiments.config import RunConfig
from experiments.unseen import find_published, write_published
from headjax import costs, zoo
from headjax.analyses.base import Analysis, check_stream, clean_batches
from headjax.analyses.relation_scores import layer_names
from headjax.costs import Cost, Machine, parameter_bytes
from headjax.data.prompts import PromptBatch
from headjax.engine import clean_run
from headjax.engine.mesh import MODEL_AXIS
from headjax.errors import InputError
from headjax.io import read_json
from headjax.model import first_mlp_names, parameter_shapes
from headjax.parameters.converted import is_converted, stored_dtypes
from headjax.parameters.layered import streamed_parameters
from headjax.study import Compute, Study
from headjax.traced import Compiled

GIB = 2**30
# Measured on 2 x86-64 cores with the trained GPT-2 and SmolLM2-135M: seconds to trace and compile a program
# and each of its operations, bytes a second from a converted checkpoint to a model, and what a process holds
# beside its work: imports and compiled programs, and more where it has read a model.
COMPILE_SECONDS, OPERATION_SECONDS = 0.5, 1.4e-3
LOAD_RATE = 2e8
PROCESS_BYTES, READER_BYTES = 0.5 * GIB, 0.25 * GIB
# Of a model that is read layer by layer each sweep is three programs or more.
LAYERED_PARTS = ("begin", "layer", "finish")


class Row(NamedTuple):
    """One analysis of one model; bytes on each device. `cost` is None where nobody has worked it out."""

    analysis: str
    parameters: float
    cost: Cost | None
    read: float


def print_plan(config: RunConfig) -> None:
    """Prints the plan of every model. Raises InputError for a run that cannot fit."""
    machine = find_machine(config.compute)
    print("\n".join(describe_machine(machine, config.compute)))
    refusals, planned = [], 0
    for name in config.models:
        with tempfile.TemporaryDirectory() as scratch:
            found = find_study(name, config, Path(scratch))
            if found is None:
                print(f"\n{name}: config.json is not on this machine, and a plan downloads nothing")
                continue
            study, itemsizes = found
            check_study(study, config)
            rows = plan_model(study, config.analyses, itemsizes, machine)
            print(f"\n{describe_model(study, config, itemsizes)}\n{table(rows, machine)}")
            if Path(scratch) in study.source.directory.parents:
                print("its published sizes, for it is not on this machine; a token counted for every word")
            refusals += refuse(study, config.analyses, itemsizes, machine, rows)
            planned += 1
    if not planned:
        raise InputError(f"a plan needs config.json of a model; none is here of {', '.join(config.models)}")
    if refusals:
        raise InputError("; ".join(refusals))


# --- what there is ------------------------------------------------------------------------------------


def find_machine(compute: Compute) -> Machine:
    """The devices that are named; without `device_memory`, this machine's CPU."""
    mesh = compute.mesh or {}
    n_devices = math.prod(mesh.values())
    if compute.device_memory is None:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / n_devices
        rate = host_rate() / n_devices if compute.rate is None else compute.rate * 1e12
        return Machine(n_devices, mesh.get(MODEL_AXIS, 1), memory, rate, "cpu")
    rate = None if compute.rate is None else compute.rate * 1e12
    return Machine(n_devices, mesh.get(MODEL_AXIS, 1), compute.device_memory * GIB, rate, "gpu")


def find_study(name: str, config: RunConfig, scratch: Path) -> tuple[Study, dict[str, int]] | None:
    """The model as a run would see it, and each parameter's bytes a number on disk; None: not here.

    Of a published model that is not here, as much as is known of it, written into `scratch`.
    """
    place = zoo.resolve(name, config.checkpoint_dir, config.seed)
    directory = zoo.find_local(place)
    if directory is None:
        fields = find_published(str(place))
        if fields is None:
            return None
        directory = scratch / "model"
        write_published(fields, config.data, directory)
    study = study_at(zoo.Source(directory, str(place), None), name, config)
    if is_converted(directory):
        return study, {name: dtype.itemsize for name, dtype in stored_dtypes(directory).items()}
    fields = read_json(directory / "config.json")
    dtype = fields.get("dtype") or fields.get("torch_dtype") or "float32"
    return study, dict.fromkeys(parameter_shapes(study.config), jnp.dtype(dtype).itemsize)


# --- what it costs ------------------------------------------------------------------------------------


def plan_model(
    study: Study, analyses: Mapping[str, Analysis], itemsizes: dict[str, int], machine: Machine
) -> list[Row]:
    """A row an analysis, in the order in which they run, then the clean run: the first forward pass loads
    the model.

    Where the model is streamed each pass through it reads it, two layers of it are there at a time, and each
    program is one of LAYERED_PARTS.
    """
    c, itemsize, stream = study.config, jnp.dtype(study.compute.dtype).itemsize, study.compute.stream
    model = parameter_bytes(c, itemsize, machine.model_parts)
    if stream:
        model = itemsize * streamed_parameters(c)
    on_disk = {name: math.prod(shape) * itemsizes[name] for name, shape in parameter_shapes(c).items()}
    # What needs no model though none is streamed reads weights alone, as relation scores do.
    whole = replace(study, compute=replace(study.compute, stream=False))
    asked = [(name, one.cost, not one.needs_model(whole)) for name, one in analyses.items()]
    if batches := [batch for batch, _ in clean_batches(study, analyses)]:
        asked.append(("clean run", partial(clean_cost, batches), False))
    rows, resident, known = [], 0.0, set()
    for name, cost_of, of_weights in asked:
        cost, read = cost_of(study, machine), 0.0
        if of_weights:
            read = static_bytes(study, on_disk)
        elif stream or not resident:
            resident, read = model, sum(on_disk.values())
        if cost is not None:
            programs = cost.programs
            if stream and not of_weights:
                # Of the layers that are not there only the host holds something.
                few = cost_of(replace(study, config=replace(c, n_layers=2)), machine)
                cost, read = cost._replace(activations=few.activations), cost.passes * read
                programs = {
                    program._replace(name=f"{part} of {program.name}", operations=program.operations // 3)
                    for program in programs
                    for part in LAYERED_PARTS
                }
            elif not of_weights:
                programs |= {Compiled("_insert")}
            cost = cost._replace(programs=frozenset(programs - known))
            known |= programs
        rows.append(Row(name, resident, cost, read))
    return rows


def clean_cost(batches: Sequence[PromptBatch], study: Study, machine: Machine) -> Cost:
    """What it costs to see what the model does with no head touched."""
    cost = costs.NOTHING
    for batch in batches:
        more = () if batch.distractors is None else (batch.distractors,)
        arrays = (batch.tokens, batch.mask, batch.answers, *more)
        cost += costs.mapped(study, machine, clean_run.SWEEP, *arrays)
    return cost


def static_bytes(study: Study, on_disk: dict[str, int]) -> float:
    """What relation scores read: embeddings, every layer's W_V and W_O, the first block's MLP."""
    whole = sum(on_disk.get(name, 0) for name in ("embed.W_E", "unembed.rows", *layer_names(study.config)))
    first = sum(on_disk[name] for name in first_mlp_names(study.config)) / study.config.n_layers
    return whole + first * study.rule.first_mlp


# --- whether it fits ----------------------------------------------------------------------------------


def needed(row: Row) -> float:
    """Bytes on each device."""
    return row.parameters + (row.cost.activations if row.cost else 0)


def peak(rows: Sequence[Row], machine: Machine) -> float:
    """Bytes on each device at once; CPU devices share their memory with the process itself."""
    process = PROCESS_BYTES + READER_BYTES * any(row.parameters for row in rows)
    return max(map(needed, rows)) + (process / machine.n_devices if machine.platform == "cpu" else 0)


def seconds(row: Row, machine: Machine) -> float | None:
    """How long it takes the first time; None where no rate was given. Later runs find the programs kept."""
    if row.cost is None or machine.rate is None:
        return None
    work = row.cost.flops / (machine.rate * machine.n_devices)
    operations = sum(program.operations for program in row.cost.programs)
    compiling = COMPILE_SECONDS * len(row.cost.programs) + OPERATION_SECONDS * operations
    return work + compiling + row.read / LOAD_RATE


def refuse(
    study: Study,
    analyses: Mapping[str, Analysis],
    itemsizes: dict[str, int],
    machine: Machine,
    rows: list[Row],
) -> list[str]:
    """One sentence for the analysis that needs most, if it does not fit: what it needs, what would help."""
    if peak(rows, machine) <= machine.memory:
        return []
    worst = max(rows, key=needed)

    def fits(machine: Machine, chosen: Mapping[str, Analysis] = analyses, **compute: Any) -> bool:
        changed = replace(study, compute=replace(study.compute, **compute))
        check_stream(chosen, changed.compute)
        return peak(plan_model(changed, chosen, itemsizes, machine), machine) <= machine.memory

    compute, helps = study.compute, []
    if machine.platform != "cpu":  # CPU devices share one memory
        for parts in (machine.model_parts * 2**i for i in range(1, 10)):
            if fits(machine._replace(model_parts=parts, n_devices=max(parts, machine.n_devices))):
                helps.append(f"mesh with {parts} devices on 'model'")
                break
    for batch_size in (compute.batch_size // 2**i for i in range(1, compute.batch_size.bit_length())):
        if fits(machine, batch_size=batch_size):
            helps.append(f"batch_size={batch_size}")
            break
    for field, value in (("variant_batch", 1), ("dtype", "bfloat16"), ("stream", True)):
        with contextlib.suppress(InputError):  # not every run can be streamed
            if getattr(compute, field) != value and fits(machine, **{field: value}):
                helps.append(f"{field}={str(value).lower()}")
    own = {name: analysis for name, analysis in analyses.items() if analysis.kind == "relation_scores"}
    if own and len(own) < len(analyses) and fits(machine, own):
        helps.append(f"analyses={','.join(own)}")
    helps.append(f"devices of {needed(worst) / GIB:.1f} GiB")
    return [
        f"{study.display_name}: {worst.analysis} must fit a device of {machine.memory / GIB:.1f} GiB; it "
        f"needs {needed(worst) / GIB:.1f} ({worst.parameters / GIB:.1f} for parameters); any of these "
        f"would make it fit: {', '.join(helps)}"
    ]


# --- as text ------------------------------------------------------------------------------------------


def describe_machine(machine: Machine, compute: Compute) -> Iterator[str]:
    """What the plan assumes."""
    own = machine.platform == "cpu"
    yield (
        f"{machine.n_devices} device{'s' * (machine.n_devices > 1)} of {machine.memory / GIB:.1f} GiB, "
        f"{machine.model_parts} to a copy of the model"
        + (" (this machine's CPU; for others give device_memory and rate)" if own else "")
    )
    if machine.rate is None:
        yield "rate: not given, so no time (--config.rate=TFLOP/s of one device)"
    else:
        source = "measured now with numpy" if own and compute.rate is None else "given"
        yield (
            f"rate: {machine.rate / 1e12:.3g} TFLOP/s a device, {source}; time is FLOP over rate, "
            f"{COMPILE_SECONDS:g} s a program that is not kept yet and {1000 * OPERATION_SECONDS:g} s a "
            f"thousand of its operations, reading at {LOAD_RATE / 1e9:g} GB/s"
        )


def describe_model(study: Study, config: RunConfig, itemsizes: dict[str, int]) -> str:
    """A model's size, and whether it is to be converted first."""
    c = study.config
    n = sum(math.prod(shape) for _, shape in parameter_shapes(c).items())
    stored = sum(math.prod(shape) * itemsizes[name] for name, shape in parameter_shapes(c).items())
    text = f"{study.display_name}: {c.n_layers} layers of {c.n_heads} heads, {n:,} parameters"
    if is_converted(study.directory) or not reads_models(study, config):
        return text
    return f"{text}; converting it, once, reads and writes {size(stored).strip()}"


def size(n_bytes: float) -> str:
    """Bytes for people, nine characters."""
    return f"{n_bytes / GIB:5.1f} GiB" if n_bytes >= GIB else f"{n_bytes / 2**20:5.1f} MiB"


def table(rows: list[Row], machine: Machine) -> str:
    """The plan of one model, aligned."""
    lines = [
        f"{'':20} {'parameters':>10} {'at work':>9} {'variants':>8} {'TFLOP':>9} {'read':>9} "
        f"{'compiles':>8} {'time':>10}"
    ]
    for row in rows:
        start = f"{row.analysis:20}  {size(row.parameters)}"
        if row.cost is None:
            lines.append(f"{start}  not worked out")
            continue
        time = seconds(row, machine)
        lines.append(
            f"{start} {size(row.cost.activations)} {row.cost.variants or '-':>8} "
            f"{row.cost.flops / 1e12:9.4g} {size(row.read)} {len(row.cost.programs) or '-':>8} "
            f"{'-' if time is None else f'{time:.3g} s':>10}"
        )
    unknown = [row.analysis for row in rows if row.cost is None]
    total = sum(row.cost.flops for row in rows if row.cost)
    compiles = sum(len(row.cost.programs) for row in rows if row.cost)
    time = f"{sum(seconds(row, machine) or 0 for row in rows):.3g} s" if machine.rate else "-"
    read = size(sum(row.read for row in rows))
    # A total that leaves something out says so.
    what = f"all but {', '.join(unknown)}" if unknown else "all"
    lines.append(f"{what:49} {total / 1e12:9.4g} {read} {compiles:8} {time:>10}")
    lines.append(f"at most {size(peak(rows, machine)).strip()} of a device at once")
    return "\n".join(lines)
