"""`--dry_run`: what it says against what is; that it touches no device and refuses what cannot fit."""

import dataclasses
import json
import math
import os
import subprocess
import sys
from collections import Counter
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh

from checkpoints_convert.published import published_config
from experiments import plan
from experiments.config import RunConfig
from experiments.run import run
from headjax import costs
from headjax.analyses import (
    attention_patterns,
    copy_score,
    dynamic_scores,
    gradient_attribution,
    logit_attribution,
    relation_scores,
    salient_operations,
)
from headjax.analyses.registry import ANALYSES
from headjax.config import ModelConfig, Rotary
from headjax.costs import Prompts, parameter_bytes
from headjax.engine import clean_run, path_step, variant_step
from headjax.engine.hits import screening_stages
from headjax.engine.layer_sweep import _program
from headjax.engine.mesh import parameter_sharding
from headjax.engine.prefill import prefill
from headjax.errors import InputError
from headjax.model import Transformer, parameter_shapes
from headjax.parameters import InMemory
from headjax.study import Data
from headjax.zoo import MODELS
from tests.helpers import tiny_tokenizers
from tests.helpers.random_prompts import random_prompts
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
PROMPTS = random_prompts(SMALL.vocab_size, lengths=(13, 11, 12))
B, S = PROMPTS.tokens.shape


def product_flops(jaxpr, trips: int = 1) -> int:
    """FLOP of all matrix products of a program, a multiplication and an addition each; loops whose length
    is not in the program run `trips` times."""
    total = 0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            shape = eqn.invars[0].aval.shape
            total += 2 * math.prod(eqn.outvars[0].aval.shape) * math.prod(shape[i] for i in contracted)
        elif eqn.primitive.name == "cond":
            total += max(product_flops(branch.jaxpr, trips) for branch in eqn.params["branches"])
        else:
            times = {"scan": eqn.params.get("length"), "while": trips}.get(eqn.primitive.name, 1)
            inner = [getattr(value, "jaxpr", value) for value in eqn.params.values()]
            total += times * sum(product_flops(j, trips) for j in inner if hasattr(j, "eqns"))
    return total


@pytest.fixture(scope="module")
def model() -> Transformer:
    return Transformer(SMALL, rngs=nnx.Rngs(0))


def traced(function, *arguments, trips: int = 1, **static) -> int:
    return product_flops(jax.make_jaxpr(partial(function, **static))(*arguments).jaxpr, trips)


def test_flops_of_forward_sweeps_are_those_of_their_programs(model):
    """Within 1 %: norms' and metrics' own small products are left out of the plan."""
    tokens, mask, answers, distractors = PROMPTS.tokens, PROMPTS.mask, PROMPTS.answers, PROMPTS.distractors
    one = Prompts(1, B, S)

    attributed = traced(_program(logit_attribution.SWEEP), (model, None), tokens, mask, answers)
    assert costs.logit_attribution(SMALL, one, 1, 4).flops == pytest.approx(attributed, rel=0.01)
    patterns = traced(_program(attention_patterns.SWEEP), (model, None), tokens, mask)
    assert costs.attention_patterns(SMALL, one, 4).flops == pytest.approx(patterns, rel=0.01)
    kept = traced(_program(attention_patterns.KEEP), (model, None), tokens, mask)
    assert costs.kept_patterns(SMALL, one, 4).flops == pytest.approx(kept, rel=0.01)
    zeros = np.zeros((SMALL.n_layers, 1, 1, 1, 1), np.float32)
    gradient = traced(
        gradient_attribution._gradient,
        *(model, tokens, mask, answers, distractors, zeros),
        metric="logprob",
        positions="last",
    )
    assert costs.gradient_attribution(SMALL, one, 1, "last", 4).flops == pytest.approx(gradient, rel=0.01)


