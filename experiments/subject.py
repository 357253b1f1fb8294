"""One model under analysis: where it is, the relations it can be asked about, and its prompts."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from transformers import PreTrainedTokenizerBase

import checkpoints_convert
from checkpoints_convert.engine import open_source, read_source_config
from checkpoints_convert.stream import layered_source, relation_weights, source_provenance
from experiments import planted, trained
from experiments.config import RunConfig
from headjax import zoo
from headjax.analyses.relation_scores import HitRule, Weights, checkpoint_weights, published_rule
from headjax.config import ModelConfig
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
    TokenPairs,
    batch_prompts,
    beginning_token,
    load_tokenizer,
    select_pairs,
    tokenise_pairs,
)
from headjax.data.relations import MAX_NAME, Relation, load_relations
from headjax.data.templates import DYNAMIC_TEMPLATES
from headjax.engine.mesh import MODEL_AXIS, make_mesh, one_by_one
from headjax.engine.metrics import mean_and_stderr
from headjax.errors import InputError, shown
from headjax.grid import HeadGrid
from headjax.io import check_file_names
from headjax.model import Transformer, parameter_shapes
from headjax.parameters.converted import is_converted, read_config, read_provenance
from headjax.parameters.layered import LayeredModel, layered_checkpoint
from headjax.report.summary import mean_with_error
from kernels import platform

PLANTED = "planted"  # where a model is named: the demonstration checkpoint, built on the spot
N_GENERATED = 100
GENERATORS = {"ioi": ioi_prompts, "colored_objects": colored_object_prompts}
GENERATOR_NAMES = {
    "ioi": "Indirect object identification",
    "ioi_names": "Names",
    "colored_objects": "Colored objects",
}
PROMPT_CATEGORY = "Prompts"  # of grids that no relation stands behind
# The property of Subject that holds the prompts of an analysis; those that are not here read none.
PROMPTS_OF = {
    "dynamic_scores": "dynamic_batch",
    "logit_attribution": "task_batch",
    "head_ablation": "task_batch",
    "gradient_attribution": "task_batch",
    "ablation_curves": "task_batch",
    "attention_patterns": "task_batch",
    "path_patching": "twin_batches",
    "circuit_discovery": "twin_batches",
}


@dataclass(frozen=True)
class Subject:
    """A model as a run sees it; nothing of it is in memory until `model` is asked for.

    Attributes:
      display_name: what figures and tables call it.
      directory: the converted checkpoint or, where the model is streamed, the Hugging Face directory; the
        tokenizer is in it.
      provenance: where the numbers come from.
      weights: of the relation scores, read as they are used.
      layered: opens the model for sweeps that read it layer by layer.
      run: the run's config.
      pairs: the relations with enough single-token pairs; skipped: the others, each with the reason.
      planted: directory of the record of planted heads; None for an ordinary model.
    """

    display_name: str
    directory: Path
    config: ModelConfig
    tokenizer: PreTrainedTokenizerBase
    run: RunConfig
    pairs: tuple[TokenPairs, ...]
    skipped: tuple[tuple[Relation, str], ...]
    planted: Path | None
    provenance: dict[str, Any] = field(default_factory=dict)
    weights: Callable[[], Weights] | None = None
    layered: Callable[[], LayeredModel] | None = None

    @cached_property
    def model(self) -> Transformer:
        """The whole model, for forward passes."""
        dtype = jnp.dtype(self.run.dtype)
        how = {"precision": self.run.precision, "implementation": self.run.implementation}
        return zoo.load_model(self.directory, dtype, self.forward_mesh, **how)

    @property
    def forward_mesh(self) -> Mesh | None:
        """The mesh of forward passes. Raises NotImplementedError for a kernel that cannot use it."""
        if self.run.implementation in platform.PLATFORMS and self.mesh is not None and self.mesh.size > 1:
            rule = f"forward passes through {self.run.implementation} need a mesh of one device"
            raise NotImplementedError(f"{rule}; this one has {self.mesh.size}")
        return self.mesh

    @cached_property
    def mesh(self) -> Mesh | None:
        """The devices that this model's sweeps run on; None for a single one."""
        n_parameters = sum(math.prod(shape) for shape in parameter_shapes(self.config).values())
        shape = {MODEL_AXIS: 1} if self.run.parallel == "pmap" else self.run.mesh
        return make_mesh(shape, n_parameters * jnp.dtype(self.run.dtype).itemsize)

    @cached_property
    def vocab_size(self) -> int:
        """How many rows of the embedding stand for tokens; those from here on are padding."""
        return min(1 + max(self.tokenizer.get_vocab().values()), self.config.vocab_size)

    def release(self) -> None:
        """Lets go of the model; the next use of it loads it again."""
        self.__dict__.pop("model", None)

    @property
    def rule(self) -> HitRule:
        """The published rule of what counts as a hit, with what the config says differently."""
        fields = {name: getattr(self.run, name) for name in HitRule._fields}
        rule = published_rule(self.display_name)
        return rule._replace(**{name: value for name, value in fields.items() if value is not None})

    @cached_property
    def task_batch(self) -> PromptBatch:
        """The prompts that ask for an answer: the config's own, or every relation's task prompts."""
        if self.run.prompt_sets:
            each = map(self.prompt_set, self.run.prompt_sets)
        else:
            each = (self._sample(task_prompts(pairs, self.run.templates)) for pairs in self.pairs)
        return self._batch([prompt for prompts in each for prompt in prompts])

    @cached_property
    def twin_batches(self) -> dict[str, PromptBatch]:
        """Task -> prompts with distractors and corrupted partners: the config's, or every relation's."""
        names = self.run.prompt_sets or [pairs.relation.id for pairs in self.pairs]
        batches = [self._batch(self.prompt_set(name)) for name in names]
        return {batch.prompts[0].relation: batch for batch in batches}

    @property
    def batches(self) -> list[PromptBatch]:
        """All prompts that the run's analyses read."""
        names = dict.fromkeys(
            PROMPTS_OF[analysis] for analysis in self.run.analyses if analysis in PROMPTS_OF
        )
        held = [getattr(self, name) for name in names]
        return [batch for one in held for batch in (one.values() if isinstance(one, dict) else [one])]

    @cached_property
    def bos(self) -> int | None:
        """The token that every prompt begins with; None where none is put there."""
        return beginning_token(self.tokenizer, self.run.bos)

    def prompt_set(self, name: str) -> Sequence[Prompt]:
        """What a name in the field `prompts` stands for: a generator, a relation with twins, or a file."""
        if name in GENERATORS:
            return GENERATORS[name](self.tokenizer, self.run.n_prompts or N_GENERATED, self.run.seed)
        for pairs in self.pairs:
            if pairs.relation.id == name:
                prompts = task_prompts(pairs, self.run.templates)
                return self._sample(corrupted_twins(self.tokenizer, prompts, self.run.seed))
        return self._sample(read_prompts(name))

    @cached_property
    def dynamic_batch(self) -> PromptBatch:
        """The prompts of dynamic scores: every relation's sources in every template."""
        pairs = self.pairs
        if self.run.multi_token:
            relations = [p.relation for p in pairs]
            V = self.config.vocab_size
            pairs = [tokenise_pairs(self.tokenizer, r, V, single_source=False) for r in relations]
        each = (
            # The same draw for every template: all of them have the same sources.
            self._sample(template_prompts(p, (template,)))
            for p in pairs
            for template in self.run.templates or DYNAMIC_TEMPLATES
        )
        return self._batch([prompt for prompts in each for prompt in prompts])

    def label(self, relation: str) -> tuple[str, str]:
        """Display name and category of a relation, a generator or a file of prompts."""
        for pairs in self.pairs:
            if pairs.relation.id == relation:
                return pairs.relation.name, pairs.relation.category
        return GENERATOR_NAMES.get(relation, relation), PROMPT_CATEGORY

    def _sample(self, prompts: Sequence[Prompt]) -> list[Prompt]:
        return sample_prompts(prompts, self.run.n_prompts, self.run.seed)

    def _batch(self, prompts: Sequence[Prompt]) -> PromptBatch:
        return batch_prompts(self.tokenizer, prompts, self.config, self.run.bos)


