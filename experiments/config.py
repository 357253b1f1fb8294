"""RunConfig: every field of a run, its type and its default; read from a Python file and `--config.FIELD`."""

import dataclasses
import difflib
import importlib.util
import re
import traceback
import types
import typing
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from experiments.published import COMPARISONS
from headjax.engine.mesh import AXES
from headjax.errors import InputError, shown
from headjax.io import parse_json
from kernels.head_attention import IMPLEMENTATIONS

ANALYSES = (
    "relation_scores",
    "dynamic_scores",
    "logit_attribution",
    "head_ablation",
    "gradient_attribution",
    "ablation_curves",
    "attention_patterns",
    "copy_score",
    "salient_operations",
    "universality",
    "path_patching",
    "circuit_discovery",
)
# Those that can read a model layer by layer.
STREAMED = ("relation_scores", "dynamic_scores", "logit_attribution", "head_ablation")


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """One run. Every name below is a field; `--config.FIELD=VALUE` overrides it.

    Attributes:
      model: alias (`gpt2-xl`), Hugging Face id or directory; several give one panel each. `planted` is
        the demonstration checkpoint, built on the spot; `trained` a small trained model that comes along.
      ignore_fields: fields of the models' config.json to treat as absent where they are not understood.
      relations: ids of the relations; empty means all there are.
      relations_dir: a directory of the user's own relations, in place of the built-in ones.
      analyses: what to compute, of `ANALYSES`.
      top_k: rank within which a relation's target counts as a hit; None: as published for the model.
      top_k_copying: the same for copying and name copying.
      first_mlp: whether sources pass through the first block's MLP; None: as published for the model.
      threshold: a head implements a relation above this score.
      count_suppression: whether implementing a relation by suppression gives a head its category.
      min_pairs: relations with fewer single-token pairs are skipped.
      dtype: of the parameters in forward passes (relation scores are float32 always).
      precision: of matrix products; "highest" makes float32 mean float32 on every device.
      implementation: of the kernels, one name for all of them; None: each one's default. One that cannot run
        here ends the run.
      batch_size: prompts that are run at once.
      seed: of everything drawn at random.
      templates: prompts with `<X>` for the source; empty means the four published ones for dynamic scores
        and the relation's own task prompt for everything else. Where a template holds a comma, the list is
        written as JSON: `--config.templates='["<X>, say", "No <X>"]'`.
      prompts: JSONL files, `ioi`, `colored_objects` or ids of relations, in place of the task prompts of all
        relations; a relation named here gives each prompt a corrupted twin, whose answer is the distractor.
      n_prompts: at most so many of each relation, or of the generators; None: all, or 100.
      multi_token: dynamic scores also of sources of several tokens, of which the last one is the source.
      bos: whether prompts begin with the beginning-of-text token; None: as the model's tokenizer does it.
      ablation: what replaces a head's output: "zero", "mean" or "resample".
      mean_over: "prompts" (each position its own mean) or "tokens" (one mean).
      positions: where heads are ablated, "last" or "all".
      kv_groups: ablate the query heads of a key/value head together.
      metrics: of "logprob", "logit_diff" and "accuracy"; empty means all that the prompts allow.
      rank_by: the kind of grid that ranks heads for ablation curves (the mean over templates; of several
        metrics the last); max_heads: how many at most (None: by the model's number of heads);
        n_random_draws: as many other heads, drawn so often.
      variant_batch: ablated variants that are run at once; None: by the device's free memory.
      stream: read the model layer by layer in every sweep, straight from its Hugging Face directory: for
        models larger than memory. Relation scores always do; dynamic scores, logit attribution and head
        ablation at the last position can.
      salient_heads: of which heads salient operations are listed (`L9H6,L10H0`); empty means all. n_salient:
        how many tokens of each, n_mapped: how many tokens each is mapped to.
      compare: published tables to hold the run against, of `experiments.published.COMPARISONS`.
      receivers: inputs of heads into which paths are patched, like `L9H6.q`; those with the same letter (q, k
        or v) together.
      n_stages, top_share, min_effect: circuit discovery goes back from the logits so many steps and takes
        the heads with the largest effects at each, this share of all heads, if these are two standard errors
        beyond so many percent.
      latex: also write the table of correlations in LaTeX.
      circuits: marks on the heat maps, as `RELATION=SOURCE`, where SOURCE is a published circuit
        (`circuit_reuse`), a file of heads, or a head (`L9H6`); a SOURCE alone marks every panel.
      heat_maps: relations to draw; empty means the two with the highest score, and every curve.
      orientation: "layer_x" (layers along x) or "head_x", of heat maps.
      origin: "lower" or "upper", where the y axis of a figure has its 0.
      mesh: how the devices are shared, {"data": 2, "model": 4} or `data:2,model:4` on the command line:
        copies of the model, each with its own prompts, and devices that hold one copy together. An axis
        left out takes the devices that remain; None: as few devices a copy as its memory allows.
      parallel: "pmap": a whole copy on every device; the same as `mesh={"model": 1}`.
      distributed: COORDINATOR:PORT,COUNT,ID of a run of several processes. None: they find each other on
        TPU pods and under SLURM; elsewhere there is one.
      rate, device_memory: TFLOP/s and GiB of one device, for `--dry_run` alone; None: this machine's CPU.
      out: directory of the results; checkpoint_dir: where converted checkpoints are kept.
    """

    model: str | tuple[str, ...]
    ignore_fields: tuple[str, ...] = ()
    relations: tuple[str, ...] = ()
    relations_dir: str | None = None
    analyses: tuple[str, ...] = ("relation_scores",)
    top_k: int | None = None
    top_k_copying: int | None = None
    first_mlp: bool | None = None
    threshold: float = 0.15
    count_suppression: bool = True
    min_pairs: int = 30
    dtype: str = "float32"
    precision: str = "highest"
    implementation: str | None = None
    batch_size: int = 64
    seed: int = 0
    templates: tuple[str, ...] = ()
    prompts: str | tuple[str, ...] | None = None
    n_prompts: int | None = None
    multi_token: bool = False
    bos: bool | None = None
    ablation: str = "zero"
    mean_over: str = "prompts"
    positions: str = "last"
    kv_groups: bool = False
    metrics: tuple[str, ...] = ()
    rank_by: str = "static"
    max_heads: int | None = None
    n_random_draws: int = 5
    variant_batch: int | None = None
    stream: bool = False
    salient_heads: tuple[str, ...] = ()
    n_salient: int = 15
    n_mapped: int = 5
    compare: tuple[str, ...] = ()
    receivers: tuple[str, ...] = ()
    n_stages: int = 2
    top_share: float = 0.02
    min_effect: float = 1.0
    latex: bool = False
    circuits: tuple[str, ...] = ()
    heat_maps: tuple[str, ...] = ()
    orientation: str = "layer_x"
    origin: str = "lower"
    mesh: dict[str, int] | None = None
    parallel: str | None = None
    distributed: str | None = None
    rate: float | None = None
    device_memory: float | None = None
    out: str = "out"
    checkpoint_dir: str = "checkpoints"

    def __post_init__(self):
        for name, kind in typing.get_type_hints(RunConfig).items():
            value = getattr(self, name)
            if not any(_is_a(value, option) for option in _options(kind)):
                raise InputError(f"field {name!r} must be {_describe(kind)}; got {shown(value)}")
            if isinstance(value, str | tuple):
                _check_words(name, value)
        for name, choices in _CHOICES.items():
            value = getattr(self, name)
            for one in value if isinstance(value, tuple) else (value,):
                if one not in choices and one is not None:
                    raise InputError(f"field {name!r} must be one of {', '.join(choices)}; got {shown(one)}")
        for name, (least, most) in _RANGES.items():
            value = getattr(self, name)
            if value is not None and not least <= value <= most:  # NaN is in no range
                bound = f"at most {most}" if value > most else f"at least {least}"
                raise InputError(f"field {name!r} must be {bound}; got {shown(value)}")
            if typing.get_type_hints(RunConfig)[name] in (float, float | None) and value is not None:
                object.__setattr__(self, name, float(value))  # 1 and 1.0 are one config
        for name in ("model", "analyses", "prompts"):
            if getattr(self, name) == ():
                raise InputError(f"field {name!r} must name at least one; got none")
        for axis, size in (self.mesh or {}).items():
            if axis not in AXES or not 1 <= size <= _MOST:
                rule = f"must give {' and '.join(AXES)}, or one of them, a size of at least 1"
                raise InputError(f"field 'mesh' {rule}; got {shown(self.mesh)}")
        if self.mesh is not None and self.parallel is not None:
            raise InputError(f"of 'mesh' and 'parallel' one is enough; got {self.mesh} and {self.parallel!r}")
        if self.distributed is not None:
            _check_distributed(self.distributed)
        if self.stream:
            for analysis in self.analyses:
                if analysis not in STREAMED:
                    raise InputError(f"field 'stream' is for {', '.join(STREAMED)}; got {shown(analysis)}")
            if "head_ablation" in self.analyses and self.positions != "last":
                raise InputError(f"field 'stream' needs positions 'last'; got {self.positions!r}")
            if "head_ablation" in self.analyses and (self.ablation, self.mean_over) == ("mean", "tokens"):
                raise InputError("field 'stream' needs means over 'prompts'; got mean_over='tokens'")

    @property
    def models(self) -> tuple[str, ...]:
        """The models' names, always as a tuple."""
        return self.model if isinstance(self.model, tuple) else (self.model,)

    @property
    def prompt_sets(self) -> tuple[str, ...]:
        """What `prompts` names, always as a tuple; empty where it is None."""
        return (self.prompts,) if isinstance(self.prompts, str) else self.prompts or ()


