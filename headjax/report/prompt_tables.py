"""What was asked: prompts.csv and pairs.csv, with the tokens that stand behind every word."""

from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

from headjax.analyses.base import RELATIONS, Analysis, Asked
from headjax.data.prompts import PromptBatch, describe_dropped, pair_tokens, token_text
from headjax.data.relations import Relation
from headjax.report.table import Table
from headjax.study import Study


class PromptRow(NamedTuple):
    """One row of prompts.csv: a prompt, and the tokens that its answer and distractor were scored as."""

    model: str
    relation: str
    template: str
    name: str
    text: str
    answer: str
    answer_id: int
    answer_token: str
    distractor: str
    distractor_id: int | str
    distractor_token: str
    source: str
    n_tokens: int
    bos: str


class PairRow(NamedTuple):
    """One row of pairs.csv; a word of several tokens has all their ids. `dropped`: why it does not count."""

    model: str
    relation: str
    source: str
    source_id: str
    target: str
    target_id: str
    dropped: str


def prompt_tables(studies: Sequence[Study], analyses: Collection[Analysis]) -> list[Table]:
    """prompts.csv and pairs.csv, each where there are such."""
    # Two analyses that read the same prompts give one row.
    rows = dict.fromkeys(
        row
        for study in studies
        for analysis in analyses
        for batch in analysis.batches(study)
        for row in _rows(study, batch)
    )
    pairs = [
        row
        for study in studies
        for relation in asked_relations(study, analyses)
        for row in _pairs(study, relation)
    ]
    text = "\n\n".join(filter(None, (describe_words(study, analyses) for study in studies)))
    made = [Table("prompts", PromptRow._fields, list(rows)), Table("pairs", PairRow._fields, pairs)]
    made = [table for table in made if table.rows]
    return [table._replace(text=text) if table is made[0] else table for table in made]


def describe_words(study: Study, analyses: Collection[Analysis]) -> str:
    """What a reader must know of a model's tokens, in a few lines: the first token, pairs that were lost."""
    lines = []
    if any(analysis.batches(study) for analysis in analyses):
        begin = describe_bos(study)
        how = f"begin with {begin['text']} (token {begin['id']})" if begin else "begin with their text"
        lines.append(f"{study.display_name}: prompts {how}")
    asked = {relation.id for relation in asked_relations(study, analyses)}
    for pairs in study.pairs:
        if pairs.dropped and pairs.relation.id in asked:
            counts = f"{len(pairs.words)} of {len(pairs.relation.pairs)} pairs"
            lines.append(f"{study.display_name}: {pairs.relation.id} has {counts}; {describe_dropped(pairs)}")
    return "\n".join(lines)


def asked_relations(study: Study, analyses: Collection[Analysis]) -> list[Relation]:
    """The relations that are asked about: all, or those that prompts name if nothing else reads any."""
    relations = [pairs.relation for pairs in study.pairs] + [relation for relation, _ in study.skipped]
    named: set[str] = set()
    for analysis in analyses:
        if not isinstance(analysis, Asked):
            named |= (
                {relation.id for relation in relations} if analysis.reads(study.data) >= RELATIONS else set()
            )
        elif sets := study.prompt_sets(analysis.prompts):
            named |= {one for one in sets if isinstance(one, str)}
        else:
            named |= {relation.id for relation in relations}
    return [relation for relation in relations if relation.id in named]


def describe_bos(study: Study) -> dict[str, object] | None:
    """The token that every prompt begins with, as run.json holds it; None where there is none."""
    if study.bos is None:
        return None
    return {"text": study.tokenizer.convert_ids_to_tokens(study.bos), "id": study.bos}


def dropped_pairs(study: Study) -> dict[str, list[tuple[str, str, str]]]:
    """Relation id -> (source, target, why) of every pair that was lost, as run.json holds it."""
    return {
        pairs.relation.id: [(pair.source, pair.target, pair.dropped) for pair in pairs.dropped]
        for pairs in study.pairs
        if pairs.dropped
    }


def _rows(study: Study, batch: PromptBatch) -> Iterator[PromptRow]:
    bos = describe_bos(study)
    lengths = batch.mask.sum(axis=1).tolist()
    for i, prompt in enumerate(batch.prompts):
        answer = int(batch.answers[i])
        distractor = None if batch.distractors is None else int(batch.distractors[i])
        yield PromptRow(
            model=study.display_name,
            relation=prompt.relation,
            template=prompt.template,
            name=prompt.name,
            text=prompt.text,
            answer=prompt.answer,
            answer_id=answer,
            answer_token=token_text(study.tokenizer, answer),
            distractor=prompt.distractor or "",
            distractor_id="" if distractor is None else distractor,
            distractor_token="" if distractor is None else token_text(study.tokenizer, distractor),
            source="" if prompt.source is None else prompt.text[slice(*prompt.source)],
            n_tokens=lengths[i],
            bos="" if bos is None else bos["text"],
        )


def _pairs(study: Study, relation: Relation) -> Iterator[PairRow]:
    skipped = {one.id for one, _ in study.skipped}
    for pair in pair_tokens(study.tokenizer, relation):
        source_id, target_id = (
            " ".join(map(str, tokens)) for tokens in (pair.source_tokens, pair.target_tokens)
        )
        dropped = pair.dropped or ("relation skipped" if relation.id in skipped else "")
        yield PairRow(
            study.display_name, relation.id, pair.source, source_id, pair.target, target_id, dropped
        )
