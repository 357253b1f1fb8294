"""RunConfig: what a run does, nested and typed; read from a Python file and `--config.FIELD=VALUE`.

    RunConfig(
        model="gpt2",
        data=Data(n_prompts=100),
        analyses=(RelationScores(), HeadAblation(prompts="ioi")),        # or {"mean": HeadAblation(...)}
    )

A field is overridden by its place, `--config.data.n_prompts=20` or
`--config.analyses.head_ablation.positions=all`, or by its name alone where that says which is meant.
"""

import dataclasses
import difflib
import importlib.util
import re
import traceback
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from experiments.published import COMPARISONS
from headjax.analyses.base import Analysis, check_stream, name_analyses
from headjax.analyses.registry import ANALYSES, find_analysis
from headjax.data.prompts import Prompt
from headjax.data.relations import Relation
from headjax.errors import InputError, shown
from headjax.io import json_object, parse_json
from headjax.options import Options, Words, field_kinds, option, parse
from headjax.report.options import Report
from headjax.study import Compute, Data

CONFIGS = Path(__file__).parent / "configs"
SECTIONS = {"data": Data, "compute": Compute, "report": Report}


@dataclass(frozen=True)
class RunConfig(Options):
    """One run. `--config.FIELD=VALUE` overrides a field.

    Attributes:
      model: alias (`gpt2-xl`), Hugging Face id or directory; several give one panel each. `planted` is
        the demonstration checkpoint, built on the spot; `trained` a small trained model that comes along.
      analyses: what to compute, in this order: analyses, or their kinds; in a dictionary under names of their
        own, by which figures and tables tell apart several of a kind.
      data, compute, report: what is asked, how it is computed, what is shown.
      compare: published tables to hold the run against, of `experiments.published.COMPARISONS`.
      ignore_fields: fields of the models' config.json to treat as absent where they are not understood.
      seed: of everything drawn at random.
      distributed: COORDINATOR:PORT,COUNT,ID of a run of several processes. None: they find each other on
        TPU pods and under SLURM; elsewhere there is one.
      out: directory of the results; checkpoint_dir: where converted checkpoints are kept; None:
        $HEADJAX_CACHE or ~/.cache/headjax/checkpoints.
    """

    model: str | tuple[str, ...] = option(dataclasses.MISSING, some=True)
    analyses: dict[str, Analysis] = field(
        default=("relation_scores",)
    )  # as given, `name_analyses` names them
    data: Data = field(default_factory=Data)
    compute: Compute = field(default_factory=Compute)
    report: Report = field(default_factory=Report)
    compare: Words = option((), choices=COMPARISONS)
    ignore_fields: Words = ()
    seed: int = option(0, least=0)
    distributed: str | None = None
    out: str = "out"
    checkpoint_dir: str | None = None

    def __post_init__(self) -> None:
        given = self.analyses
        analyses = name_analyses([given] if isinstance(given, Analysis | str | Mapping) else given)
        for name in analyses:
            if not re.fullmatch(r"\w[\w-]{0,59}", name):
                rule = "a name of an analysis must be letters, digits, _ and -, 60 at most"
                raise InputError(f"{rule}; got {shown(name)}")
        object.__setattr__(self, "analyses", analyses)
        super().__post_init__()
        check_stream(analyses, self.compute)
        if self.distributed is not None:
            match = re.fullmatch(r"[^,]+:[0-9]{1,5},([0-9]{1,6}),([0-9]{1,6})", self.distributed)
            if match is None or not int(match[2]) < int(match[1]):
                rule = "must be COORDINATOR:PORT,COUNT,ID, with an ID from 0 to COUNT - 1"
                raise InputError(f"field 'distributed' {rule}; got {shown(self.distributed)}")

    @property
    def models(self) -> tuple[str, ...]:
        """The models' names, always as a tuple."""
        return self.model if isinstance(self.model, tuple) else (self.model,)


# --- fields by name -------------------------------------------------------------------------------------