_CHOICES = {
    "analyses": ANALYSES,
    "dtype": ("float32", "bfloat16", "float16"),
    "precision": ("highest", "high", "default"),
    "implementation": tuple(IMPLEMENTATIONS),
    "ablation": ("zero", "mean", "resample"),
    "mean_over": ("prompts", "tokens"),
    "positions": ("last", "all"),
    "metrics": ("logprob", "logit_diff", "accuracy"),
    "parallel": ("pmap",),
    "compare": COMPARISONS,
    "orientation": ("layer_x", "head_x"),
    "origin": ("lower", "upper"),
}
_MOST = 2**31 - 1
# Field -> least and greatest value. What depends on the model's size is in checks.py.
_RANGES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(
        ("top_k", "top_k_copying", "min_pairs", "max_heads", "n_salient", "n_mapped"), (1, _MOST)
    ),
    **dict.fromkeys(("batch_size", "variant_batch"), (1, 2**20)),
    **{"seed": (0, _MOST), "n_prompts": (1, 100_000), "n_random_draws": (1, 10_000), "n_stages": (1, 100)},
    **{"threshold": (0, 1), "top_share": (1e-6, 1), "min_effect": (0, 1000)},
    **dict.fromkeys(("rate", "device_memory"), (1e-6, 1e9)),
}


