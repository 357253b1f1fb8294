"""Dynamic relation scores: the relation score of what each head really writes at the end of a prompt.

Where the static score projects a head's weights, the dynamic one projects its output at the last position
(Elhelo & Geva 2024, "MAPS", section 4.1): ``z W_O U`` ranks the vocabulary, and the prompt is a hit of the
head if fewer than k logits are strictly greater than the target's (suppression: smaller). b_V is part of z;
b_O and the final norm are left out.

Two z are scored. *With context* it is the z of the prompt. *Without context* the head is made to attend
from the last position to the source alone, while all that comes before it in the model stays as it is.
Its z is then the source position's value vector, which the same forward pass has computed already.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int

from headjax import costs
from headjax.analyses.base import (
    FORWARD,
    MAPS,
    RELATIONS,
    Analysis,
    Coordinates,
    check_top_k,
    hit_fields,
    rows_by_relation,
    sweep_options,
)
from headjax.costs import Cost, Machine
from headjax.data.prompts import PromptBatch
from headjax.engine.batches import Remember, Track, Work, check_prompts, compute_anew, untracked
from headjax.engine.hits import Stages, relation_hits, screening_stages
from headjax.engine.layer_sweep import Ends, LayerRun, Sweep, run_sweep
from headjax.errors import InputError, shown
from headjax.grid import Coordinate, GridSet
from headjax.inputs import as_array
from headjax.measures import SUPPRESSION
from headjax.model import Block, Transformer
from headjax.parameters.layered import LayeredModel
from headjax.report.correlations import Correlation, correlation_cells, correlation_table, correlations
from headjax.report.drawing import chosen_grids, draw_maps, figure_path
from headjax.report.options import Report
from headjax.report.parts import Dots, Part, Point
from headjax.report.table import Page, Table
from headjax.result import Result
from headjax.study import Data, Study

# The scores there are: part and sign of each (`HeadGrid`), in the order in which hits are computed.
SCORES = (("context", ""), ("context", SUPPRESSION), ("no_context", ""), ("no_context", SUPPRESSION))


class DynamicShares(NamedTuple):
    """Shares of prompts that are hits; one row for each relation and template.

    Attributes:
      groups: (relation, template) of every row, in the order of the prompts.
      n_prompts: [R], the prompts behind each row.
      scores: (part, sign) -> [R L H], for all of SCORES.
    """

    groups: tuple[tuple[str, str], ...]
    n_prompts: Int[np.ndarray, " R"]
    scores: dict[tuple[str, str], Float[np.ndarray, "R L H"]]


def dynamic_scores(
    model: Transformer | LayeredModel,
    prompts: PromptBatch,
    top_k: Any,
    *,
    batch_size: int = 64,
    seed: int = 0,
    vocab_size: int | None = None,
    track: Track = untracked,
    remember: Remember = compute_anew,
) -> DynamicShares:
    """Dynamic scores of every head, all four from one forward pass per batch of prompts.

    Args:
      prompts: the targets are their answers.
      top_k: [B], k of every prompt's relation.
      batch_size: prompts that are run at once.
      seed: of the tokens that hits are screened with; changes no result.
      vocab_size: the tokenizer's, as in `headjax.analyses.relation_scores`; None: all rows are tokens.

    Raises InputError for a prompt without a source and for head outputs that are not finite.
    """
    prompts = check_prompts(prompts, model.config, batch_size=batch_size)
    top_k = check_sources(prompts, top_k)
    unembed = model.outer.unembed_rows if isinstance(model, LayeredModel) else model.unembed_rows
    stages = screening_stages(unembed, prompts.answers, seed=seed, vocab_size=vocab_size)
    slots = np.stack([np.asarray(stage.target) for stage in stages], axis=1)
    hits, finite = run_sweep(
        *(SWEEP, model, (prompts.tokens, prompts.mask, prompts.sources, slots, top_k)),
        shared=tuple(stage._replace(target=None) for stage in stages),
        batch_size=batch_size,
        label="dynamic scores",
        track=track,
        remember=remember,
    )
    return share_of_hits(hits, finite, prompts)


def check_sources(prompts: PromptBatch, top_k: Any) -> Int[np.ndarray, " B"]:
    """The k of every prompt. Raises InputError for a prompt without a source, and for k below 1."""
    top_k = np.asarray(as_array(top_k, "top_k"))
    if top_k.shape != prompts.answers.shape or top_k.dtype.kind not in "iu" or (top_k < 1).any():
        raise InputError(f"top_k must be one whole number of at least 1 a prompt; got {shown(top_k)}")
    if (prompts.sources < 0).any():
        name = prompts.prompts[int(np.argmax(prompts.sources < 0))].name
        raise InputError(f"a dynamic score needs prompts with a source; {name} has none")
    return top_k.astype(np.int32)


def share_of_hits(
    hits: Bool[np.ndarray, "B L H 4"], finite: Bool[np.ndarray, " B"], prompts: PromptBatch
) -> DynamicShares:
    """Scores from the prompts' hits. Raises InputError for a prompt whose numbers were not finite."""
    if not finite.all():
        name = prompts.prompts[int(np.argmin(finite))].name
        raise InputError(f"head outputs must be finite numbers; {name} gives NaN or infinity")

    groups = [(prompt.relation, prompt.template) for prompt in prompts.prompts]
    rows = tuple(dict.fromkeys(groups))
    row = np.array([rows.index(group) for group in groups])
    shares = np.stack([hits[row == r].mean(axis=0, dtype=np.float32) for r in range(len(rows))])
    return DynamicShares(rows, np.bincount(row), {score: shares[..., i] for i, score in enumerate(SCORES)})