def find_place(config: RunConfig, name: str) -> str:
    """The dotted place of a field that is given by its place or by its name alone.

    Raises InputError for an unknown field (with the near ones), for one of an analysis that is not asked, and
    for one that several have.
    """
    first, _, rest = name.partition(".")
    if first == "analyses" and rest:
        own, _, of_own = rest.partition(".")
        if own not in config.analyses and of_own:
            raise InputError(f"analyses of this run are {', '.join(config.analyses)}; got {shown(own)}")
        if not of_own or of_own in _names(config.analyses[own]):
            return name
    elif (rest and first in SECTIONS and rest in _names(SECTIONS[first])) or (
        name in _names(RunConfig) and name not in SECTIONS
    ):
        return name
    for section, options in SECTIONS.items():
        if name in _names(options):
            return f"{section}.{name}"
    places = [f"analyses.{one}.{name}" for one, of in config.analyses.items() if name in _names(of)]
    if len(places) == 1:
        return places[0]
    if places:
        which = " or ".join(f"--config.{place}" for place in places)
        raise InputError(f"field {name!r} must say of which analysis; give {which}")
    if owners := [kind for kind, analysis in ANALYSES.items() if name in _names(analysis)]:
        asked = ", ".join(config.analyses)
        raise InputError(
            f"field {name!r} must have an effect; it has one on {', '.join(owners)}, asked is {asked}"
        )
    known = [
        *_names(RunConfig),
        *(one for part in (*SECTIONS.values(), *ANALYSES.values()) for one in _names(part)),
    ]
    known = [one for one in dict.fromkeys(known) if one not in SECTIONS]
    near = difflib.get_close_matches(name.rpartition(".")[2], known, n=3, cutoff=0.5)
    hint = f"near ones: {', '.join(near)}" if near else f"fields: {', '.join(known)}"
    raise InputError(f"a config has no field {shown(name)}; {hint}")


def split_fields(arguments: Sequence[str]) -> dict[str, str]:
    """`--FIELD VALUE`, `--FIELD=VALUE` and `--config.FIELD=VALUE` as field -> text.

    Raises InputError for anything else, and for a field that is given twice.
    """
    fields: dict[str, str] = {}
    waiting = iter(arguments)
    for argument in waiting:
        name, equals, value = argument.removeprefix("--").partition("=")
        if not argument.startswith("--") or not name:
            raise InputError(f"fields are given as --FIELD VALUE, after all else; got {shown(argument)}")
        if not equals:
            value = next(waiting, None)
            if value is None:
                raise InputError(f"every field must have a value, --FIELD VALUE; {shown(argument)} has none")
        name = name.removeprefix("config.")
        if name in fields:
            raise InputError(f"a field must be given once; got --{name} twice")
        fields[name] = value
    return fields


def put(config: RunConfig, place: str, value: Any) -> RunConfig:
    """The config with another value at a place. Raises InputError where it does not fit."""
    first, _, rest = place.partition(".")
    if first == "analyses" and rest:
        own, _, name = rest.partition(".")
        value = dataclasses.replace(config.analyses[own], **{name: value}) if name else value
        return dataclasses.replace(config, analyses={**config.analyses, own: value})
    if rest:
        value = dataclasses.replace(getattr(config, first), **{rest: value})
    return dataclasses.replace(config, **{first: value})


def parse_at(config: RunConfig, place: str, text: str) -> Any:
    """The value that a command line's text stands for at a place."""
    first, _, rest = place.partition(".")
    own, _, name = rest.partition(".")
    if place == "analyses":
        return _parse_analyses(config, text)
    if first == "analyses" and not name:
        return find_analysis(text)()
    owner, name = (config.analyses[own], name) if first == "analyses" else (config, place)
    if first in SECTIONS:
        owner, name = getattr(config, first), rest
    return parse(name, text, field_kinds(type(owner))[name])


def _parse_analyses(config: RunConfig, text: str) -> Any:
    """`a,b`: those of the config of these names, of others their defaults; or JSON, as in run.json."""
    if text.lstrip().startswith("{"):
        return _analyses_from_json(json_object(parse_json(text, "analyses"), "analyses"))
    names = parse("analyses", text, Words)
    if len(set(names)) < len(names):
        doubled = next(name for name in names if names.count(name) > 1)
        raise InputError(f"field 'analyses' must name each once; twice: {shown(doubled)}")
    return {name: config.analyses.get(name) or find_analysis(name)() for name in names}