@pytest.mark.parametrize("positions", ["last", "all"])
@pytest.mark.parametrize("start", [0, 3, SMALL.n_layers - 1])
def test_flops_of_variants_are_those_of_their_programs(model, positions: str, start: int):
    """A clean run and two batches of five variants that start at the same layer, within 1 %."""
    answers = (PROMPTS.answers, PROMPTS.distractors)
    step = partial(prefill, keep=positions)
    clean = jax.eval_shape(step, model, PROMPTS.tokens, PROMPTS.mask)
    gain, zeros = (
        np.ones((5, SMALL.n_layers, SMALL.n_heads), np.float32),
        np.zeros((SMALL.n_layers, 1, 1, 1, 1)),
    )
    edit = variant_step.VariantEdit(gain, zeros.astype(np.float32))
    above = SMALL.n_layers - 1 - start
    counted = traced(step, model, PROMPTS.tokens, PROMPTS.mask)
    # Of "all", the loop stops below the last layer; its branch counts there even where it is not taken.
    trips = above if positions == "last" else max(0, above - 1)
    variants = traced(
        variant_step.variant_step,
        *(model, clean, edit, np.int32(start), *answers),
        trips=trips,
        positions=positions,
    )
    if positions == "all" and not above:
        last_layer = costs.variant(SMALL, S, start - 1, "all") - costs.variant(SMALL, S, start, "all")
        variants -= 5 * B * last_layer
    planned = costs.variants(SMALL, Prompts(1, B, S), np.full(9, start), 5, positions, 4, "cpu")
    assert planned.flops == pytest.approx(counted + 2 * variants, rel=0.01)
    assert planned.variants == 5


@pytest.mark.parametrize("n_pairs", [11, 97])
def test_flops_of_relation_hits_by_hand(n_pairs: int):
    """A vocabulary that is counted at once. With at most K pairs a head all are rows of D, in chunks of
    about 64 or 128; with more every head forms W_O U."""
    H, G, K, D, V = 6, 2, 16, 61, 601
    pooled = 2 * H * min(n_pairs, K) * K * D
    hits = {11: pooled + 2 * 66 * D * V, 97: H * (2 * K * D * V + 2 * 97 * K * V)}[n_pairs]
    by_hand = SMALL.n_layers * (2 * 5 * D * G * K + hits) + 3 * 2 * 5 * D * 131
    assert costs.relation_scores(SMALL, n_pairs, 5, 7, True, "cpu").flops == by_hand


def test_flops_of_relation_hits_are_those_of_their_program(model):
    """Every pair undecided, which one stage makes sure of: as many rounds as there are chunks."""
    tokens = np.arange(5, dtype=np.int32)
    stages = screening_stages(model.unembed_rows, tokens)
    assert len(stages) == 1
    weights = (np.moveaxis(model.blocks.attn.W_V[0], 1, 0), model.blocks.attn.W_O[0])
    later, x = np.ones(SMALL.n_kv_heads, bool), np.stack([model.W_E[tokens]] * 2)
    counted = traced(
        relation_scores._hits_of_heads,
        *(*weights, later, x, stages, tokens, tokens * 0, tokens + 1),
        n_relations=1,
        precision="highest",
        implementation=None,
    )
    counted -= 2 * 5 * SMALL.d_model * SMALL.n_kv_heads * SMALL.d_head  # of x in layer 0, if it has a part
    planned = costs.relation_scores(SMALL, 5, 5, 5, False, "cpu").flops
    assert planned == pytest.approx(SMALL.n_layers * counted, rel=0.01)
    slots = PROMPTS.answers[:, None]
    arrays = (PROMPTS.tokens, PROMPTS.mask, PROMPTS.sources, slots, slots[:, 0] * 0 + 3)
    shared = (stages[0]._replace(target=None),)
    counted = traced(_program(dynamic_scores.SWEEP), (model, shared), *arrays)
    planned = costs.dynamic_scores(SMALL, Prompts(1, B, S), B, 4, "cpu").flops
    assert planned == pytest.approx(counted, rel=0.01)