class Asked(NamedTuple):
    """Of every prompt: its source's position, its target's place in each vocabulary, and k."""

    sources: Int[Array, " B"]
    slots: Int[Array, "B stages"]
    top_k: Int[Array, " B"]


def _begin(
    _model: Transformer,
    _tokens: Int[Array, "B S"],
    _mask: Bool[Array, "B S"],
    sources: Int[Array, " B"],
    slots: Int[Array, "B stages"],
    top_k: Int[Array, " B"],
) -> Asked:
    return Asked(jnp.asarray(sources), jnp.asarray(slots), jnp.asarray(top_k))


def _layer_hits(
    block: Block, ran: LayerRun, asked: Asked, vocabularies: Stages
) -> tuple[Bool[Array, "B H 4"], Bool[Array, " B"]]:
    """Hits of one layer's heads, a column for each of SCORES, and whether what is behind them was finite.

    `vocabularies` are the stages of screening without the places of the prompts' targets.
    """
    z, config = ran.z[:, -1], block.config
    B, H, _ = z.shape
    source_values = ran.v[jnp.arange(B), asked.sources]
    # Query head h reads key/value head h // (H / G).
    without_context = jnp.repeat(source_values, H // config.n_kv_heads, axis=1)
    # Both as pairs of the same heads, so that whatever depends on the weights alone is made once.
    both = jnp.concatenate([z, without_context])
    stages = tuple(
        stage._replace(target=jnp.tile(asked.slots[:, i], 2)) for i, stage in enumerate(vocabularies)
    )
    how = config.precision, config.implementation
    hits = relation_hits(jnp.swapaxes(both, 0, 1), block.writes[0], stages, jnp.tile(asked.top_k, 2), *how)
    hits = jnp.stack(hits, axis=-1).reshape(H, 2, B, 2).transpose(2, 0, 1, 3).reshape(B, H, 4)
    return hits, jnp.isfinite(both).reshape(2, B, -1).all(axis=(0, 2))


def _finish(
    _model: Transformer,
    _asked: Asked,
    kept: tuple[Bool[Array, "L B H 4"], Bool[Array, "L B"]],
    ends: Ends,
) -> tuple[Bool[Array, "B L H 4"], Bool[Array, " B"]]:
    hits, finite = kept
    return jnp.moveaxis(hits, 0, 1), finite.all(axis=0) & jnp.isfinite(ends.last).all(axis=1)


SWEEP = Sweep("dynamic_scores", _begin, _layer_hits, _finish)


@dataclass(frozen=True, kw_only=True)
class DynamicScores(Analysis):
    """Dynamic relation scores with and without context, plain and suppression, of every template.

    Attributes:
      multi_token: also sources of several tokens, of which the last one is the source.
    """

    kind = "dynamic_scores"
    streams = True
    multi_token: bool = False

    def reads(self, data: Data) -> frozenset[str]:
        own = {"data.templates", "compute.stream"}
        return RELATIONS | hit_fields(data) | FORWARD | MAPS | own

    def batches(self, study: Study) -> Sequence[PromptBatch]:
        return (study.template_batch(self.multi_token),)

    def check(self, study: Study, before: Coordinates) -> set[Coordinate]:
        check_top_k(study)
        return {
            Coordinate("dynamic", relation, part, sign)
            for part, sign in SCORES
            for relation in rows_by_relation(*self.batches(study))
        }

    def cost(self, study: Study, machine: Machine) -> Cost:
        return costs.dynamic_scores(study, machine, *self.batches(study))

    def run(self, study: Study, work: Work) -> Result:
        (batch,) = self.batches(study)
        scores = dynamic_scores(
            study.sweep_model(),
            batch,
            np.array([study.rule.k(prompt.relation) for prompt in batch.prompts], np.int32),
            seed=study.seed,
            vocab_size=study.vocab_size,
            **sweep_options(study, work),
        )
        grids = (
            study.grid(
                *(relation, "dynamic", of_score[r], int(scores.n_prompts[r])),
                part=part,
                sign=sign,
                template=template,
            )
            for (part, sign), of_score in scores.scores.items()
            for r, (relation, template) in enumerate(scores.groups)
        )
        return Result(GridSet(tuple(grids)))

    def tables(self, name: str, found: Result, report: Report) -> list[Table | Page]:
        """Correlations with the static scores of the same relations, where there are any."""
        grids = found.grids.select(analysis=name) + found.grids.select(measure="static")
        if not (rows := correlations(grids)):
            return []
        text = "Static against dynamic scores: r over heads and templates, p over heads\n"
        text += correlation_table(rows)
        stem = self.stem(name, "correlations")
        return [Table(stem, Correlation._fields, rows, text, correlation_cells(rows))]

    def show(self, name: str, found: Result, report: Report) -> list[Part]:
        """How well static scores tell dynamic ones, relation by relation."""
        parts = super().show(name, found, report)
        rows = [Correlation(*row) for part in parts for row in part.rows]
        several = len({row.model for row in rows}) > 1
        points = tuple(
            Point(r, f"{row.model}: " * several + row.name, f"{row.kind}, {context}")
            for row in rows
            for r, context in ((row.r_no_context, "without context"), (row.r_context, "with context"))
        )
        title, note = "Static against dynamic scores", "Pearson's r over heads and templates."
        return [*([Dots(title, "r", points, note)] if points else []), *parts]

    def draw(self, name: str, found: Result, report: Report, directory: Path) -> list[Path]:
        """Of each chosen relation: the static score beside the dynamic ones, averaged over templates."""
        files: list[Path] = []
        for model in found.grids.select(analysis=name).values("model"):
            own = found.grids.select(model=model)
            for chosen in chosen_grids(own.select(measure="static", sign=""), report):
                shown = [chosen]
                for part in ("no_context", "context"):
                    of_templates = own.select(analysis=name, part=part, sign="", relation=chosen.relation)
                    if len(of_templates):
                        mean = np.mean([grid.scores for grid in of_templates], axis=0)
                        words = f"mean of {len(of_templates)} templates"
                        template = of_templates.grids[0].template if len(of_templates) == 1 else words
                        shown.append(replace(of_templates.grids[0], scores=mean, template=template))
                if len(shown) > 1:
                    path = figure_path(directory, self.stem(name, "dynamic"), [chosen])
                    files += draw_maps(shown, path, report)
        return files