def _check_words(name: str, value: str | tuple[str, ...]) -> None:
    """Raises InputError for text that no file can hold, for empty text, and for a word given twice."""
    for word in (value,) if isinstance(value, str) else value:
        if not word.strip():
            raise InputError(f"field {name!r} must hold no empty text; got {shown(value)}")
        if "\0" in word or any("\ud800" <= c <= "\udfff" for c in word):
            rule = "must be text without null characters and halves of surrogate pairs"
            raise InputError(f"field {name!r} {rule}; got {shown(word)}")
    if isinstance(value, tuple) and len(set(value)) < len(value):
        doubled = [word for word, count in Counter(value).items() if count > 1]
        raise InputError(f"field {name!r} must name each once; twice: {shown(', '.join(doubled))}")


def _check_distributed(text: str) -> None:
    match = re.fullmatch(r"[^,]+:[0-9]{1,5},([0-9]{1,6}),([0-9]{1,6})", text)
    if match is None or not int(match[2]) < int(match[1]):
        rule = "must be COORDINATOR:PORT,COUNT,ID, with an ID from 0 to COUNT - 1"
        raise InputError(f"field 'distributed' {rule}; got {shown(text)}")


def load_config(path: str, overrides: Mapping[str, str]) -> RunConfig:
    """Runs a config file's `get_config()` and replaces fields by `overrides` (field -> text).

    `path` is a Python file, or the name of one in `experiments/configs` (`demo`). Raises InputError for a
    file that gives no RunConfig or that fails, naming its line, for an unknown field (with the near ones) and
    for a value of the wrong type.
    """
    file, named = Path(path), Path(__file__).parent / "configs" / f"{path}.py"
    if not file.suffix and (named.is_file() or not file.is_dir()):
        file = named
    config = _run_file(file)
    hints = typing.get_type_hints(RunConfig)
    values = {}
    for name, text in overrides.items():
        if name not in hints:
            near = difflib.get_close_matches(name, hints, n=3, cutoff=0.5)
            hint = f"; near ones: {', '.join(near)}" if near else f"; fields: {', '.join(hints)}"
            raise InputError(f"a config has no field {shown(name)}{hint}")
        values[name] = _parse(name, text, hints[name])
    return dataclasses.replace(config, **values)


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