@pytest.mark.parametrize("parts", [1, 2, 4, 8])
@pytest.mark.parametrize("config", [SMALL, LLAMA_70B], ids=["small", "70B"])
def test_parameter_bytes_are_exactly_those_of_the_shards(config: ModelConfig, parts: int):
    mesh = Mesh(np.array(jax.devices()[:parts]), ("model",))
    shards = [
        parameter_sharding(name, shape, mesh).shard_shape(shape)
        for name, shape in parameter_shapes(config).items()
    ]
    assert parameter_bytes(config, 2, parts) == 2 * sum(map(math.prod, shards))


@pytest.mark.parametrize("positions", ["last", "all"])
def test_activations_are_a_bound_and_not_a_wild_one(model, positions: str):
    """What XLA says that the programs hold, beside the parameters, is 0.1 to 1 of the plan."""
    answers = (PROMPTS.answers, PROMPTS.distractors)
    compiled = []
    step = prefill.lower(model, PROMPTS.tokens, PROMPTS.mask, keep=positions)
    compiled.append(step.compile().memory_analysis())
    clean = prefill(model, PROMPTS.tokens, PROMPTS.mask, keep=positions)
    gain = np.ones((29, SMALL.n_layers, SMALL.n_heads), np.float32)
    edit = variant_step.VariantEdit(gain, np.zeros((SMALL.n_layers, 1, 1, 1, 1), np.float32))
    step = variant_step.variant_step.lower(model, clean, edit, np.int32(0), *answers, positions=positions)
    compiled.append(step.compile().memory_analysis())
    parameters = sum(leaf.nbytes for leaf in jax.tree.leaves(nnx.state(model)))
    held = max(
        m.temp_size_in_bytes + m.output_size_in_bytes + m.argument_size_in_bytes - parameters
        for m in compiled
    )
    planned = costs.variants(SMALL, Prompts(1, B, S), np.zeros(29, int), 29, positions, 4, "cpu")
    without_logits = planned.activations - costs.logit_bytes("cpu")
    assert 0.1 * without_logits < held < planned.activations


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
    machine = plan.find_machine(ablation.compute)
    row, _ = plan.plan_model(study, ablation.analyses, itemsizes, machine)
    logits = costs.logit_bytes("gpu") - costs.logit_bytes("cpu")
    memory = (plan.needed(row) + logits - 1000) / 2**30
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


def test_a_model_that_is_not_here_gives_one_line(config: RunConfig):
    missing = altered(config, model="somebody/pythia-2.8b-tuned")
    with pytest.raises(InputError, match=r"needs config\.json of a model; none is here of somebody/pythia-2"):
        plan.print_plan(missing)
    with pytest.raises(InputError, match="gpt3"):
        plan.print_plan(altered(config, model="gpt3"))


