"""Study: a model with its tokenizer and the words it can be asked about, ready for analyses.

study = headjax.open("gpt2")
study.next_words("The capital of France is")
study.run(HeadAblation(prompts="ioi")).grids["logprob"].top(5)
"""

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int

from checkpoints_convert.engine import open_source, read_source_config
from headjax import zoo
from headjax.config import ModelConfig
from headjax.data.hit_rule import HitRule, published_rule
from headjax.data.prompt_sets import (
    colored_object_prompts,
    corrupted_twins,
    ioi_prompts,
    read_prompts,
    sample_prompts,
    task_prompts,
    template_prompts,
)
from headjax.data.prompts import (
    Prompt,
    PromptBatch,
    Tokenizer,
    TokenPairs,
    batch_prompts,
    beginning_token,
    encode,
    load_tokenizer,
    select_pairs,
    token_text,
    tokenise_pairs,
)
from headjax.data.relations import MAX_NAME, Relation, load_relations
from headjax.data.templates import DYNAMIC_TEMPLATES, SLOT
from headjax.engine.mesh import AXES, MODEL_AXIS, make_mesh, one_by_one
from headjax.engine.metrics import mean_and_stderr, mean_with_error
from headjax.errors import InputError, shown
from headjax.grid import HeadGrid, sentence
from headjax.inputs import DTYPES, PRECISIONS, check_count
from headjax.io import check_file_names
from headjax.kernels import platform
from headjax.kernels.head_attention import IMPLEMENTATIONS
from headjax.model import Output, Transformer, parameter_shapes
from headjax.options import MOST, Options, Words, option
from headjax.parameters import Parameters
from headjax.parameters.cache import ensure_converted, load_model
from headjax.parameters.converted import Converted, is_converted, read_config
from headjax.parameters.hugging_face import HuggingFace
from headjax.parameters.layered import LayeredModel, layered_model, streamed_parameters
from headjax.result import Result

T = TypeVar("T")
# What an analysis may be asked with: names of prompt sets, or prompts; None: what the study has.
Prompts = str | tuple[str | Prompt, ...] | None

N_GENERATED = 100
GENERATORS = {"ioi": ioi_prompts, "colored_objects": colored_object_prompts}
GENERATOR_NAMES = {
    "ioi": "Indirect object identification",
    "ioi_names": "Names",
    "colored_objects": "Colored objects",
}
OWN_PROMPTS = "prompts"  # the relation of prompts that name none
PROMPT_CATEGORY = "Prompts"  # of grids that no relation stands behind


@dataclass(frozen=True, kw_only=True)
class Data(Options):
    """What a model is asked about.

    Attributes:
      relations: relations, or ids of those there are; empty means all there are.
      relations_dir: a directory of the user's own relations, in place of the built-in ones. None: the model's
        own (`relations/` beside its weights) if it brings any, else the built-in ones.
      min_pairs: relations with fewer single-token pairs are skipped.
      top_k: rank within which a relation's target counts as a hit; None: as published for the model.
      top_k_copying: the same for copying and name copying.
      first_mlp: whether sources pass through the first block's MLP; None: as published for the model.
      templates: prompts with `<X>` for the source; empty means the four published ones for dynamic scores
        and the relation's own task prompt for everything else. Where a template holds a comma, the list is
        written as JSON: `--config.templates='["<X>, say", "No <X>"]'`.
      prompts: JSONL files, `ioi`, `colored_objects` or ids of relations, in place of the task prompts of all
        relations; a relation named here gives each prompt a corrupted twin, whose answer is the distractor.
        In Python also prompts themselves.
      n_prompts: at most so many of each relation, or of the generators; None: all, or 100.
      bos: whether prompts begin with the beginning-of-text token; None: as the model's tokenizer does it.
    """

    relations: tuple[str | Relation, ...] = ()
    relations_dir: str | None = None
    min_pairs: int = option(30, least=1)
    top_k: int | None = option(None, least=1)
    top_k_copying: int | None = option(None, least=1)
    first_mlp: bool | None = None
    templates: Words = ()
    prompts: Prompts = option(None, some=True)
    n_prompts: int | None = option(None, least=1, most=100_000)
    bos: bool | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for template in self.templates:
            if SLOT not in template:
                rule = f"a template must hold {SLOT}, where the source goes"
                raise InputError(f"{rule}; got {shown(template)}")

    def load_relations(self) -> list[Relation]:
        """The relations that are asked for. Raises InputError for an id that there is not."""
        ids = [relation for relation in self.relations if isinstance(relation, str)]
        directory = None if self.relations_dir is None else Path(self.relations_dir)
        found = load_relations(ids or None, directory) if ids or not self.relations else ()
        named = {relation.id: relation for relation in found}
        if not self.relations:
            return list(found)
        return [named[one] if isinstance(one, str) else one for one in self.relations]


