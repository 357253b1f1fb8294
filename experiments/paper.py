"""The runs that papers report, as configs: the settings of `experiments/configs/paper/`, one file a model.

Times in those files are estimates: the operations of the run's matrix products over the rates below, which
are what such devices sustain in float32 ("highest" precision; on a TPU six bfloat16 passes), not their
peaks. A forward pass is 2 operations a parameter and token; the sweeps' own formulas are in their modules.
Counted with our 20 relations, of whose 6,036 pairs about 70 % are single tokens: 4,200 pairs, each in four
templates of 9 tokens for dynamic scores. Not in them: conversion on first use, reading the parameters (their
bytes over what the disk gives) and a minute or two of compiling. `v5e-8` counts all its eight chips; copy
scores and salient operations, a few TFLOP, use one device of however many there are.
"""

from experiments.config import RunConfig
from headjax.analyses import DynamicScores
from headjax.report.options import Report
from headjax.study import Data

# Device -> TFLOP/s: a server CPU's 2.5, an H100's 67 and a v5e's 8 x 33 at peak.
RATES = {"a 16-core CPU": 0.5, "one H100": 25.0, "a v5e-8": 100.0}

# Those that the causal experiment, and the one with sources of several tokens, were published for.
CAUSAL = (
    *("country_to_capital", "country_to_language", "product_to_company", "object_to_superclass"),
    *("adj_to_comparative", "verb_to_past_tense", "word_to_first_letter", "word_to_last_letter"),
    *("year_to_following", "copying", "name_copying", "noun_to_pronoun", "english_to_spanish"),
)
MULTI_TOKEN = (
    *("country_to_capital", "country_to_language", "noun_to_pronoun", "copying", "name_copying"),
    *("object_to_superclass", "word_to_first_letter", "word_to_last_letter", "word_to_synonym"),
    *("work_to_location", "year_to_following"),
)


def correlations(model: str) -> RunConfig:
    """Largest relation scores, and static against dynamic ones (Elhelo & Geva 2024, section 4.1)."""
    return RunConfig(
        model=model,
        analyses=("relation_scores", "dynamic_scores", "universality"),
        compare=("maps_scores", "maps_correlations"),
        report=Report(tables=("tex",)),
        out=f"out/paper/correlations_{model}",
    )


def causal(model: str) -> RunConfig:
    """Accuracy as a relation's heads are removed (Elhelo & Geva 2024, section 4.2)."""
    return RunConfig(
        model=model,
        data=Data(relations=CAUSAL, n_prompts=100),
        analyses=("relation_scores", "ablation_curves"),
        compare=("maps_causal",),
        out=f"out/paper/causal_{model}",
    )


def multi_token(model: str) -> RunConfig:
    """Static against dynamic scores where sources have several tokens (Elhelo & Geva 2024)."""
    return RunConfig(
        model=model,
        data=Data(relations=MULTI_TOKEN, templates=("This is a document about <X>",)),
        analyses=("relation_scores", DynamicScores(multi_token=True)),
        compare=("maps_multi_token",),
        out=f"out/paper/multi_token_{model}",
    )


def direct_effects(model: str) -> RunConfig:
    """Direct effects in indirect object identification (McDougall et al. 2023)."""
    return RunConfig(
        model=model,
        data=Data(relations=("name_copying",), prompts="ioi", n_prompts=100),
        analyses=("relation_scores", "logit_attribution"),
        compare=("ioi_direct_effects",),
        out=f"out/paper/direct_effects_{model}",
    )
