"""One run: models to score grids to tables and figures.

    python -m experiments.run --config experiments/configs/NAME.py [--config.FIELD=VALUE ...] [--dry_run]

Writes scores.csv, scores.npz, summary.csv, figures/, report.html and run.json into the config's `out`, and
ends by naming them. Started again after it was killed, it goes on where it was. Exit status 2, with one line,
for input that cannot be used.
"""

import contextlib
import dataclasses
import hashlib
import json
import re
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import jax
from absl import flags
from headjax.kernels.dispatch import Choice

from experiments import planted
from experiments.check import (
    check_devices,
    check_out,
    check_study,
    check_together,
    check_unique,
    reads_models,
    study_at,
)
from experiments.compare import Comparison, compare, comparison_table
from experiments.config import (
    RunConfig,
    changed_places,
    config_to_json,
    idle,
    load_config,
    refuse_idle,
    same_for_all,
)
from experiments.draw import draw_all
from experiments.page import write_run_page
from experiments.plan import print_plan
from experiments.record import digests, remove_stale, write_record
from experiments.resume import code_digest, determinants, list_files, one_run_in, run_key, same_weights
from experiments.stages import Stages, devices, peak_memory, versions
from experiments.units import Units
from headjax import zoo
from headjax.analyses.base import clean_rows, run_one
from headjax.engine.batches import Work
from headjax.engine.mesh import check_alike, is_first_process, one_by_one, start_processes
from headjax.errors import InputError, run_main, shown
from headjax.grid import save_csv, save_npz
from headjax.io import check_file_names
from headjax.kernels import platform
from headjax.report.prompt_tables import describe_bos, dropped_pairs
from headjax.report.run_report import report_tables
from headjax.report.table import Table
from headjax.result import Result
from headjax.study import Study

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
    with one_run_in(Path(config.out)):
        return run_alone(config, Stages(progress))


def run_alone(config: RunConfig, stages: Stages) -> list[Path]:
    """The run, in an `out` that nobody else writes into."""
    out = Path(config.out)
    if is_first_process():
        check_out(out)
    with forced(config):
        platform.require(config.compute.implementation)

    # All models first: what is missing or does not fit is said before any is converted, and long before the
    # long work starts.
    studies, named = [], []
    for name in config.models:
        with stages.stage(f"{name}: check", quick=True), forced(config):
            study = open_model(name, config)
            named.append((study.display_name, check_study(study, config)))
            check_devices(study, config)
            studies.append(study)
    check_together(config, named)
    if (unused := idle(config, changed_places(config))) and is_first_process():
        names = ", ".join(place.rpartition(".")[2] for place in unused)
        print(f"without effect on {', '.join(config.analyses)}: {names}", file=sys.stderr)
    for study in studies:
        with stages.stage(f"{study.display_name}: load"):
            if reads_models(study, config):
                study.convert()
            _ = study.parameters  # what is wrong with its files is said here
    weights = [list_files(study.directory) for study in studies]
    units = Units(out / "units" / run_key(determinants(config, studies)))
    if units.n_found and is_first_process():
        print(f"going on: {units.n_found} finished units are in {units.directory}", file=sys.stderr)

    found = Result()
    for number, study in enumerate(studies):
        checked = partial(same_weights, study.directory, weights[number], units)
        for name, analysis in config.analyses.items():
            remember = units.within(f"{number} {study.display_name}, {name}")
            with forced(config), stages.stage(f"{study.display_name}: {name}"):
                work = Work(found, stages.track, remember)
                found += remember("result", checked()(partial(run_one, study, name, analysis, work)))
        # After the others, of which relation scores need no model.
        if any(analysis.clean_sets(study) for analysis in config.analyses.values()):
            remember = units.within(f"{number} {study.display_name}, clean")
            with forced(config), stages.stage(f"{study.display_name}: clean"):
                rows = partial(clean_rows, study, config.analyses, stages.track)
                found += Result(clean=remember("rows", checked()(rows)))
        study.release()

    if not is_first_process():
        return []
    check_unique(found.grids)
    files = [out / "scores.csv", out / "scores.npz"]
    save_csv(found.grids, files[0])
    save_npz(found.grids, files[1])
    tables = report_tables(found, config.analyses, studies, config.report, config.seed)
    compared = compare(found, config.compare, config.data.relations_dir is not None)
    if config.compare:
        tables.append(Table("comparison", Comparison._fields, compared, comparison_table(compared)))
    for table in tables:
        files += table.write(out, config.report.tables)
    with stages.stage("figures"):
        files += draw_all(found, compared, config)
    with stages.stage("page"):
        files += write_run_page(found, compared, config, studies, facts(stages))
    check_file_names((file.relative_to(out).as_posix() for file in files), "results")
    for file in remove_stale(out, files):
        print(f"removed {file}, which an earlier run wrote and this one did not", file=sys.stderr)
    more = {"clean": [row._asdict() for row in found.clean], "units_found": units.n_found}
    files.append(write_record(out, describe(config, studies, stages) | more, digests(out, files)))
    units.discard()  # the results hold all that is in them

    print(*filter(None, (table.text for table in tables)), sep="\n\n")
    for study in studies:
        if planted.is_planted(study.source.directory):
            own = found.grids.select(model=study.display_name)
            print(planted.compare(own, study.source.directory, config.report.threshold)[0])
    print("wrote", *files, sep="\n  ")
    return files