@dataclass(frozen=True, kw_only=True)
class Compute(Options):
    """How it is computed.

    Attributes:
      dtype: of the parameters in forward passes (relation scores are float32 always).
      precision: of matrix products; "highest" makes float32 mean float32 on every device.
      implementation: of the kernels, one name for all of them; None: each one's default. One that cannot run
        here ends the run.
      batch_size: prompts that are run at once.
      variant_batch: ablated variants that are run at once; None: by the device's free memory.
      stream: read the model layer by layer in every sweep, straight from its Hugging Face directory: for
        models larger than memory. Relation scores always do.
      mesh: how the devices are shared, {"data": 2, "model": 4} or `data:2,model:4` on the command line:
        copies of the model, each with its own prompts, and devices that hold one copy together. An axis
        left out takes the devices that remain; None: as few devices a copy as its memory allows.
      parallel: "pmap": a whole copy on every device; the same as `mesh={"model": 1}`.
      rate, device_memory: TFLOP/s and GiB of one device, for plans alone; None: this machine's CPU.
    """

    dtype: str = option("float32", choices=DTYPES)
    precision: str = option("highest", choices=PRECISIONS)
    implementation: str | None = option(None, choices=tuple(IMPLEMENTATIONS))
    batch_size: int = option(64, least=1, most=2**20)
    variant_batch: int | None = option(None, least=1, most=2**20)
    stream: bool = False
    mesh: dict[str, int] | None = None
    parallel: str | None = option(None, choices=("pmap",))
    rate: float | None = option(None, least=1e-6, most=1e9)
    device_memory: float | None = option(None, least=1e-6, most=1e9)

    def __post_init__(self) -> None:
        super().__post_init__()
        for axis, size in (self.mesh or {}).items():
            if axis not in AXES or not 1 <= size <= MOST:
                rule = f"must give {' and '.join(AXES)}, or one of them, a size of at least 1"
                raise InputError(f"field 'mesh' {rule}; got {shown(self.mesh)}")
        if self.mesh is not None and self.parallel is not None:
            raise InputError(f"of 'mesh' and 'parallel' one is enough; got {self.mesh} and {self.parallel!r}")


