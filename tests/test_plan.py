"""`--dry_run`: what it says against what is; that it touches no device and refuses what cannot fit."""

import contextlib
import dataclasses
import json
import math
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from jax.sharding import Mesh

from checkpoints_convert.published import published_config
from experiments import plan
from experiments.config import RunConfig
from experiments.run import run
from headjax import costs
from headjax.analyses import (
    AblationCurves,
    AttentionPatterns,
    CircuitDiscovery,
    CopyScore,
    DynamicScores,
    GradientAttribution,
    HeadAblation,
    LogitAttribution,
    PathPatching,
    RelationScores,
    SalientOperations,
)
from headjax.analyses.base import Analysis, clean_rows
from headjax.analyses.registry import ANALYSES
from headjax.config import ModelConfig, Rotary
from headjax.costs import parameter_bytes
from headjax.engine.batches import Work, untracked
from headjax.engine.hits import Stage, relation_hits, screening_stages
from headjax.engine.mesh import parameter_sharding
from headjax.errors import InputError
from headjax.model import parameter_shapes
from headjax.study import Data, Study
from headjax.zoo import MODELS
from tests.helpers import tiny_tokenizers
from tests.helpers.runs import altered
from tests.helpers.tiny_run import tiny_run

ROOT = Path(__file__).resolve().parents[1]
SMALL = ModelConfig(
    **{"family": "llama", "n_layers": 7, "n_heads": 6, "n_kv_heads": 2, "d_head": 16, "d_model": 61},
    **{"d_mlp": 131, "vocab_size": 601, "max_positions": 64, "norm": "rms", "norm_eps": 1e-5},
    **{"rotary": Rotary(8, 10000.0), "activation": "silu", "gated_mlp": True},
    **{"parallel_residual": False, "tied_embeddings": False},
)
LLAMA_70B = dataclasses.replace(
    SMALL,
    **{"n_layers": 80, "n_heads": 64, "n_kv_heads": 8, "d_head": 128, "d_model": 8192, "d_mlp": 28672},
    vocab_size=128256,
)


@pytest.mark.parametrize("parts", [1, 2, 4, 8])
@pytest.mark.parametrize("config", [SMALL, LLAMA_70B], ids=["small", "70B"])
def test_parameter_bytes_are_exactly_those_of_the_shards(config: ModelConfig, parts: int):
    mesh = Mesh(np.array(jax.devices()[:parts]), ("model",))
    shards = [
        parameter_sharding(name, shape, mesh).shard_shape(shape)
        for name, shape in parameter_shapes(config).items()
    ]
    assert parameter_bytes(config, 2, parts) == 2 * sum(map(math.prod, shards))


@pytest.mark.parametrize("n_pairs", [11, 97])
def test_flops_of_relation_hits_by_hand(n_pairs: int):
    """A vocabulary that is counted at once. With at most K pairs a head all are rows of D, in chunks of
    about 64 or 128; with more every head forms W_O U."""
    H, G, K, D, V = 6, 2, 16, 61, 601
    pooled = 2 * H * min(n_pairs, K) * K * D
    hits = {11: pooled + 2 * 66 * D * V, 97: H * (2 * K * D * V + 2 * 97 * K * V)}[n_pairs]
    by_hand = SMALL.n_layers * (2 * 5 * D * G * K + hits) + 3 * 2 * 5 * D * 131
    assert costs.relation_scores(SMALL, n_pairs, 5, 7, True, "cpu").flops == by_hand


# --- what is really multiplied ------------------------------------------------------------------------


@contextlib.contextmanager
def multiplied() -> Iterator[list[int]]:
    """The FLOP of every matrix product inside, each run by itself: loops are as long as they are, conditions
    as they turn out."""
    product, found = jax.lax.dot_general_p.impl, []

    def counted(left, right, **how):
        ((contracted, _), _), result = how["dimension_numbers"], product(left, right, **how)
        found.append(2 * result.size * math.prod(left.shape[axis] for axis in contracted))
        return result

    with pytest.MonkeyPatch.context() as patch, jax.disable_jit():
        patch.setattr(jax.lax.dot_general_p, "impl", counted)
        # Signatures say what compiled programs are given: there is no whole number of Python's among it.
        patch.setattr(jaxtyping.config, "jaxtyping_disable", True)
        yield found