def test_the_clean_run_is_planned_and_runs_last(config: RunConfig, model):
    study, itemsizes = plan.find_study(config.model, config, Path())
    machine = plan.find_machine(config.compute)
    rows = plan.plan_model(study, config.analyses, itemsizes, machine)
    assert [row.analysis for row in rows] == [*config.analyses, "clean run"]
    batch = study.task_batch()
    c, (n, S) = study.config, batch.tokens.shape
    padded = -(-n // 8) * 8  # of eight copies each gets as many
    assert rows[-1].cost.flops == costs.forward(c, padded, S) + padded * costs.unembedding(c)
    weights = altered(config, analyses=("relation_scores",))
    (row,) = plan.plan_model(study, weights.analyses, itemsizes, machine)
    assert row.analysis == "relation_scores"
    answers = (PROMPTS.answers, PROMPTS.distractors)
    counted = traced(_program(clean_run.SWEEP), (model, None), PROMPTS.tokens, PROMPTS.mask, *answers)
    assert costs.clean_run(SMALL, Prompts(1, B, S=PROMPTS.tokens.shape[1]), 4, "cpu").flops == pytest.approx(
        counted, rel=0.01
    )


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
    """Embedding and unembedding, the larger of two layers and the first MLP, sources twice, and hits."""
    D, F, K, V = 61, 131, 16, 601
    held = max(3 * D * F, 2 * D * K * (6 + 2)) + 2 * V * D + 2 * 5 * D
    without = costs.hit_bytes(SMALL, costs.stages(V, D, 11, 7), 11, "cpu")
    assert costs.relation_scores(SMALL, 11, 5, 7, True, "cpu").activations - without == 4 * held


PATCHED = (PROMPTS.tokens, PROMPTS.tokens[::-1].copy(), PROMPTS.mask, PROMPTS.answers, PROMPTS.distractors)


def test_flops_of_direct_effects_are_those_of_their_program(model):
    counted = traced(path_step.direct_step, model, *PATCHED)
    planned = costs.direct_effects(SMALL, Prompts(1, B, S), 4).flops
    assert planned == pytest.approx(counted, rel=0.01)


@pytest.mark.parametrize("positions", ["last", "all"])
@pytest.mark.parametrize("start", [0, 4])
def test_flops_of_paths_are_those_of_their_programs(model, positions: str, start: int):
    """Two batches of five senders of one layer, to the logits and into receivers of the layer above."""
    step = partial(path_step.patch_prefill, positions=positions)
    counted = traced(path_step.patch_prefill, model, *PATCHED, positions=positions)
    _, patch = jax.eval_shape(step, model, *PATCHED)
    entries = path_step.Entries(patch.clean.residual, patch.clean.residual)
    senders, one, L = np.full((5, 2), start, np.int32), Prompts(1, B, S), SMALL.n_layers
    to_logits = traced(path_step.logits_step, model, patch, entries, senders, start, trips=L - start)
    begins = np.full(9, start)
    planned = costs.paths(SMALL, one, begins, 5, positions, 4)
    assert planned.flops == pytest.approx(counted + 2 * to_logits, rel=0.01)
    # Into receivers two loops follow each other, of different lengths: by hand.
    into = start + 1
    planned = costs.paths(SMALL, one, begins, 5, positions, 4, (into,))
    P = S if positions == "all" else 1
    layer = costs.projections(SMALL) + costs.attention(SMALL, S) + costs.rest(SMALL)
    row = 2 * costs.mlp(SMALL) + 2 * 16 * 61 + (L - into) * layer + costs.projections(SMALL)
    by_hand = 5 * B * P * row + 2 * B * P * costs.output(SMALL) + 5 * B * 2 * 61
    assert planned.flops == counted_prefill(counted) + 2 * by_hand


def counted_prefill(counted: int) -> int:
    """Two forward passes, whose products were counted a moment ago."""
    two = 2 * costs.forward(SMALL, B, S)
    assert two == pytest.approx(counted, rel=0.01)
    return two


def test_flops_of_scores_of_weights_are_those_of_their_programs(model):
    weights = copy_score.copy_weights(InMemory(model))
    names, x = np.arange(7, dtype=np.int32), np.ones((7, SMALL.d_model), np.float32)
    counted = traced(copy_score.first_state, weights.first_block, x)
    reader = next(weights.layers)
    counted += SMALL.n_layers * traced(
        *(copy_score._layer_hits, x, reader, weights.readout, names), top_k=5, precision="highest"
    )
    assert costs.copy_scores(SMALL, 7, 4).flops == pytest.approx(counted, rel=0.01)

    found = relation_scores.relation_weights(InMemory(model))
    tiles = salient_operations._tiles(found.embedding, SMALL.vocab_size)
    unembed = salient_operations._tiles(model.unembed_rows, SMALL.vocab_size)
    W_V, W_O = next(found.layers)
    sizes = {"n_tokens": 3, "n_mapped": 2, "precision": "highest"}
    counted = SMALL.n_layers * traced(salient_operations._layer_best, tiles, W_V, W_O, unembed, **sizes)
    counted += traced(jax.vmap(found.first_mlp), tiles.rows)
    V = SMALL.vocab_size
    planned = costs.salient_operations(SMALL, SMALL.n_layers, 6, 3, V, V, True)
    assert planned.flops == pytest.approx(counted, rel=0.01)


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