@dataclass(frozen=True, eq=False)
class Study:
    """A model and what it can be asked; nothing of it is in memory until it is needed.

    Attributes:
      source: the model's files, Hugging Face's or converted.
      display_name: what figures and tables call it.
      pairs: the relations with enough single-token pairs; skipped: the others, each with the reason.
      seed: of everything drawn at random.
      checkpoint_dir: where its converted checkpoint is kept; None: the cache of `zoo.cache_directory`.
      ignore_fields: of config.json, treated as absent.
    """

    source: zoo.Source
    display_name: str
    config: ModelConfig
    tokenizer: Tokenizer
    pairs: tuple[TokenPairs, ...]
    skipped: tuple[tuple[Relation, str], ...]
    data: Data = field(default_factory=Data)
    compute: Compute = field(default_factory=Compute)
    seed: int = 0
    checkpoint_dir: str | Path | None = None
    ignore_fields: tuple[str, ...] = ()
    _batches: dict[tuple, Any] = field(default_factory=dict, init=False, repr=False)

    # --- the model ------------------------------------------------------------------------------------

    @cached_property
    def directory(self) -> Path:
        """Where the model is read from: the converted checkpoint once there is one."""
        return self.source.directory

    def convert(self) -> None:
        """Makes sure that there is a converted checkpoint, which forward passes load."""
        ensure = partial(ensure_converted, self.source, self.checkpoint_dir, self.ignore_fields)
        self.__dict__["directory"] = one_by_one(ensure)
        self.__dict__.pop("parameters", None)

    @cached_property
    def parameters(self) -> Parameters:
        """Read as they are used: from the converted checkpoint where there is one, else from the source."""
        if is_converted(self.directory):
            return Converted(self.directory, self.config)
        return HuggingFace(open_source(self.directory, self.ignore_fields), self.source, self.config)

    @cached_property
    def model(self) -> Transformer:
        """The whole model, for forward passes; converted first if it is not."""
        compute = self.compute
        how = {"precision": compute.precision, "implementation": compute.implementation}
        how |= {"checkpoint_dir": self.checkpoint_dir, "ignore_fields": self.ignore_fields}
        if not is_converted(self.directory):
            self.convert()
        return load_model(self.source, jnp.dtype(compute.dtype), self.forward_mesh, **how)

    @cached_property
    def layered(self) -> LayeredModel:
        """The model as it is read layer by layer, what is outside of its layers in memory."""
        return layered_model(self.parameters, jnp.dtype(self.compute.dtype), self.forward_mesh)

    def sweep_model(self) -> Transformer | LayeredModel:
        """The model as forward sweeps take it: whole, or layer by layer where `compute.stream` says so."""
        return self.layered if self.compute.stream else self.model

    def release(self) -> None:
        """Lets go of the model; the next use of it loads it again."""
        for name in ("model", "layered"):
            self.__dict__.pop(name, None)

    @property
    def forward_mesh(self) -> Mesh | None:
        """The mesh of forward passes. Raises NotImplementedError for a kernel that cannot use it."""
        name = self.compute.implementation
        if name in platform.PLATFORMS and self.mesh is not None and self.mesh.size > 1:
            rule = f"forward passes through {name} need a mesh of one device"
            raise NotImplementedError(f"{rule}; this one has {self.mesh.size}")
        return self.mesh

    @cached_property
    def mesh(self) -> Mesh | None:
        """The devices that this model's sweeps run on; None for a single one."""
        n_parameters = sum(math.prod(shape) for shape in parameter_shapes(self.config).values())
        if self.compute.stream:
            n_parameters = streamed_parameters(self.config)
        shape = {MODEL_AXIS: 1} if self.compute.parallel == "pmap" else self.compute.mesh
        return make_mesh(shape, n_parameters * jnp.dtype(self.compute.dtype).itemsize)

    @cached_property
    def vocab_size(self) -> int:
        """How many rows of the embedding stand for tokens; those from here on are padding."""
        return min(1 + max(self.tokenizer.get_vocab().values()), self.config.vocab_size)

    @property
    def rule(self) -> HitRule:
        """The published rule of what counts as a hit, with what the data say differently."""
        own = {name: getattr(self.data, name) for name in HitRule._fields}
        rule = published_rule(self.display_name)
        return rule._replace(**{name: value for name, value in own.items() if value is not None})

    # --- prompts --------------------------------------------------------------------------------------

    @cached_property
    def bos(self) -> int | None:
        """The token that every prompt begins with; None where none is put there."""
        return beginning_token(self.tokenizer, self.data.bos)

    def prompt_sets(self, prompts: Prompts) -> tuple[str | tuple[Prompt, ...], ...]:
        """The sets of prompts asked for, by name or as they are; empty: every relation's task prompts."""
        prompts = self.data.prompts if prompts is None else prompts
        if prompts is None or isinstance(prompts, str):
            return () if prompts is None else (prompts,)
        own = tuple(prompt for prompt in prompts if isinstance(prompt, Prompt))
        return (*(name for name in prompts if isinstance(name, str)), *([own] if own else []))

    def task_batch(self, prompts: Prompts = None) -> PromptBatch:
        """The prompts that ask for an answer: those named, or every relation's task prompts."""

        def make() -> PromptBatch:
            sets = map(self.prompt_set, self.prompt_sets(prompts))
            if not self.prompt_sets(prompts):
                sets = (self._sample(task_prompts(pairs, self.data.templates)) for pairs in self.pairs)
            return self._batch([prompt for one in sets for prompt in one])

        return self._once(("task", self.prompt_sets(prompts)), make)

    def twin_batches(self, prompts: Prompts = None) -> dict[str, PromptBatch]:
        """Task -> prompts with distractors and corrupted partners: those named, or every relation's."""

        def make() -> dict[str, PromptBatch]:
            names = self.prompt_sets(prompts) or [pairs.relation.id for pairs in self.pairs]
            batches = [self._batch(self.prompt_set(name)) for name in names]
            return {batch.prompts[0].relation: batch for batch in batches}

        return self._once(("twins", self.prompt_sets(prompts)), make)

    def template_batch(self, multi_token: bool = False) -> PromptBatch:
        """The prompts of dynamic scores: every relation's sources in every template.

        With `multi_token` also sources of several tokens, of which the last one is the source.
        """

        def make() -> PromptBatch:
            pairs, V = self.pairs, self.config.vocab_size
            if multi_token:
                pairs = [tokenise_pairs(self.tokenizer, p.relation, V, single_source=False) for p in pairs]
            each = (
                # The same draw for every template: all of them have the same sources.
                self._sample(template_prompts(p, (template,)))
                for p in pairs
                for template in self.data.templates or DYNAMIC_TEMPLATES
            )
            return self._batch([prompt for prompts in each for prompt in prompts])

        return self._once(("templates", multi_token), make)

    def prompt_set(self, name: str | tuple[Prompt, ...]) -> Sequence[Prompt]:
        """What a name of prompts stands for: a generator, a relation with twins, or a file."""
        if isinstance(name, tuple):
            return self._sample([replace(one, relation=one.relation or OWN_PROMPTS) for one in name])
        if name in GENERATORS:
            return GENERATORS[name](self.tokenizer, self.data.n_prompts or N_GENERATED, self.seed)
        for pairs in self.pairs:
            if pairs.relation.id == name:
                prompts = task_prompts(pairs, self.data.templates)
                return self._sample(corrupted_twins(self.tokenizer, prompts, self.seed))
        for relation, reason in self.skipped:
            if relation.id == name and not Path(name).is_file():
                raise InputError(f"field 'prompts' names {name}, a relation that was skipped: {reason}")
        return self._sample(read_prompts(name))

    def label(self, relation: str) -> tuple[str, str]:
        """Display name and category of a relation, a generator or a file of prompts."""
        for pairs in self.pairs:
            if pairs.relation.id == relation:
                return pairs.relation.name, pairs.relation.category
        return GENERATOR_NAMES.get(relation) or sentence(relation), PROMPT_CATEGORY

    def _once(self, key: tuple, make: Callable[[], T]) -> T:
        if key not in self._batches:
            self._batches[key] = make()
        return self._batches[key]

    def _sample(self, prompts: Sequence[Prompt]) -> list[Prompt]:
        return sample_prompts(prompts, self.data.n_prompts, self.seed)

    def _batch(self, prompts: Sequence[Prompt]) -> PromptBatch:
        return batch_prompts(self.tokenizer, prompts, self.config, self.data.bos)

    # --- text in, words out ---------------------------------------------------------------------------

    def tokens(self, text: str) -> Int[np.ndarray, "1 S"]:
        """The tokens of a text [1 S], with the beginning-of-text token that the tokenizer puts there.

        Raises InputError for a text that the vocabulary cannot write, or that has no token.
        """
        pieces = encode(self.tokenizer, text)
        first = [] if self.bos is None else [self.bos]
        ids = first if pieces is None else [*first, *(piece.token for piece in pieces)]
        if pieces is None or not ids:
            raise InputError(f"a text must be written in the tokenizer's vocabulary; got {shown(text)}")
        return np.array([ids], np.int32)

    def forward(self, text: Any, **asked: Any) -> Output:
        """A forward pass over a text, or over tokens [B S]; options as of `Transformer.__call__`."""
        return self.model(self.tokens(text) if isinstance(text, str) else text, **asked)

    def next_words(self, text: str, k: int = 5) -> list[tuple[str, float]]:
        """The k most likely next tokens, as text, with their probabilities."""
        check_count("k", k, self.vocab_size)
        logits = self.forward(text).logits[0, -1, : self.vocab_size]
        best, ids = jax.lax.top_k(jax.nn.softmax(logits), k)
        return [
            (token_text(self.tokenizer, int(token)), float(probability))
            for token, probability in zip(ids, best, strict=True)
        ]

    # --- analyses -------------------------------------------------------------------------------------

    def run(self, *analyses: Any, earlier: Result | None = None, **named: Any) -> Result:
        """Runs analyses one after the other and gives all that they find.

            study.run(RelationScores(), HeadAblation(replacement="mean"))
            study.run(zero=HeadAblation(), mean=HeadAblation(replacement="mean"))

        Each is known by its kind unless it is given by name. `earlier` are results that ranks and comparisons
        start from. Raises InputError, before anything is computed, for what this model cannot be asked.
        """
        # Analyses know studies, so that a study learns of them only here.
        from headjax.analyses.base import name_analyses, run_analyses

        return run_analyses(self, name_analyses((*analyses, named)), earlier or Result())

    def report(self, result: Result, path: str | Path, **report: Any) -> Path:
        """Writes what `run` found as one page, which opens anywhere; `report` are fields of `Report`.

        study.report(study.run(RelationScores(), AttentionPatterns()), "gpt2.html", threshold=0.2)
        """
        from headjax.report.options import Report
        from headjax.report.page.data import describe_run
        from headjax.report.page.write import write_page

        if not isinstance(result, Result):
            raise InputError(f"a page is of what run() returned; got {shown(type(result).__name__)}")
        path = Path(path)
        said = describe_run(path.stem, result, result.analyses, (self,), Report(**report))
        return write_page(path, [(said, result.grids)])

    def grid(
        self, relation: str, measure: str, scores: Float[np.ndarray, "L H"], n_pairs: int, **rest: Any
    ) -> HeadGrid:
        """A grid under this model's and the relation's names; `rest` are further fields of it."""
        name, category = self.label(relation)
        named = {"n_pairs": n_pairs, "name": rest.pop("name", name)}
        return HeadGrid(scores, self.display_name, relation, category, measure, **named, **rest)

    def mean_grid(
        self,
        relation: str,
        measure: str,
        samples: Float[np.ndarray, "B L H"],
        metric: str,
        clean: Float[np.ndarray, " B"],
        **rest: Any,
    ) -> HeadGrid:
        """The grid of values of a relation's prompts: their mean, its error, and themselves.

        `clean`: what they are held against.
        """
        mean, stderr = mean_and_stderr(np.moveaxis(samples, 0, -1))
        of_clean = dict(zip(("clean", "clean_stderr"), mean_with_error(clean), strict=True))
        rest |= {"metric": metric, "stderr": stderr, "samples": samples} | of_clean
        return self.grid(relation, measure, mean, len(samples), **rest)


