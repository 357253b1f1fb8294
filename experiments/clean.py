"""What a model does on its prompts with no head touched: every effect of a run stands beside it."""

from dataclasses import replace

import numpy as np
from jaxtyping import Int

from experiments.subject import Subject
from headjax.analyses.streamed import clean_metrics as clean_streamed
from headjax.data.prompts import PromptBatch
from headjax.engine.batches import Track
from headjax.engine.clean_run import clean_metrics as run_clean
from headjax.engine.metrics import Metrics
from headjax.report.summary import CleanRow, clean_row

# Analyses of the task prompts' answers, and of prompts with corrupted partners.
OF_TASKS = {"logit_attribution", "head_ablation", "gradient_attribution", "ablation_curves"}
OF_PARTNERS = {"path_patching", "circuit_discovery"}


def clean_rows(subject: Subject, track: Track) -> tuple[CleanRow, ...]:
    """A row for every relation and set of prompts that the run's analyses ask."""
    run, rows = subject.run, []
    asks_tasks = not OF_TASKS.isdisjoint(run.analyses)
    if asks_tasks:
        metrics = clean_metrics(subject, subject.task_batch, track)
        for relation, own in prompts_of_relations(subject.task_batch).items():
            rows.append(clean_row(subject.display_name, relation, "task", _take(metrics, own)))
    if not OF_PARTNERS.isdisjoint(run.analyses):
        for relation, batch in subject.twin_batches.items():
            # Prompts that the config names all have partners: they are the task's own.
            sets = {"task" if run.prompt_sets else "with_partners": batch}
            if asks_tasks and run.prompt_sets:
                sets = {}
            if batch.corrupted is not None:
                sets["corrupted"] = replace(batch, tokens=batch.corrupted)
            for name, prompts in sets.items():
                metrics = clean_metrics(subject, prompts, track)
                rows.append(clean_row(subject.display_name, relation, name, metrics))
    return tuple(rows)


def clean_metrics(subject: Subject, prompts: PromptBatch, track: Track) -> Metrics:
    """Metrics [B] of the clean run."""
    how = {"batch_size": subject.run.batch_size, "track": track}
    if subject.run.stream:
        return clean_streamed(subject.layered(), prompts, **how)
    return run_clean(subject.model, prompts, **how)


def prompts_of_relations(prompts: PromptBatch) -> dict[str, Int[np.ndarray, " rows"]]:
    """Relation -> the rows of its prompts, in the order of the prompts."""
    relations = np.array([prompt.relation for prompt in prompts.prompts])
    return {name: np.flatnonzero(relations == name) for name in dict.fromkeys(relations.tolist())}


def _take(metrics: Metrics, rows: Int[np.ndarray, " rows"]) -> Metrics:
    return Metrics(*(None if values is None else values[rows] for values in metrics))
