"""Analyses that read the weights alone, like relation scores: copy scores and salient operations.

Salient operations give no grids but words, so they are not in the table of `experiments.analyses`.
"""

from experiments.subject import Subject
from headjax.analyses import copy_score as copying
from headjax.analyses.relation_scores import checkpoint_weights
from headjax.analyses.salient_operations import salient_operations as find_salient
from headjax.axes import Head
from headjax.data.prompt_sets import ioi_names
from headjax.data.prompts import token_text, word_tokens
from headjax.engine.batches import Remember, Track
from headjax.grid import SUPPRESSION, GridSet, HeadGrid


def copy_scores(subject: Subject, track: Track, _: Remember) -> GridSet:
    """Whether each head writes the name it attends to (Wang et al. 2022), plain and negated.

    It takes seconds: a run remembers the whole, not its parts.
    """
    names = [word_tokens(subject.tokenizer, word)[0] for word in ioi_names(subject.tokenizer)]
    name, category = subject.label("ioi_names")
    scores = copying.copy_scores(
        copying.checkpoint_weights(subject.directory, subject.config),
        names,
        vocab_size=subject.vocab_size,
        precision=subject.run.precision,
        track=lambda layers: track(layers, subject.config.n_layers, "copy scores"),
    )
    return GridSet(
        tuple(
            HeadGrid(grid, subject.display_name, "ioi_names", category, kind, n_pairs=len(names), name=name)
            for kind, grid in (
                ("copy_score", scores.plain),
                ("copy_score" + SUPPRESSION, scores.suppression),
            )
        )
    )


def salient_operations(subject: Subject, track: Track) -> dict[str, list[dict]]:
    """Head -> its salient tokens in order, each with its amplification and what it is mapped to, as text."""
    run, config = subject.run, subject.config
    found = find_salient(
        checkpoint_weights(subject.directory, config),
        heads=[Head.parse(label) for label in run.salient_heads],
        n_tokens=run.n_salient,
        n_mapped=run.n_mapped,
        first_mlp=subject.rule.first_mlp,
        vocab_size=subject.vocab_size,
        precision=run.precision,
        track=lambda layers: track(layers, config.n_layers, "salient operations"),
    )
    return {
        str(head): [
            {
                "token": token_text(subject.tokenizer, int(token)),
                "amplification": float(amplification),
                "mapped": [token_text(subject.tokenizer, int(other)) for other in mapped],
            }
            for token, amplification, mapped in zip(*salient, strict=True)
        ]
        for head, salient in found.items()
    }