def open_model(name: str, config: RunConfig) -> Study:
    """A model as the run asks it."""
    place = one_by_one(partial(zoo.resolve, name, config.checkpoint_dir, config.seed))
    return study_at(zoo.find_source(place), name, config)


def describe(config: RunConfig, studies: Sequence[Study], stages: Stages) -> dict:
    """run.json: everything that determines the numbers, and what it cost to compute them.

    Of a run that was killed and started again, the cost since its last start.
    """
    return {
        "config": config_to_json(config),
        "models": [
            {
                "name": study.display_name,
                "config": dataclasses.asdict(study.config),
                "source": study.parameters.provenance,
                "hit_rule": study.rule._asdict(),
                "relations": {pairs.relation.id: len(pairs.words) for pairs in study.pairs},
                "skipped": {relation.id: reason for relation, reason in study.skipped},
                "dropped": dropped_pairs(study),
                "bos": describe_bos(study),
            }
            for study in studies
        ],
        "versions": dict(versions()),
        "devices": devices(),
        "implementations": implementations(stages.ran),
        "precision": " and ".join(sorted({choice.precision for choice in stages.ran})),
        "seconds": stages.seconds,
        "seconds_each": stages.seconds_each,  # of layers, or of batches, as each analysis goes
        "peak_bytes": peak_memory(),
    }


def facts(stages: Stages) -> dict[str, str]:
    """What the page says of how it was computed: label -> text."""
    device = devices()
    return {
        "versions": ", ".join(f"{name} {version}" for name, version in versions().items()),
        "devices": f"{device['count']} {device['kind']}",
        "implementations": ", ".join(f"{op}: {name}" for op, name in implementations(stages.ran).items()),
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
        if config.compute.implementation is None:
            raise
        raise InputError(f"field 'implementation' must name one that can run here; {error}") from error


@contextlib.contextmanager
def kept_programs(checkpoint_dir: str | None) -> Iterator[None]:
    """Compiled programs are kept beside the converted checkpoints, and not compiled again by the next run.

    Unless JAX is told where, or not to (JAX_COMPILATION_CACHE_DIR, JAX_ENABLE_COMPILATION_CACHE=false).
    Code is compiled for one processor, so every machine has a folder of its own; it may be removed.
    """
    wanted = {
        "jax_compilation_cache_dir": str(zoo.programs_directory(checkpoint_dir)),
        # What takes less is compiled as fast as it is read.
        "jax_persistent_cache_min_compile_time_secs": 0.2,
    }
    before = {name: getattr(jax.config, name) for name in wanted}
    if before["jax_compilation_cache_dir"] is not None:
        yield
        return
    for name, value in wanted.items():
        jax.config.update(name, value)
    try:
        with warnings.catch_warnings():
            # Another process may be writing a program that this one reads; then it is compiled again.
            warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache entry")
            yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


def code_and_config(config: RunConfig) -> bytes:
    """A digest of all that must be the same in every process of a run."""
    digest = hashlib.sha256(code_digest().encode())
    digest.update(json.dumps(same_for_all(config), sort_keys=True).encode())
    return digest.digest()


def parse_overrides(arguments: Sequence[str]) -> dict[str, str]:
    """`--config.FIELD=VALUE` arguments as field -> text."""
    overrides = {}
    for argument in arguments:
        match = re.fullmatch(r"--config\.([\w.-]+)=(.*)", argument, re.DOTALL)
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
    execute(FLAGS.config, overrides, FLAGS.dry_run, FLAGS.progress)


def execute(path: str, overrides: Mapping[str, str], planned: bool, progress: bool) -> None:
    """Runs, or plans, what a config file with some fields replaced says."""
    config = load_config(path, overrides)
    refuse_idle(config, overrides, planned)
    if planned:
        print_plan(config)
        return
    start_processes(config.distributed)
    check_alike("code and config", partial(code_and_config, config))
    with kept_programs(config.checkpoint_dir):
        run(config, progress)


if __name__ == "__main__":
    run_main(main, unknown_flags=True, stopped="what is finished is kept: start the same run again to go on")
