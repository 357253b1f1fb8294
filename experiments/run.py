"""One run: models to score grids to tables and figures.

    python -m experiments.run --config experiments/configs/NAME.py [--config.FIELD=VALUE ...] [--dry_run]

Writes scores.csv, scores.npz, summary.csv, figures/ and run.json into the config's `out`, and ends by
naming them. Started again after it was killed, it goes on where it was. Exit status 2, with one line, for
input that cannot be used.
"""

import contextlib
import dataclasses
import hashlib
import json
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

from absl import flags

from experiments import planted
from experiments.analyses import ANALYSES, ablation_curves
from experiments.checks import (
    check_config,
    check_devices,
    check_out,
    check_subject,
    check_together,
    check_unique,
)
from experiments.circuits import write_circuits, write_predictions
from experiments.clean import OF_PARTNERS, OF_TASKS, clean_rows
from experiments.compare import compare
from experiments.config import RunConfig, config_to_json, load_config
from experiments.draw import draw_figures
from experiments.fields import changed_fields, refuse_without_effect, without_effect
from experiments.path_analyses import circuit_discovery
from experiments.plan import print_plan
from experiments.record import digests, remove_stale, write_record
from experiments.results import Results
from experiments.resume import code_digest, determinants, list_files, one_run_in, run_key, same_weights
from experiments.stages import Stages, devices, peak_memory, versions
from experiments.subject import Subject, find_subject, load_subject
from experiments.tables import write_curves, write_tables
from experiments.tables_papers import universality, write_comparison, write_salient, write_universality
from experiments.tables_prompts import describe_bos, dropped_pairs, write_prompt_tables
from experiments.units import Units
from experiments.weight_analyses import salient_operations
from headjax.engine.mesh import check_alike, is_first_process, start_processes
from headjax.errors import InputError, run_main, shown
from headjax.grid import GridSet, save_csv, save_npz
from headjax.io import check_file_names
from headjax.report.curve_tables import curve_rows
from headjax.report.summary import SummaryRow, skipped_row
from kernels import platform
from kernels.dispatch import Choice

FLAGS = flags.FLAGS
flags.DEFINE_string(
    "config", None, "A Python file with get_config(), or the name of one in experiments/configs."
)
flags.DEFINE_bool(
    "dry_run", False, "Print what the run would cost, and refuse one that cannot fit; no device."
)
flags.DEFINE_bool("progress", True, "Progress bars, where there is a terminal to show them on.")


def run(config: RunConfig, progress: bool = True) -> list[Path]:
    """Does what the config says and returns the files written: none in processes other than the first."""
    check_config(config)
    with one_run_in(Path(config.out)):
        return run_alone(config, Stages(progress))


def run_alone(config: RunConfig, stages: Stages) -> list[Path]:
    """The run, in an `out` that nobody else writes into."""
    out = Path(config.out)
    if is_first_process():
        check_out(out)
    with forced(config):
        platform.require(config.implementation)

    # All models first: what is missing or does not fit is said before any is converted, and long before the
    # long work starts.
    named = []
    for name in config.models:
        with stages.stage(f"{name}: check"), forced(config):
            subject = find_subject(name, config)
            named.append((subject.display_name, check_subject(subject)))
            check_devices(subject)
    check_together(config, named)
    if (idle := without_effect(config, changed_fields(config))) and is_first_process():
        print(f"without effect on {', '.join(config.analyses)}: {', '.join(idle)}", file=sys.stderr)
    subjects = []
    for name in config.models:
        with stages.stage(f"{name}: load"):
            subjects.append(load_subject(name, config))
    weights = [list_files(subject.directory) for subject in subjects]
    units = Units(out / "units" / run_key(determinants(config, subjects)))
    if units.n_found and is_first_process():
        print(f"going on: {units.n_found} finished units are in {units.directory}", file=sys.stderr)

    grids, clean, curves, salient, circuits = GridSet(), [], [], {}, {}
    for number, subject in enumerate(subjects):
        remember = units.within(f"{number} {subject.display_name}, clean")
        checked = same_weights(subject.directory, weights[number], units)
        if not (OF_TASKS | OF_PARTNERS).isdisjoint(config.analyses):
            with forced(config), stages.stage(f"{subject.display_name}: clean"):
                compute = checked(partial(clean_rows, subject, stages.track))
                clean += remember("rows", compute)
        for analysis in config.analyses:
            remember = units.within(f"{number} {subject.display_name}, {analysis}")
            checked = same_weights(subject.directory, weights[number], units)
            with forced(config), stages.stage(f"{subject.display_name}: {analysis}"):
                if analysis == "ablation_curves":
                    compute = checked(partial(ablation_curves, subject, grids, stages.track, remember))
                    curves += [(subject.display_name, one) for one in remember("curves", compute)]
                elif analysis == "salient_operations":
                    compute = checked(partial(salient_operations, subject, stages.track))
                    salient[subject.display_name] = remember("heads", compute)
                elif analysis == "circuit_discovery":
                    compute = checked(partial(circuit_discovery, subject, stages.track, remember))
                    more, found = remember("circuits", compute)
                    grids += more
                    circuits |= {(subject.display_name, task): one for task, one in found.items()}
                elif analysis in ANALYSES:
                    compute = checked(partial(ANALYSES[analysis], subject, stages.track, remember))
                    grids += remember("grids", compute)
        subject.release()

    if not is_first_process():
        return []
    check_unique(grids)
    points = [(model, row) for model, one in curves for row in curve_rows(one, config.seed)]
    found = {key: one.heads for key, one in circuits.items()}
    n_kv_heads = {subject.display_name: subject.config.n_kv_heads for subject in subjects}
    compared = compare(grids, points, config.compare, config.relations_dir is not None)
    results = Results(grids, points, found, universality(grids, n_kv_heads, config), compared)

    files = [out / "scores.csv", out / "scores.npz"]
    save_csv(grids, files[0])
    save_npz(grids, files[1])
    tables, texts = write_tables(grids, clean, skipped_rows(subjects), config)
    files += tables
    tables, more = write_prompt_tables(subjects, config)
    files, texts = files + tables, texts + more
    if curves:
        tables, more = write_curves(curves, config)
        files, texts = files + tables, texts + more
    files += write_salient(salient, config)
    written = (write_universality(results.universality, config), write_comparison(compared, config))
    for tables, more in written:
        files, texts = files + tables, texts + more
    if circuits:
        n_heads = {s.display_name: s.config.n_layers * s.config.n_heads for s in subjects}
        tables, more = write_circuits(circuits, n_heads, config)
        files, texts = files + tables, texts + more
    tables, more = write_predictions(grids, found, config)
    files, texts = files + tables, texts + more
    with stages.stage("figures"):
        files += draw_figures(results, config)
    check_file_names((file.relative_to(out).as_posix() for file in files), "results")
    for file in remove_stale(out, files):
        print(f"removed {file}, which an earlier run wrote and this one did not", file=sys.stderr)
    more = {"clean": [row._asdict() for row in clean], "units_found": units.n_found}
    described = describe(config, subjects, stages) | more
    files.append(write_record(out, described, digests(out, files)))
    units.discard()  # the results hold all that is in them

    print(*texts, sep="\n\n")
    for subject in subjects:
        if subject.planted is not None:
            print(
                planted.compare(grids.select(model=subject.display_name), subject.planted, config.threshold)[
                    0
                ]
            )
    print("wrote", *files, sep="\n  ")
    return files


