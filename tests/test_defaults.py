"""Every default that a user relies on, stated a second time: of functions, of a run's config, of word lists.

A default is a claim (a head implements a relation above 0.15; a relation needs 30 pairs), so changing one
takes two edits. It means the same wherever it stands: one table by the parameter's name, exceptions named.
"""

import dataclasses
import importlib
import inspect
import pkgutil
from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np
import pytest

import headjax
from experiments.config import SECTIONS, RunConfig
from headjax import study
from headjax.analyses.registry import ANALYSES
from headjax.data import prompt_sets
from headjax.engine.curves import rank_heads
from headjax.options import Options

# Of public functions of `headjax` and `kernels`, by parameter; "function.parameter" where one differs.
DEFAULTS = {
    # Elhelo & Geva 2024: when a head implements a relation, and salient operations (their listing's sizes).
    **{"threshold": 0.15, "count_suppression": True, "measure": "static", "first_mlp": True},
    **{"n_tokens": 15, "n_mapped": 5},
    # A relation needs 30 pairs of single tokens.
    **{"min_pairs": 30, "single_source": True},
    # Wang et al. 2022: among the top 5.
    "copy_scores.top_k": 5,
    # Ablation: zero, at the last position, each position its own mean; controls of curves as MAPS draws them.
    **{"ablation": "zero", "positions": "last", "mean_over": "prompts"},
    **{"n_random_draws": 5, "n_controls": 5, "max_overlap": 0.15, "max_difference": 0.2},
    # What is differentiated, and what attribution is of.
    **{"gradient_attribution.metric": "logprob", "logit_attribution.metric": "logit"},
    # Circuits: two stages of 2 % of heads (Merullo et al. 2024), from 1 % of the gap; gradients' top 5 %.
    **{"n_stages": 2, "discover_circuit.share": 0.02, "min_effect": 1.0, "agreement.share": 0.05},
    # Statistics.
    **{"level": 0.95, "area_under_curve.n_draws": 9999},
    **{"score_rows.k": 3, "prediction_table.n": 3, "repeated_tokens.n_prompts": 32},
    # Figures.
    **{"orientation": "layer_x", "origin": "lower", "value_name": "Accuracy", "limits": (0.0, 1.0)},
    # Rotary scalings name themselves.
    **{"LinearScaling.kind": "linear", "Llama3Scaling.kind": "llama3", "YarnScaling.kind": "yarn"},
    # A model is as its config says, and usual where it says nothing.
    **{"ModelConfig.norms": "before", "ModelConfig.embedding_scale": 1.0, "amplitude": 1.0},
    # Text: whether a space comes before an answer is asked of the text; of words left out ten are named.
    **{
        "Prompt.space": "auto",
        "Relation.category": "Custom",
        "describe_dropped.at_most": 10,
        "with_error.sign": True,
    },
    "run_main.stopped": "start it again",
    # float32 means float32.
    "precision": "highest",
    "causal": True,
}
# How work is cut, called or reported, which changes no result; tables' empty cells.
NO_RESULT = (
    "batch_size",
    "parts",
    "streams",
    "passes",
    "label",
    "prefix",
    "mode",
    "max_bytes",
    "out_specs",
    "draws",
    "copies",
    "most",
    "points",
    "removed",
)
# Of a run's fields and those of analyses, by place; every other field is None, False or empty.
CONFIG_DEFAULTS = {
    **{"run.analyses": ("relation_scores",), "run.seed": 0, "run.out": "out"},
    **{"data.min_pairs": 30, "report.threshold": 0.15, "report.count_suppression": True},
    **{"compute.dtype": "float32", "compute.precision": "highest", "compute.batch_size": 64},
    **{"report.orientation": "layer_x", "report.origin": "lower", "report.formats": ("png", "pdf")},
    **{"report.size": 1.0, "report.width": "free", "report.title": "{}", "report.colors": "viridis"},
    **{"report.scale": "fixed", "report.annotate": 0, "report.palette": "clear", "report.several": "color"},
    **{
        f"{analysis}.{name}": default
        for analysis in ("head_ablation", "gradient_attribution", "ablation_curves")
        for name, default in (("replacement", "zero"), ("mean_over", "prompts"))
    },
    **{
        f"{analysis}.positions": "last"
        for analysis in ("head_ablation", "gradient_attribution", "path_patching", "circuit_discovery")
    },
    **{"ablation_curves.rank_by": "static", "ablation_curves.n_random_draws": 5},
    **{"attention_patterns.n_shown": 4},
    **{"salient_operations.n_tokens": 15, "salient_operations.n_mapped": 5},
    **{
        **{"circuit_discovery.n_stages": 2, "circuit_discovery.top_share": 0.02},
        "circuit_discovery.min_effect": 1.0,
    },
}