@pytest.mark.parametrize(("n_pairs", "k"), [(40, 10), (40, 200), (7, 10), (150, 10)])
def test_flops_of_screening_are_those_that_it_multiplies(monkeypatch, n_pairs: int, k: int):
    """Two stages, given which share of the pairs enters the second one; few and many of each head."""
    c = dataclasses.replace(SMALL, n_heads=4, n_kv_heads=4, d_head=8, d_model=100, vocab_size=2000)
    rng = np.random.default_rng(0)
    shapes = ((c.n_heads, n_pairs, 8), (c.n_heads, 8, 100), (2000, 100))
    q, W_O, unembed = (rng.normal(size=shape).astype(np.float32) for shape in shapes)
    targets = rng.choice(2000, n_pairs).astype(np.int32)
    stages = screening_stages(unembed, targets)
    first, _ = (stage for stage in stages if isinstance(stage, Stage))
    own = np.take_along_axis(q @ W_O @ unembed.T, targets[None, :, None], axis=2)
    above = (q @ W_O @ np.asarray(first.rows).T > own + 1e-4).sum(axis=2)
    left = np.minimum(above, len(first.rows) - above) < k
    monkeypatch.setattr(costs, "STAGE_SHARES", (1, left.mean()))
    planned = costs.hits(c, n_pairs, len(np.unique(targets)), n_pairs, "cpu").flops
    with multiplied() as found:
        relation_hits(jnp.asarray(q), jnp.asarray(W_O), stages, jnp.full(n_pairs, k))
    assert planned == pytest.approx(sum(found), rel=0.05)


CAPITALS = {"prompts": ("capitals",)}
# Planned FLOP over those that a run of the analysis multiplies, at least and at most. A gradient needs
# nothing below the lowest layer; the top layer of variants at all positions is behind a condition, planned as
# met; how many heads a circuit will have nobody knows, so its plan is the most that it can cost.
REALLY = (
    (RelationScores(), 0.99, 1),
    (DynamicScores(), 1, 1),
    (LogitAttribution(), 1, 1),
    (AttentionPatterns(n_shown=2), 1, 1),
    (GradientAttribution(metrics=("logprob",)), 1, 1.06),
    (HeadAblation(), 1, 1),
    (HeadAblation(replacement="mean", positions="all"), 0.99, 1.06),
    (PathPatching(**CAPITALS), 1, 1),
    (PathPatching(**CAPITALS, positions="all", receivers=("L3H1.q", "L2H0.k", "L3H0.v")), 1, 1),
    (PathPatching(**CAPITALS, receivers=("L4H1.q",)), 1, 1),
    (CircuitDiscovery(**CAPITALS), 1, 1.3),
    (CopyScore(), 1, 1),
    (SalientOperations(), 1, 1),
)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, costs.Machine]:
    """A tiny model on one device."""
    tiny = tiny_run(tmp_path_factory.mktemp("alone"))
    study, _ = plan.find_study(tiny.model, altered(tiny, n_prompts=4), Path())
    vars(study)["mesh"] = None  # a study takes all devices there are
    study.sweep_model()  # not by itself, a run of no program at all could not read it
    return study, plan.find_machine(tiny.compute)


@pytest.mark.slow
@pytest.mark.parametrize(("analysis", "least", "most"), REALLY, ids=lambda value: type(value).__name__)
def test_flops_are_those_that_a_run_multiplies(alone, analysis: Analysis, least: float, most: float):
    study, machine = alone
    planned = analysis.cost(study, machine).flops
    with multiplied() as found:
        analysis.run(study, Work())
    assert least <= planned / sum(found) <= most