def _names(options: Any) -> tuple[str, ...]:
    return tuple(field.name for field in fields(options))


# --- files --------------------------------------------------------------------------------------------


def load_config(path: str, overrides: Mapping[str, str]) -> RunConfig:
    """Runs a config file's `get_config()` and replaces fields by `overrides` (field -> text).

    `path` is a Python file, or the name of one in `experiments/configs` (`demo`). Raises InputError for a
    file that gives no RunConfig or that fails, naming its line, for an unknown field and for a value of the
    wrong type.
    """
    file, named = Path(path), CONFIGS / f"{path}.py"
    if not file.suffix and (named.is_file() or not file.is_dir()):
        file = named
    config = _run_file(file)
    # Which analyses there are is known first; then fields belong to them. All fields of one part change
    # together, because what is right may depend on several.
    chosen = sorted(
        overrides, key=lambda name: (name != "analyses", name.count(".") != 1 or "analyses." not in name)
    )
    changes: dict[str, Any] = {}
    for name in chosen:
        place = find_place(config, name)
        value = parse_at(config, place, overrides[name])
        if place.startswith("analyses") and place.count(".") < 2:
            config = put(config, place, value)
        elif place in changes:
            raise InputError(f"a field must be given once; got {place} twice")
        else:
            changes[place] = value
    return put_all(config, changes)


def put_all(config: RunConfig, changes: Mapping[str, Any]) -> RunConfig:
    """The config with other values at several places, changed together."""
    parts: dict[str, dict[str, Any]] = {}
    for place, value in changes.items():
        owner, _, name = place.rpartition(".")
        parts.setdefault(owner, {})[name] = value
    top = parts.pop("", {})
    analyses = dict(config.analyses)
    for owner, values in parts.items():
        if owner in SECTIONS:
            top[owner] = dataclasses.replace(getattr(config, owner), **values)
        else:
            own = owner.removeprefix("analyses.")
            analyses[own] = dataclasses.replace(analyses[own], **values)
    return dataclasses.replace(config, **{"analyses": analyses, **top})


def _run_file(file: Path) -> RunConfig:
    """What `get_config()` of a config file returns."""
    if file.suffix != ".py" or not file.is_file():
        found = f"{file} is a directory" if file.is_dir() else f"there is no {file}"
        if file.is_file():
            found = f"{file} does not end in .py"
        raise InputError(f"a config must be a Python file; {found}")
    spec = importlib.util.spec_from_file_location("headjax_config", file)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        if not hasattr(module, "get_config"):
            raise InputError(f"a config file must define get_config(); {file} does not")
        config = module.get_config()
    except InputError:
        raise
    except SyntaxError as error:
        where = f"{error.filename or file}, line {error.lineno or '?'}"
        raise InputError(f"a config must be valid Python; {where}: {error.msg}") from error
    except (Exception, SystemExit) as error:
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(file)]
        where = f"{file}, line {lines[-1]}" if lines else str(file)
        what = f"{type(error).__name__}: {shown(error)}"
        raise InputError(f"a config must run without an error; {where}: {what}") from error
    if not isinstance(config, RunConfig):
        raise InputError(f"get_config() must return a RunConfig; {file} returns {type(config).__name__}")
    return config


# --- what the user sets and nothing uses ----------------------------------------------------------------

# Fields of the run itself, and those of plans.
ALWAYS = frozenset(
    {"model", "analyses", "ignore_fields", "compare", "seed", "distributed", "out", "checkpoint_dir"}
    | {"report.tables"}
)
PLANNED = frozenset({"compute.rate", "compute.device_memory"})


def changed_places(config: RunConfig) -> tuple[str, ...]:
    """The fields outside analyses whose values are not their defaults."""
    return tuple(
        f"{section}.{one.name}"
        for section, options in SECTIONS.items()
        for one in fields(options)
        if getattr(getattr(config, section), one.name) != one.default
    )