def public_defaults() -> Iterator[tuple[str, str, object]]:
    """Function, parameter and default of whatever headjax and its kernels define under a public name."""
    for found in pkgutil.walk_packages(headjax.__path__, "headjax."):
        if not found.name.endswith("__main__"):
            module = importlib.import_module(found.name)
            for name, value in vars(module).items():
                ours = getattr(value, "__module__", "") == module.__name__ and not name.startswith("_")
                options = isinstance(value, type) and issubclass(
                    value, Options
                )  # they have a table of their own
                if ours and not options and (inspect.isroutine(value) or dataclasses.is_dataclass(value)):
                    for parameter in inspect.signature(value).parameters.values():
                        yield name, parameter.name, parameter.default


def test_defaults_of_functions_are_those_that_are_promised():
    seen = set()
    for function, parameter, default in public_defaults():
        if not isinstance(default, str | int | float | tuple) or default in (False, "", ()):
            continue
        key = f"{function}.{parameter}" if f"{function}.{parameter}" in DEFAULTS else parameter
        if key not in NO_RESULT and parameter != "templates":
            assert key in DEFAULTS, f"{function} has {parameter}={default!r}: state it here too"
            assert default == DEFAULTS[key], f"{function}: {parameter}"
            seen.add(key)
    assert seen == set(DEFAULTS)
    assert inspect.signature(headjax.load_model).parameters["dtype"].default == jnp.float32


def test_templates_are_the_four_of_dynamic_scores_unless_others_are_given():
    signature = inspect.signature(prompt_sets.template_prompts)
    assert len(signature.parameters["templates"].default) == 4


def test_defaults_of_a_runs_config_are_those_that_are_promised():
    parts = {"run": RunConfig, **SECTIONS, **ANALYSES}
    found = {
        f"{part}.{field.name}": field.default
        for part, options in parts.items()
        for field in dataclasses.fields(options)
        if field.default_factory is dataclasses.MISSING
    }
    assert found.pop("run.model") is dataclasses.MISSING
    empty = {name for name, default in found.items() if default is None or default is False or default == ()}
    assert {name: default for name, default in found.items() if name not in empty} == CONFIG_DEFAULTS


def test_as_many_prompts_are_generated_as_promised():
    assert study.N_GENERATED == 100


# Elhelo & Geva 2024, section 4.2: at most so many heads are removed, by the model's number of heads.
@pytest.mark.parametrize(
    ("n_heads", "n_removed"),
    [(299, 30), (300, 50), (499, 50), (500, 100), (999, 100), (1000, 150), (1499, 150), (1500, 250)],
)
def test_as_many_heads_are_removed_as_promised(n_heads: int, n_removed: int):
    scores = np.random.default_rng(0).uniform(0.1, 1, (1, n_heads))
    assert len(rank_heads(scores)) == n_removed


# Words of the generated tasks: how many, and the sum of their characters' code points.
WORDS = {
    "IOI_NAMES": (60, 31755),
    "IOI_PLACES": (9, 6090),
    "IOI_THINGS": (10, 4940),
    "IOI_TEMPLATES": (5, 39677),
    "COLORS": (11, 5711),
    "OBJECTS": (20, 8750),
    "SURFACES": (4, 2019),
}


@pytest.mark.parametrize("name", WORDS)
def test_the_words_of_generated_tasks_are_all_there(name: str):
    words = getattr(prompt_sets, name)
    words = words.split() if isinstance(words, str) else words
    assert (len(words), sum(map(ord, "".join(words)))) == WORDS[name]