@pytest.mark.slow
def test_curves_are_planned_as_the_most_that_they_cost(alone):
    """A relation may have fewer controls than planned, and heads that begin above the first layer."""
    study, machine = alone
    ablation, curves = HeadAblation(), AblationCurves(rank_by="ablation_logprob", max_heads=2)
    found = ablation.run(study, Work())
    planned = curves.cost(study, machine).flops
    with multiplied() as products:
        curves.run(study, Work(found))
    assert 1 <= planned / sum(products) <= 2


def test_flops_of_the_clean_run_are_those_that_it_multiplies(alone):
    study, machine = alone
    with multiplied() as found:
        clean_rows(study, {"ablation": HeadAblation()}, untracked)
    assert plan.clean_cost([study.task_batch()], study, machine).flops == sum(found)


# --- a whole run --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    analyses = ("relation_scores", "dynamic_scores", "logit_attribution", "head_ablation")
    more = ("gradient_attribution", "attention_patterns", "ablation_curves")
    tmp = tmp_path_factory.mktemp("plan")
    mesh = {"data": 8, "model": 1}  # the tests' devices
    return altered(tiny_run(tmp), analyses=analyses + more, n_prompts=4, mesh=mesh)


@pytest.mark.slow
def test_every_program_of_a_run_is_planned(config: RunConfig, count_compiles):
    study, itemsizes = plan.find_study(config.model, config, Path())
    rows = plan.plan_model(study, config.analyses, itemsizes, plan.find_machine(config.compute))
    planned = Counter(program[0] for row in rows for program in row.cost.programs)
    jax.clear_caches()
    with count_compiles() as compiled:
        run(config, progress=False)
    names = Counter(name.removeprefix("jit(").removesuffix(")") for name in compiled)
    assert {name: names[name] for name in planned} == planned
    assert set(planned) >= {
        "_hits_of_heads",
        "dynamic_scores",
        "logit_attribution",
        "prefill",
        "variant_step",
    }


def test_bytes_read_are_the_parameters_once_and_what_relation_scores_read(config: RunConfig):
    study, itemsizes = plan.find_study(config.model, config, Path())
    machine = plan.find_machine(config.compute)
    first, second, *others = plan.plan_model(study, config.analyses, itemsizes, machine)
    c = study.config
    mlp = 3 * c.d_model * c.d_mlp + 2 * c.d_mlp + c.d_model + 2 * c.d_model
    layer = 2 * c.d_model * c.n_heads * c.d_head
    assert first.read == 4 * (c.vocab_size * c.d_model + c.n_layers * layer + mlp)
    assert second.read == 4 * sum(math.prod(shape) for shape in parameter_shapes(c).values())
    assert second.parameters == second.read  # float32 on disk and in memory
    assert all(row.read == 0 for row in others)


def test_a_streamed_model_is_read_once_a_pass(config: RunConfig):
    """Means are a pass of their own, a gradient goes forwards and backwards."""
    changed = altered(config, analyses=("head_ablation", "gradient_attribution"), metrics=("logprob",))
    changed = altered(changed, stream=True, replacement="mean")
    study, itemsizes = plan.find_study(changed.model, changed, Path())
    rows = plan.plan_model(study, changed.analyses, itemsizes, plan.find_machine(changed.compute))
    whole = 4 * sum(math.prod(shape) for shape in parameter_shapes(study.config).values())
    assert [(row.analysis, row.read / whole) for row in rows] == [
        ("head_ablation", 2),
        ("gradient_attribution", 3),
        ("clean run", 1),
    ]