def reads_source(run: RunConfig) -> bool:
    """Whether a run reads a Hugging Face directory as it goes, without converting it first.

    A conversion is for models that are loaded whole. Relation scores never do that, other sweeps not if the
    config says `stream`.
    """
    return run.stream or set(run.analyses) <= {"relation_scores"}


def find_named(
    name: str, run: RunConfig, once: Callable[[Callable[[], Path]], Path] = one_by_one
) -> tuple[str | Path, str | None, Path | None]:
    """A model's name or directory, the directory of relations, and that of the record of planted heads.

    `once` is how something is built that several processes need.
    """
    if name == PLANTED:
        planted_at = once(partial(planted.build, Path(run.checkpoint_dir) / PLANTED, run.seed))
        return planted_at, run.relations_dir or str(planted_at / "relations"), planted_at
    return trained.MODELS.get(name, name), run.relations_dir, None


def name_models(run: RunConfig) -> dict[str, str]:
    """Each of the run's models -> what figures call it. Raises InputError where one is named twice."""
    places = [
        Path(run.checkpoint_dir) / PLANTED if name == PLANTED else trained.MODELS.get(name, name)
        for name in run.models
    ]
    return dict(zip(run.models, zoo.display_names(places), strict=True))


def find_subject(name: str, run: RunConfig) -> Subject:
    """Finds a model and tokenises the relations for it; converts nothing, so that it can be asked about its
    sizes and its prompts, not run."""
    given = name
    name, relations_dir, planted_at = find_named(name, run)
    directory = zoo.find_source(name).directory
    if is_converted(directory):
        config = read_config(directory)
    else:
        config = read_source_config(directory, run.ignore_fields)[1]
    config = replace(config, precision=run.precision, implementation=run.implementation)
    return open_subject(name_models(run)[given], directory, config, run, relations_dir, planted_at)