def open_study(
    name: str | Path,
    data: Data | None = None,
    compute: Compute | None = None,
    *,
    seed: int = 0,
    checkpoint_dir: str | Path | None = None,
    ignore_fields: Collection[str] = (),
    display_name: str | None = None,
    **options: Any,
) -> Study:
    """Opens a model by alias ("gpt2-xl"), Hugging Face id or directory, or "trained" and "planted".

        study = headjax.open("gpt2", relations=["country_to_capital"], dtype="bfloat16")

    Reads its config.json, its tokenizer and the relations; weights when they are first needed.

    Args:
      data, compute: what it is asked about, and how it is computed; `options` are their fields by name.
      seed: of everything drawn at random.
      checkpoint_dir: where converted checkpoints are kept; None: $HEADJAX_CACHE or ~/.cache/headjax.
      ignore_fields: of config.json, to treat as absent where they are not understood and change nothing.
      display_name: what results call the model; None: its usual name.

    Raises InputError where there is no such model, for unknown options, and where no relation is left.
    """
    own = {kind: {f.name for f in fields(kind)} & options.keys() for kind in (Data, Compute)}
    if unknown := options.keys() - own[Data] - own[Compute]:
        known = ", ".join(f.name for kind in (Data, Compute) for f in fields(kind))
        raise InputError(f"options of a study are {known}; got {shown(', '.join(sorted(unknown)))}")
    data = replace(data or Data(), **{name: options[name] for name in own[Data]})
    compute = replace(compute or Compute(), **{name: options[name] for name in own[Compute]})
    place = one_by_one(partial(zoo.resolve, name, checkpoint_dir, seed))
    return study_of(
        zoo.find_source(place),
        data,
        compute,
        seed=seed,
        checkpoint_dir=checkpoint_dir,
        ignore_fields=ignore_fields,
        display_name=display_name or zoo.display_name(place),
    )