def skipped_rows(subjects: Sequence[Subject]) -> list[SummaryRow]:
    """The relations that each model had too few pairs for."""
    return [
        skipped_row(subject.display_name, relation.id, relation.category, reason)
        for subject in subjects
        for relation, reason in subject.skipped
    ]


def describe(config: RunConfig, subjects: Sequence[Subject], stages: Stages) -> dict:
    """run.json: everything that determines the numbers, and what it cost to compute them.

    Of a run that was killed and started again, the cost since its last start.
    """
    return {
        "config": config_to_json(config),
        "models": [
            {
                "name": subject.display_name,
                "config": dataclasses.asdict(subject.config),
                "source": subject.provenance,
                "hit_rule": subject.rule._asdict(),
                "relations": {pairs.relation.id: len(pairs.words) for pairs in subject.pairs},
                "skipped": {relation.id: reason for relation, reason in subject.skipped},
                "dropped": dropped_pairs(subject),
                "bos": describe_bos(subject),
            }
            for subject in subjects
        ],
        "versions": versions(),
        "devices": devices(),
        "implementations": implementations(stages.ran),
        "precision": " and ".join(sorted({choice.precision for choice in stages.ran})),
        "seconds": stages.seconds,
        "seconds_each": stages.seconds_each,  # of layers, or of batches, as each analysis goes
        "peak_bytes": peak_memory(),
    }


def implementations(ran: Iterable[Choice]) -> dict[str, str]:
    """What each op, or what stands in for one, was computed by; several are joined by "and"."""
    names: dict[str, set[str]] = {}
    for choice in sorted(ran):
        names.setdefault(choice.op, set()).add(choice.implementation)
    return {op: " and ".join(sorted(chosen)) for op, chosen in names.items()}


@contextlib.contextmanager
def forced(config: RunConfig) -> Iterator[None]:
    """A kernel that cannot do what the config forces it to do is the config's fault, not a bug."""
    try:
        yield
    except NotImplementedError as error:
        if config.implementation is None:
            raise
        raise InputError(f"field 'implementation' must name one that can run here; {error}") from error


def code_and_config(config: RunConfig) -> bytes:
    """A digest of all that must be the same in every process of a run."""
    digest = hashlib.sha256(code_digest().encode())
    # Each process has its own number.
    fields = config_to_json(dataclasses.replace(config, distributed=None))
    digest.update(json.dumps(fields, sort_keys=True).encode())
    return digest.digest()


def parse_overrides(arguments: Sequence[str]) -> dict[str, str]:
    """`--config.FIELD=VALUE` arguments as field -> text."""
    overrides = {}
    for argument in arguments:
        match = re.fullmatch(r"--config\.(\w+)=(.*)", argument, re.DOTALL)
        if match is None:
            raise InputError(f"after --config only --config.FIELD=VALUE may follow; got {shown(argument)}")
        if match[1] in overrides:
            raise InputError(f"a field must be given once; got --config.{match[1]} twice")
        overrides[match[1]] = match[2]
    return overrides


def main(argv: Sequence[str]) -> None:
    overrides = parse_overrides(argv[1:])
    if FLAGS.config is None:
        raise InputError("a run needs --config FILE, e.g. --config experiments/configs/demo.py; got none")
    config = load_config(FLAGS.config, overrides)
    refuse_without_effect(config, overrides, planned=FLAGS.dry_run)
    if FLAGS.dry_run:
        print_plan(config)
        return
    start_processes(config.distributed)
    check_alike("code and config", code_and_config(config))
    run(config, FLAGS.progress)


if __name__ == "__main__":
    run_main(main, unknown_flags=True, stopped="what is finished is kept: start the same run again to go on")
