"""What a run would cost, before it runs: `python -m experiments.run --config FILE --dry_run`.

Reads config.json or headjax.json, the tokenizer and the prompts; no weights, and no device is touched. What
each analysis costs is in run_costs.py; here it is laid out and held against the devices' memory.
"""

import contextlib
import math
import os
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import jax.numpy as jnp

from checkpoints_convert.engine import read_source_config
from experiments.checks import check_config, check_subject
from experiments.config import RunConfig
from experiments.costs import Cost
from experiments.measure import host_rate
from experiments.run_costs import COSTS, Machine, parameter_bytes
from experiments.subject import Subject, find_named, name_models, open_subject, reads_source
from headjax import zoo
from headjax.analyses.relation_scores import FIRST_MLP, LAYER
from headjax.engine.mesh import MODEL_AXIS
from headjax.errors import InputError
from headjax.io import read_json
from headjax.model import parameter_shapes
from headjax.parameters.converted import is_converted, read_config, stored_dtypes

GIB = 2**30


class Row(NamedTuple):
    """One analysis of one model; bytes on each device. `cost` is None where nobody has worked it out."""

    analysis: str
    parameters: float
    cost: Cost | None
    read: float


def print_plan(config: RunConfig) -> None:
    """Prints the plan of every model. Raises InputError for a run that cannot fit."""
    check_config(config)
    machine = find_machine(config)
    print("\n".join(describe_machine(machine, config)))
    refusals, planned = [], 0
    for name in config.models:
        found = find_subject(name, config)
        if found is None:
            print(f"\n{name}: config.json is not on this machine, and a plan downloads nothing")
            continue
        subject, itemsizes = found
        check_subject(subject)
        rows = plan_model(subject, itemsizes, machine)
        print(f"\n{describe_model(subject, itemsizes, machine)}\n{table(rows, machine)}")
        refusals += refuse(subject, itemsizes, machine, rows)
        planned += 1
    if not planned:
        raise InputError(f"a plan needs config.json of a model; none is here of {', '.join(config.models)}")
    if refusals:
        raise InputError("; ".join(refusals))


# --- what there is ------------------------------------------------------------------------------------


def find_machine(config: RunConfig) -> Machine:
    """The devices that the config names; without `device_memory`, this machine's CPU."""
    mesh = config.mesh or {}
    n_devices = math.prod(mesh.values())
    if config.device_memory is None:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / n_devices
        rate = host_rate() / n_devices if config.rate is None else config.rate * 1e12
        return Machine(n_devices, mesh.get(MODEL_AXIS, 1), memory, rate, "cpu")
    rate = None if config.rate is None else config.rate * 1e12
    return Machine(n_devices, mesh.get(MODEL_AXIS, 1), config.device_memory * GIB, rate, "gpu")


def find_subject(name: str, run: RunConfig) -> tuple[Subject, dict[str, int]] | None:
    """The model as a run would see it, and each parameter's bytes a number on disk; None: not here."""
    # The demonstration checkpoint is small, and made without a device.
    given = name
    name, relations_dir, planted_at = find_named(name, run, once=lambda build: build())
    directory = zoo.find_local(name)
    if directory is None:
        return None
    if is_converted(directory):
        config = read_config(directory)
        itemsizes = {parameter: dtype.itemsize for parameter, dtype in stored_dtypes(directory).items()}
    else:
        config = read_source_config(directory, run.ignore_fields)[1]
        fields = read_json(directory / "config.json")
        dtype = fields.get("dtype") or fields.get("torch_dtype") or "float32"
        itemsizes = dict.fromkeys(parameter_shapes(config), jnp.dtype(dtype).itemsize)
    config = replace(config, precision=run.precision)
    subject = open_subject(name_models(run)[given], directory, config, run, relations_dir, planted_at)
    return subject, itemsizes


# --- what it costs ------------------------------------------------------------------------------------


def plan_model(subject: Subject, itemsizes: dict[str, int], machine: Machine) -> list[Row]:
    """A row an analysis, in the order in which they run: the first forward pass loads the model.

    Where the model is streamed each forward pass reads it, two layers of it are there at a time, and the
    programs that are compiled are others than those that are planned for: none are counted.
    """
    c = subject.config
    whole = parameter_bytes(c, jnp.dtype(subject.run.dtype).itemsize, machine.model_parts)
    on_disk = {name: math.prod(shape) * itemsizes[name] for name, shape in parameter_shapes(c).items()}
    rows, resident, known = [], 0.0, set()
    for analysis in subject.run.analyses:
        read = 0.0
        if analysis == "relation_scores":
            read = static_bytes(subject, on_disk)
        elif subject.run.stream:
            resident, read = streamed_bytes(subject), sum(on_disk.values())
        elif not resident:
            resident, read = whole, sum(on_disk.values())
        cost = COSTS[analysis](subject, machine) if analysis in COSTS else None
        if cost is not None and subject.run.stream and analysis != "relation_scores":
            cost = cost._replace(programs=frozenset())
        elif cost is not None:
            if analysis != "relation_scores":
                cost = cost._replace(programs=cost.programs | {("_insert",)})
            cost = cost._replace(programs=cost.programs - known)
            known |= cost.programs
        rows.append(Row(analysis, resident, cost, read))
    return rows