def config_to_json(config: RunConfig) -> dict[str, object]:
    """The fields, as run.json holds them."""
    return dataclasses.asdict(config)


def config_from_json(fields: Mapping[str, object]) -> RunConfig:
    """The config that `config_to_json` came from; JSON's lists are tuples again."""
    known = {field.name for field in dataclasses.fields(RunConfig)}
    unknown = sorted(set(fields) - known)
    if unknown or "model" not in fields:
        found = f"it has the unknown fields {shown(', '.join(unknown))}" if unknown else "it names no model"
        raise InputError(f"run.json must be of this version; {found}")
    return RunConfig(
        **{name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
    )


def _options(kind: object) -> tuple:
    """The types that a union allows, or the one type itself."""
    return typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)


def _is_a(value: object, kind: object) -> bool:
    if kind == tuple[str, ...]:
        return isinstance(value, tuple) and all(isinstance(entry, str) for entry in value)
    if kind == dict[str, int]:
        whole = isinstance(value, dict) and all(_is_a(size, int) for size in value.values())
        return whole and all(isinstance(name, str) for name in value)
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, kind)


_NAMES = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    tuple[str, ...]: "words separated by commas",
    dict[str, int]: "sizes of axes, as in data:2,model:4",
    types.NoneType: "none",
}


def _describe(kind: object) -> str:
    return " or ".join(_NAMES[option] for option in _options(kind))


def _parse(name: str, text: str, kind: object) -> object:
    """The value that a command line's text stands for."""
    options = _options(kind)
    if types.NoneType in options and text.lower() == "none":
        return None
    is_list = text.lstrip().startswith("[")
    if tuple[str, ...] in options and (str not in options or "," in text or is_list):
        if is_list:
            return _parse_list(name, text)
        # `--config.relations=all` and an empty value both mean: no selection.
        return tuple(word.strip() for word in text.split(",") if word.strip() not in ("", "all"))
    if dict[str, int] in options and re.fullmatch(r"\w+:[0-9]{1,9}(,\w+:[0-9]{1,9})*", text):
        axes = [part.split(":") for part in text.split(",")]
        if len(dict(axes)) < len(axes):
            raise InputError(f"field {name!r} must name each axis once; got {shown(text)}")
        return {axis: int(size) for axis, size in axes}
    if str in options:
        return text
    try:
        value = parse_json(text.lower(), name)
    except InputError:
        value = None
    if value is None or not any(_is_a(value, option) for option in options):
        raise InputError(f"field {name!r} must be {_describe(kind)}; got {shown(text)}")
    return value


def _parse_list(name: str, text: str) -> tuple[str, ...]:
    try:
        return tuple(parse_json(text, name))
    except InputError as error:
        rule = f"field {name!r} must be a JSON list where it begins with ["
        raise InputError(f"{rule}; got {shown(text)}") from error
