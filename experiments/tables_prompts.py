"""What was asked: prompts.csv and pairs.csv, with the tokens that stand behind every word."""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from experiments.config import RunConfig
from experiments.subject import PROMPTS_OF, Subject
from headjax.data.prompts import PromptBatch, describe_dropped, pair_tokens, token_text
from headjax.data.relations import Relation
from headjax.io import atomic_write


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


def write_prompt_tables(subjects: Sequence[Subject], config: RunConfig) -> tuple[list[Path], list[str]]:
    """Writes prompts.csv and pairs.csv, each where the run has such; the files and the text to print."""
    if not subjects:
        return [], []
    out, files = Path(config.out), []
    # Two analyses that read the same prompts give one row.
    rows = dict.fromkeys(
        row for subject in subjects for batch in subject.batches for row in _rows(subject, batch)
    )
    pairs = [
        row for subject in subjects for relation in _relations(subject) for row in _pairs(subject, relation)
    ]
    for name, kind, table in (("prompts.csv", PromptRow, rows), ("pairs.csv", PairRow, pairs)):
        if table:
            files.append(out / name)
            with atomic_write(files[-1]) as file:
                writer = csv.writer(file, lineterminator="\n")
                writer.writerow(kind._fields)
                writer.writerows(table)
    return files, [text for text in map(describe_words, subjects) if text]


def describe_words(subject: Subject) -> str:
    """What a reader must know of a model's tokens, in a few lines: the first token, pairs that were lost."""
    lines = []
    if set(subject.run.analyses) & set(PROMPTS_OF):
        begin = describe_bos(subject)
        how = f"begin with {begin['text']} (token {begin['id']})" if begin else "begin with their text"
        lines.append(f"{subject.display_name}: prompts {how}")
    asked = {relation.id for relation in _relations(subject)}
    for pairs in subject.pairs:
        if pairs.dropped and pairs.relation.id in asked:
            counts = f"{len(pairs.words)} of {len(pairs.relation.pairs)} pairs"
            lines.append(
                f"{subject.display_name}: {pairs.relation.id} has {counts}; {describe_dropped(pairs)}"
            )
    return "\n".join(lines)


def describe_bos(subject: Subject) -> dict[str, object] | None:
    """The token that every prompt begins with, as run.json holds it; None where there is none."""
    if subject.bos is None:
        return None
    return {"text": subject.tokenizer.convert_ids_to_tokens(subject.bos), "id": subject.bos}


def dropped_pairs(subject: Subject) -> dict[str, list[tuple[str, str, str]]]:
    """Relation id -> (source, target, why) of every pair that was lost, as run.json holds it."""
    return {
        pairs.relation.id: [(pair.source, pair.target, pair.dropped) for pair in pairs.dropped]
        for pairs in subject.pairs
        if pairs.dropped
    }


def _rows(subject: Subject, batch: PromptBatch) -> Iterator[PromptRow]:
    bos = describe_bos(subject)
    lengths = batch.mask.sum(axis=1).tolist()
    for i, prompt in enumerate(batch.prompts):
        answer = int(batch.answers[i])
        distractor = None if batch.distractors is None else int(batch.distractors[i])
        yield PromptRow(
            model=subject.display_name,
            relation=prompt.relation,
            template=prompt.template,
            name=prompt.name,
            text=prompt.text,
            answer=prompt.answer,
            answer_id=answer,
            answer_token=token_text(subject.tokenizer, answer),
            distractor=prompt.distractor or "",
            distractor_id="" if distractor is None else distractor,
            distractor_token="" if distractor is None else token_text(subject.tokenizer, distractor),
            source="" if prompt.source is None else prompt.text[slice(*prompt.source)],
            n_tokens=lengths[i],
            bos="" if bos is None else bos["text"],
        )


def _relations(subject: Subject) -> list[Relation]:
    """The relations that the run asks about: all, or those that `prompts` names if nothing else reads any."""
    run = subject.run
    relations = [pairs.relation for pairs in subject.pairs] + [relation for relation, _ in subject.skipped]
    reads_all = {"relation_scores", "dynamic_scores"} & set(run.analyses)
    if reads_all or (not run.prompt_sets and set(run.analyses) & set(PROMPTS_OF)):
        return relations
    return [relation for relation in relations if relation.id in run.prompt_sets]


def _pairs(subject: Subject, relation: Relation) -> Iterator[PairRow]:
    skipped = {one.id for one, _ in subject.skipped}
    for pair in pair_tokens(subject.tokenizer, relation):
        source_id, target_id = (
            " ".join(map(str, tokens)) for tokens in (pair.source_tokens, pair.target_tokens)
        )
        dropped = pair.dropped or ("relation skipped" if relation.id in skipped else "")
        yield PairRow(
            subject.display_name, relation.id, pair.source, source_id, pair.target, target_id, dropped
        )