def load_subject(name: str, run: RunConfig) -> Subject:
    """Finds and, if need be, builds or converts a model, and tokenises the relations for it."""
    given = name
    name, relations_dir, planted_at = find_named(name, run)
    dtype, found = jnp.dtype(run.dtype), zoo.find_source(name)
    if is_converted(found.directory) or not reads_source(run):
        ensure = partial(checkpoints_convert.ensure, name, run.checkpoint_dir, run.ignore_fields)
        directory = one_by_one(ensure)
        provenance = read_provenance(directory)
        config = replace(read_config(directory), precision=run.precision, implementation=run.implementation)
        weights = partial(checkpoint_weights, directory, config)
        layered = partial(layered_checkpoint, directory, config, dtype)
    else:
        directory, source = found.directory, open_source(found.directory, run.ignore_fields)
        provenance = source_provenance(found, source)
        config = replace(source.config, precision=run.precision, implementation=run.implementation)
        weights = partial(relation_weights, source, config)
        layered = partial(layered_source, source, config, dtype)
    display_name = name_models(run)[given]
    reads = {"provenance": provenance, "weights": weights, "layered": layered}
    return open_subject(display_name, directory, config, run, relations_dir, planted_at, **reads)


def open_subject(
    display_name: str,
    directory: Path,
    config: ModelConfig,
    run: RunConfig,
    relations_dir: str | None,
    planted_at: Path | None = None,
    **reads: Any,
) -> Subject:
    """A model in a directory with its tokenizer; reads that and the relations, no weights.

    `reads` are the Subject's fields of how to: a plan has no need of them.
    """
    tokenizer = load_tokenizer(directory)
    relations = load_relations(run.relations or None, relations_dir and Path(relations_dir))
    check_prompt_names(run, [relation.id for relation in relations])
    pairs, reasons = select_pairs(tokenizer, relations, config.vocab_size, run.min_pairs)
    return Subject(
        display_name=display_name,
        directory=directory,
        config=config,
        tokenizer=tokenizer,
        run=run,
        pairs=pairs,
        skipped=tuple((relation, reasons[relation.id]) for relation in relations if relation.id in reasons),
        planted=planted_at,
        **reads,
    )


def check_prompt_names(run: RunConfig, relations: Sequence[str]) -> None:
    """Raises InputError where two sets of prompts, or one and a relation, would go by one name in results.

    A file goes by its name without the ending.
    """
    known = (*relations, *GENERATOR_NAMES)
    check_file_names((name for name in run.prompt_sets if name in known), "prompts")
    stems = [Path(name).stem for name in run.prompt_sets if name not in known]
    for stem in stems:
        if len(stem) > MAX_NAME:
            raise InputError(f"a prompt file's name has at most {MAX_NAME} characters; got {shown(stem)}")
    check_file_names((*known, *stems), "relations, generators and prompt files")


def make_grid(
    subject: Subject, relation: str, kind: str, scores: np.ndarray, n_pairs: int, **rest
) -> HeadGrid:
    """A grid under the subject's names."""
    name, category = subject.label(relation)
    return HeadGrid(
        scores, subject.display_name, relation, category, kind, n_pairs=n_pairs, name=name, **rest
    )


def mean_grid(
    subject: Subject, relation: str, kind: str, samples: np.ndarray, metric: str, clean: np.ndarray
) -> HeadGrid:
    """The grid of values [B L H] of a relation's prompts: their mean, its error, and themselves.

    `clean` [B]: what they are held against.
    """
    mean, stderr = mean_and_stderr(np.moveaxis(samples, 0, -1))
    of_clean = dict(zip(("clean", "clean_stderr"), mean_with_error(clean), strict=True))
    rest = {"metric": metric, "stderr": stderr, "samples": samples} | of_clean
    return make_grid(subject, relation, kind, mean, len(samples), **rest)