def streamed_bytes(subject: Subject) -> float:
    """Parameters that are there while a model is streamed: two layers, and all that is outside of layers."""
    c, itemsize = subject.config, jnp.dtype(subject.run.dtype).itemsize
    sizes = {name: itemsize * math.prod(shape) for name, shape in parameter_shapes(c).items()}
    of_layers = sum(n_bytes for name, n_bytes in sizes.items() if name.startswith("blocks."))
    return sum(sizes.values()) - of_layers + 2 * of_layers / c.n_layers


def static_bytes(subject: Subject, on_disk: dict[str, int]) -> float:
    """What relation scores read: embeddings, every layer's W_V and W_O, the first block's MLP."""
    whole = sum(on_disk.get(name, 0) for name in ("embed.W_E", "unembed.rows", *LAYER))
    first = sum(on_disk.get(name, 0) for name in FIRST_MLP) / subject.config.n_layers
    return whole + first * subject.rule.first_mlp


# --- whether it fits ----------------------------------------------------------------------------------


def needed(row: Row) -> float:
    """Bytes on each device."""
    return row.parameters + (row.cost.activations if row.cost else 0)


def refuse(subject: Subject, itemsizes: dict[str, int], machine: Machine, rows: list[Row]) -> list[str]:
    """One sentence for the analysis that needs most, if it does not fit: what it needs, what would help."""
    worst = max(rows, key=needed)
    if needed(worst) <= machine.memory:
        return []

    def fits(run: RunConfig, machine: Machine) -> bool:
        changed = replace(subject, run=run)
        return all(needed(row) <= machine.memory for row in plan_model(changed, itemsizes, machine))

    run, helps = subject.run, []
    if machine.platform != "cpu":  # CPU devices share one memory
        for parts in (machine.model_parts * 2**i for i in range(1, 10)):
            if fits(run, machine._replace(model_parts=parts, n_devices=max(parts, machine.n_devices))):
                helps.append(f"mesh with {parts} devices on 'model'")
                break
    for batch_size in (run.batch_size // 2**i for i in range(1, run.batch_size.bit_length())):
        if fits(replace(run, batch_size=batch_size), machine):
            helps.append(f"batch_size={batch_size}")
            break
    others = {"variant_batch": 1, "dtype": "bfloat16", "stream": True, "analyses": ("relation_scores",)}
    for field, value in others.items():
        if getattr(run, field) == value:
            continue
        with contextlib.suppress(InputError):  # not every run can be streamed
            if fits(replace(run, **{field: value}), machine):
                shown = ",".join(value) if isinstance(value, tuple) else str(value)
                helps.append(f"{field}={shown.lower()}")
    helps.append(f"devices of {needed(worst) / GIB:.1f} GiB")
    return [
        f"{subject.display_name}: {worst.analysis} must fit a device of {machine.memory / GIB:.1f} GiB; it "
        f"needs {needed(worst) / GIB:.1f} ({worst.parameters / GIB:.1f} for parameters); any of these "
        f"would make it fit: {', '.join(helps)}"
    ]


# --- as text ------------------------------------------------------------------------------------------


def describe_machine(machine: Machine, config: RunConfig) -> Iterator[str]:
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
        source = "measured now with numpy" if own and config.rate is None else "given"
        yield f"rate: {machine.rate / 1e12:.3g} TFLOP/s a device, {source}; time is FLOP over rate"


def describe_model(subject: Subject, itemsizes: dict[str, int], machine: Machine) -> str:
    """A model's size, and whether it is to be converted first."""
    c = subject.config
    n = sum(math.prod(shape) for _, shape in parameter_shapes(c).items())
    stored = sum(math.prod(shape) * itemsizes[name] for name, shape in parameter_shapes(c).items())
    text = f"{subject.display_name}: {c.n_layers} layers of {c.n_heads} heads, {n:,} parameters"
    if is_converted(subject.directory) or reads_source(subject.run):
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
        seconds = row.cost.flops / (machine.rate * machine.n_devices) if machine.rate else None
        lines.append(
            f"{start} {size(row.cost.activations)} {row.cost.variants or '-':>8} "
            f"{row.cost.flops / 1e12:9.4g} {size(row.read)} {len(row.cost.programs) or '-':>8} "
            f"{'-' if seconds is None else f'{seconds:.3g} s':>10}"
        )
    total = sum(row.cost.flops for row in rows if row.cost)
    compiles = sum(len(row.cost.programs) for row in rows if row.cost)
    time = f"{total / (machine.rate * machine.n_devices):.3g} s" if machine.rate else "-"
    read = size(sum(row.read for row in rows))
    lines.append(f"{'all':49} {total / 1e12:9.4g} {read} {compiles:8} {time:>10}")
    return "\n".join(lines)