def idle(config: RunConfig, places: Iterable[str], planned: bool = False) -> tuple[str, ...]:
    """Those of the places that change nothing of what the config asks for; `planned`: it is not run."""
    read = ALWAYS.union(*(analysis.reads(config.data) for analysis in config.analyses.values()))
    read |= PLANNED if planned else frozenset()
    return tuple(place for place in places if not place.startswith("analyses.") and place not in read)


def refuse_idle(config: RunConfig, given: Iterable[str], planned: bool = False) -> None:
    """Raises InputError for a field that the user gave and that has no effect."""
    for place in idle(config, [find_place(config, name) for name in given], planned):
        owners = [kind for kind, one in ANALYSES.items() if place in one().reads(Data())]
        where = f"on {', '.join(owners)}" if owners else "on plans (--dry_run)"
        if set(owners) & {one.kind for one in config.analyses.values()}:
            where += ", unless other fields take it away, as prompts of files do"
        raise InputError(
            f"field {place.rpartition('.')[2]!r} must have an effect on what is asked; it has one {where}; "
            f"analyses are {', '.join(config.analyses)}"
        )


# --- JSON -----------------------------------------------------------------------------------------------


def config_to_json(config: RunConfig) -> dict[str, Any]:
    """The fields, as run.json holds them; analyses by name, each with its kind."""
    named = {
        name: {"kind": analysis.kind, **dataclasses.asdict(analysis)}
        for name, analysis in config.analyses.items()
    }
    own = {one: getattr(config, one) for one in _names(RunConfig) if one not in SECTIONS}
    return {**own, "analyses": named, **{one: dataclasses.asdict(getattr(config, one)) for one in SECTIONS}}


def config_from_json(values: Mapping[str, Any]) -> RunConfig:
    """The config that `config_to_json` came from. Raises InputError for fields of another version."""
    unknown = sorted(set(values) - set(_names(RunConfig)))
    if unknown or "model" not in values:
        found = f"it has the unknown fields {shown(', '.join(unknown))}" if unknown else "it names no model"
        raise InputError(f"run.json must be of this version; {found}")
    own = {name: value for name, value in values.items() if name not in SECTIONS and name != "analyses"}
    if "analyses" in values:
        own["analyses"] = _analyses_from_json(json_object(values["analyses"], "analyses"))
    for section, options in SECTIONS.items():
        if section in values:
            own[section] = _options_from_json(options, json_object(values[section], section))
    return RunConfig(**own)


def _analyses_from_json(values: Mapping[str, Any]) -> dict[str, Analysis]:
    analyses = {}
    for name, options in values.items():
        options = dict(json_object(options, name))
        kind = options.pop("kind", name)
        analyses[name] = _options_from_json(
            find_analysis(kind if isinstance(kind, str) else shown(kind)), options
        )
    return analyses


def _options_from_json(options: type, values: Mapping[str, Any]) -> Any:
    if unknown := sorted(set(values) - set(_names(options))):
        raise InputError(f"run.json must be of this version; unknown fields {shown(', '.join(unknown))}")
    return options(**{name: _value_from_json(value) for name, value in values.items()})


def _value_from_json(value: Any) -> Any:
    """JSON's lists are tuples again, and relations and prompts what they were."""
    if isinstance(value, list):
        return tuple(map(_value_from_json, value))
    if isinstance(value, dict) and "pairs" in value:
        return Relation(**{name: _value_from_json(one) for name, one in value.items()})
    if isinstance(value, dict) and "answer" in value:
        return Prompt(**{name: _value_from_json(one) for name, one in value.items()})
    return value


def same_for_all(config: RunConfig) -> dict[str, Any]:
    """What must be the same in every process of a run: each has its own number."""
    return config_to_json(dataclasses.replace(config, distributed=None))


def kinds_of(config: RunConfig) -> Sequence[str]:
    """The kinds of the analyses that are asked."""
    return [analysis.kind for analysis in config.analyses.values()]