def study_of(
    source: zoo.Source,
    data: Data,
    compute: Compute,
    *,
    seed: int,
    checkpoint_dir: str | Path | None,
    ignore_fields: Collection[str],
    display_name: str,
) -> Study:
    """A study of a model whose files are here; touches no device."""
    directory = source.directory
    if is_converted(directory):
        config = read_config(directory)
    else:
        config = read_source_config(directory, ignore_fields)[1]
    config = replace(config, precision=compute.precision, implementation=compute.implementation)
    if data.relations_dir is None and (directory / OWN_RELATIONS).is_dir():
        data = replace(data, relations_dir=str(directory / OWN_RELATIONS))
    tokenizer = load_tokenizer(directory)
    relations = data.load_relations()
    _check_prompt_names(data.prompts, [relation.id for relation in relations])
    pairs, reasons = select_pairs(tokenizer, relations, config.vocab_size, data.min_pairs)
    return Study(
        source=source,
        display_name=display_name,
        config=config,
        tokenizer=tokenizer,
        pairs=pairs,
        skipped=tuple((relation, reasons[relation.id]) for relation in relations if relation.id in reasons),
        data=data,
        compute=compute,
        seed=seed,
        checkpoint_dir=checkpoint_dir,
        ignore_fields=tuple(ignore_fields),
    )


OWN_RELATIONS = "relations"  # a directory of relations that comes with a model


def _check_prompt_names(prompts: Prompts, relations: Sequence[str]) -> None:
    """Raises InputError where two sets of prompts, or one and a relation, would go by one name in results.

    A file goes by its name without the ending.
    """
    named = (prompts,) if isinstance(prompts, str) else prompts or ()
    names = [name for name in named if isinstance(name, str)]
    known = (*relations, *GENERATOR_NAMES)
    check_file_names((name for name in names if name in known), "prompts")
    stems = [Path(name).stem for name in names if name not in known]
    for stem in stems:
        if len(stem) > MAX_NAME:
            raise InputError(f"a prompt file's name has at most {MAX_NAME} characters; got {shown(stem)}")
    check_file_names((*known, *stems), "relations, generators and prompt files")