def test_no_device_is_touched_and_no_weight_is_there_to_be_read(config: RunConfig, tmp_path: Path):
    """In a process where any use of a device fails, on a directory that holds no weights at all."""
    directory = tmp_path / "unconverted"
    tokenizer = tiny_tokenizers.byte_level()
    tokenizer.save_pretrained(directory)
    fields = {"model_type": "gpt2", "n_embd": 24, "n_head": 3, "n_layer": 5, "n_positions": 97}
    fields |= {"vocab_size": len(tokenizer), "torch_dtype": "float16"}
    (directory / "config.json").write_text(json.dumps(fields))
    arguments = [
        f"--config={ROOT}/experiments/configs/sweeps.py",
        f"--config.model={directory},gemma-3-270m,somebody/tuned",
        *(
            f"--config.data.relations_dir={config.data.relations_dir}",
            "--config.min_pairs=3",
            "--config.rate=0.5",
        ),
        *(f"--config.analyses={','.join(config.analyses)}", "--config.templates=<X> is", "--dry_run"),
    ]
    environment = os.environ | {
        "JAX_PLATFORMS": "nonsense",
        "HF_HOME": str(tmp_path),
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-m", "experiments.run", *arguments]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "unconverted: 5 layers of 3 heads" in done.stdout
    assert all(analysis in done.stdout for analysis in config.analyses)
    assert "somebody/tuned: config.json is not on this machine" in done.stdout
    assert "Gemma 3 270M: 18 layers of 4 heads, 268," in done.stdout
    assert "its published sizes, for it is not on this machine; a token counted for every word" in done.stdout
    assert {file.name for file in tmp_path.iterdir()} == {"unconverted"}


# --- refusals -----------------------------------------------------------------------------------------


def test_a_run_that_cannot_fit_is_told_what_would_make_it(config: RunConfig, capsys):
    """Half of what it needs: what is offered is tried, and does fit."""
    ablation = altered(config, analyses=("head_ablation",), batch_size=8, variant_batch=15, mesh=None)
    study, itemsizes = plan.find_study(config.model, ablation, Path())
    machine = plan.find_machine(altered(ablation, device_memory=1.0).compute)
    row, _ = plan.plan_model(study, ablation.analyses, itemsizes, machine)
    memory = (plan.peak([row], machine) - 1000) / 2**30
    tight = altered(ablation, device_memory=memory, rate=1.0)
    with pytest.raises(InputError, match="head_ablation must fit a device of") as caught:
        plan.print_plan(tight)
    assert "head_ablation" in capsys.readouterr().out  # the table is printed all the same
    message = str(caught.value)
    for words, changes in (
        ("batch_size=4", {"batch_size": 4}),
        ("variant_batch=1", {"variant_batch": 1}),
        ("dtype=bfloat16", {"dtype": "bfloat16"}),
    ):
        assert words in message
        plan.print_plan(altered(tight, **changes))


def test_more_devices_on_model_are_offered_where_the_parameters_are_too_many(config: RunConfig):
    study, itemsizes = plan.find_study(config.model, altered(config, dtype="bfloat16"), Path())
    large = dataclasses.replace(study, config=LLAMA_70B)
    itemsizes = dict.fromkeys(parameter_shapes(LLAMA_70B), 2)
    machine = plan.Machine(1, 1, 80 * 2**30, 400e12, "gpu")

    def refusals(machine: plan.Machine) -> list[str]:
        rows = plan.plan_model(large, config.analyses, itemsizes, machine)
        return plan.refuse(large, config.analyses, itemsizes, machine, rows)

    (message,) = refusals(machine)
    assert "mesh with 2 devices on 'model'" in message
    assert "analyses=relation_scores" in message
    machine = machine._replace(n_devices=2, model_parts=2)
    assert not refusals(machine)


def test_streaming_is_offered_where_inner_values_of_all_layers_are_too_many(config: RunConfig):
    """A gradient's: of a model that is read layer by layer only the host has more than one layer's."""
    study, itemsizes = plan.find_study(config.model, altered(config, n_prompts=None), Path())
    deep = dataclasses.replace(study, config=dataclasses.replace(study.config, n_layers=100))
    machine, analyses = plan.Machine(1, 1, 2**40, 1e12, "gpu"), {"gradient": GradientAttribution()}
    gradient, _ = plan.plan_model(deep, analyses, itemsizes, machine)
    machine = machine._replace(memory=gradient.parameters + gradient.cost.activations / 3)
    rows = plan.plan_model(deep, analyses, itemsizes, machine)
    (message,) = plan.refuse(deep, analyses, itemsizes, machine, rows)
    assert "stream=true" in message


def test_a_model_that_is_not_here_gives_one_line(config: RunConfig):
    missing = altered(config, model="somebody/pythia-2.8b-tuned")
    with pytest.raises(InputError, match=r"needs config\.json of a model; none is here of somebody/pythia-2"):
        plan.print_plan(missing)
    with pytest.raises(InputError, match="gpt3"):
        plan.print_plan(altered(config, model="gpt3"))


def test_the_clean_run_is_planned_and_runs_last(config: RunConfig):
    study, itemsizes = plan.find_study(config.model, config, Path())
    machine = plan.find_machine(config.compute)
    rows = plan.plan_model(study, config.analyses, itemsizes, machine)
    assert [row.analysis for row in rows] == [*config.analyses, "clean run"]
    weights = altered(config, analyses=("relation_scores",))
    (row,) = plan.plan_model(study, weights.analyses, itemsizes, machine)
    assert row.analysis == "relation_scores"


def test_every_published_model_is_planned_where_it_is_not(tmp_path: Path):
    """By alias or id; all words of all relations are tokens, so that no pair is left out."""
    for i, name in enumerate(("qwen2.5-7b", "google/gemma-2-9b-it", "pythia-12b-deduped", "opt-30b")):
        config = RunConfig(name, analyses=("relation_scores", "head_ablation"), data=Data(prompts="ioi"))
        study, itemsizes = plan.find_study(name, config, tmp_path / str(i))
        assert [pairs.relation.id for pairs in study.pairs][:2] == ["copying", "name_copying"]
        assert study.task_batch("ioi").tokens.shape[0] == 100
        assert set(itemsizes.values()) == {2}
        assert study.vocab_size == study.config.vocab_size
        rows = plan.plan_model(study, config.analyses, itemsizes, plan.find_machine(config.compute))
        assert all(row.cost.flops > 1e12 for row in rows)


def test_every_alias_has_its_published_sizes():
    unknown = {alias for alias in MODELS if published_config(alias) is None}
    assert not unknown


def test_what_relation_scores_hold_by_hand():
    """The larger of two layers and the first MLP, sources twice, and hits, the unembedding among them."""
    D, F, K = 61, 131, 16
    held = max(3 * D * F + 2 * F + D, 2 * D * K * (6 + 2)) + 2 * 5 * D
    without = costs.hits(SMALL, 11, 7, 11, "cpu").n_bytes
    assert without > 4 * SMALL.vocab_size * D
    assert costs.relation_scores(SMALL, 11, 5, 7, True, "cpu").activations - without == 4 * held


def test_every_analysis_says_what_it_costs(config: RunConfig, tmp_path: Path, capsys):
    """Of a published model with prompts that all of them can read; no total leaves one out."""
    for name, kind in ANALYSES.items():
        before = ("relation_scores",) if name in ("universality", "ablation_curves") else ()
        run_of = RunConfig(
            "gpt2", analyses=(*before, kind()), data=Data(relations=("copying", "name_copying"))
        )
        prompts = {"prompts": "ioi"} if name in ("path_patching", "circuit_discovery") else {}
        plan.print_plan(altered(run_of, **prompts))
        said = capsys.readouterr().out
        assert "not worked out" not in said
        assert "all but" not in said


def test_a_total_that_leaves_something_out_says_so():
    machine = plan.Machine(1, 1, 2**30, 1e12, "cpu")
    rows = [plan.Row("known", 0, costs.NOTHING, 0), plan.Row("mystery", 0, None, 0)]
    assert "all but mystery" in plan.table(rows, machine)
    assert "all but" not in plan.table(rows[:1], machine)
