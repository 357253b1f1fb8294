"""A study in Python: text in and words out, analyses in memory, own words and prompts, how results show."""

import dataclasses

import numpy as np
import pytest

import headjax
from experiments.config import RunConfig
from experiments.run import open_model
from headjax.analyses import (
    AblationCurves,
    CopyScore,
    DynamicScores,
    GradientAttribution,
    HeadAblation,
    PathPatching,
    RelationScores,
)
from headjax.engine.replacement import find_replacement


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> headjax.Study:
    assert open_model("trained", RunConfig("trained"))  # and known by name from here on
    return headjax.open(
        "trained", n_prompts=12, top_k=3, checkpoint_dir=tmp_path_factory.mktemp("cache"), mesh={"model": 1}
    )


@pytest.fixture(scope="module")
def result(study: headjax.Study) -> headjax.Result:
    mean = HeadAblation(replacement="mean")
    return study.run(RelationScores(), HeadAblation(), mean=mean)


def test_text_in_words_out(study):
    text = study.task_batch().prompts[0].text
    tokens = study.tokens(text)
    assert tokens.shape[0] == 1
    words = study.next_words(text, 3)
    logits = np.asarray(study.model(tokens).logits[0, -1], np.float64)
    shares = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    best = np.argsort(-shares)[:3]
    assert [probability for _, probability in words] == pytest.approx(shares[best], abs=1e-6)
    ids = study.tokenizer.convert_tokens_to_ids([word.strip() for word, _ in words])
    assert ids == best.tolist()
    with pytest.raises(headjax.InputError, match=r"'k' must be a whole number from 1 to"):
        study.next_words(text, 0)


def test_a_forward_pass_shows_outputs_patterns_and_the_residual_stream(study):
    text = study.task_batch().prompts[0].text
    output = study.forward(text, return_z=True, return_pattern=True, return_residual=True)
    c, S = study.config, study.tokens(text).shape[1]
    assert output.z.shape == (c.n_layers, 1, S, c.n_heads, c.d_head)
    assert output.pattern.shape == (c.n_layers, 1, c.n_heads, S, S)
    assert output.residual.shape == (c.n_layers + 1, 1, S, c.d_model)
    np.testing.assert_allclose(output.pattern.sum(axis=-1), 1, rtol=1e-5)
    assert not np.triu(output.pattern, 1).any()
    # z is the pattern's mean of values, and the last residual gives the logits.
    blocks = study.model.blocks
    for layer in range(c.n_layers):
        block = [np.asarray(part[layer]) for part in (study.model.W_V, blocks.attn.b_V[...])]
        x = np.asarray(output.residual[layer])
        scale, bias = np.asarray(blocks.ln1.scale[layer]), np.asarray(blocks.ln1.bias[layer])
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + c.norm_eps) * scale + bias
        values = np.einsum("sd,hdk->shk", x[0], block[0]) + block[1]
        z = np.einsum("hst,thk->shk", np.asarray(output.pattern[layer, 0]), values)
        np.testing.assert_allclose(output.z[layer, 0], z, atol=2e-5)
    np.testing.assert_allclose(study.model.logits(output.residual[-1]), output.logits, atol=1e-5)
    plain = study.forward(text)
    assert plain.z is plain.pattern is plain.residual is None


def test_analyses_side_by_side_under_their_names(study, result):
    assert set(result.grids.values("analysis")) == {"relation_scores", "head_ablation", "mean"}
    zero, mean = (result.grids.select(analysis=name, metric="logprob") for name in ("head_ablation", "mean"))
    assert [grid.replacement for grid in (*zero, *mean)] == ["zero"] * len(zero) + ["mean"] * len(mean)
    assert any((a.scores != b.scores).any() for a, b in zip(zero, mean, strict=True))
    assert [row.relation for row in result.clean] == [grid.relation for grid in zero]
    for row, grid in zip(result.clean, zero, strict=True):
        assert row.logprob == pytest.approx(grid.clean, abs=1e-5)


def test_later_analyses_start_from_earlier_results(study, result):
    curves = study.run(AblationCurves(max_heads=3, n_random_draws=1), earlier=result)
    rows = curves.tables["ablation_curves"]
    assert {row.relation for row in rows} == {grid.relation for grid in result.grids["static"]}
    ranked = AblationCurves(rank_by="ablation_logprob", max_heads=2, n_random_draws=1)
    with pytest.raises(headjax.InputError, match=r"grids there are: .*mean:ablation_logprob"):
        study.run(ranked, earlier=result)
    named = AblationCurves(rank_by="mean:ablation_logprob", max_heads=2, n_random_draws=1)
    assert study.run(named, earlier=result).tables["ablation_summary"]
    with pytest.raises(headjax.InputError, match="rank_by is 'static', grids there are: none"):
        study.run(AblationCurves())


def test_own_words_own_prompts(study, tmp_path):
    words = [pair for pairs in study.pairs for pair in pairs.words][:40]
    words = list(dict(words).items())
    own = headjax.Relation("mine", words)
    assert (own.name, own.category) == ("Mine", "Custom")
    mine = headjax.open("trained", relations=[own, "copying"], min_pairs=5, checkpoint_dir=tmp_path)
    assert [pairs.relation.id for pairs in mine.pairs] == ["mine", "copying"]
    scores = mine.run(RelationScores()).grids.select(relation="mine", kind="static").one
    assert scores.n_pairs == len(mine.pairs[0].words)
    prompt = study.task_batch().prompts[0]
    asked = headjax.Prompt("mine", prompt.text, prompt.answer)
    found = study.run(HeadAblation(prompts=(asked,)))
    (row,) = found.clean
    assert (row.relation, row.n_prompts) == ("prompts", 1)
    expected = dict(study.next_words(prompt.text, 50))
    (answer,) = [p for word, p in expected.items() if word.strip() == prompt.answer.strip()]
    assert np.exp(row.logprob) == pytest.approx(answer, abs=1e-5)
    with pytest.raises(headjax.InputError, match=r"pairs must be .* words; got"):
        headjax.Relation("mine", ["ab"])


def test_activation_patching_by_hand(study):
    """What the README shows: a head's output replaced by that of another prompt."""
    batch = study.task_batch()
    other = find_replacement(study.model, batch, "mean", positions="all")(np.arange(1))
    S = batch.tokens.shape[1]
    edit = headjax.HeadEdit.ablate(study.config, ["L0H1"], n_positions=S, replacement=other)
    patched = study.forward(batch.tokens[:1], mask=batch.mask[:1], edit=edit, return_z=True)
    np.testing.assert_allclose(patched.z[0, 0, :, 1], other[0, 0, :, 1], atol=1e-6)


def test_grids_are_picked_and_shown(study, result):
    grid = result.grids.select(analysis="mean")["logprob"].select(relation="copying").one
    assert grid is result.grids.select(analysis="mean", metric="logprob", relation="copying").one
    (head, best), *_ = grid.top(5)
    assert best == grid.scores.max() == grid.scores[head]
    with pytest.raises(headjax.InputError, match=r"one grid is meant: .*relation: "):
        result.grids["logprob"].top(5)
    with pytest.raises(headjax.InputError, match=r"grids are picked by .*; got 'log_prob'"):
        result.grids["log_prob"]
    assert "\n" not in repr(grid)
    assert len(repr(grid)) < 120
    assert len(repr(result)) < 300
    page = grid._repr_html_()
    assert page.count("<td") == grid.scores.size
    assert f"L{head.layer}H{head.head} " in page
    assert len(result._repr_html_()) < 5e4
    hostile = headjax.HeadGrid(np.zeros((1, 1)), "<script>", "r", "c", "static", 1)
    assert "<script>" not in hostile._repr_html_()
    figure = result.grids.select(kind="static").select(relation="copying").plot()
    assert figure._repr_png_().startswith(b"\x89PNG")


def test_tables_for_other_libraries(result, tmp_path):
    pandas = pytest.importorskip("pandas", reason="an extra")
    frame = result.to_dataframe()
    assert isinstance(frame, pandas.DataFrame)
    assert len(frame) == sum(grid.scores.size for grid in result.grids)
    xarray = pytest.importorskip("xarray", reason="an extra")
    array = result.grids["static"].to_xarray()
    assert isinstance(array, xarray.DataArray)
    assert array.dims == ("grid", "layer", "head")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda study: headjax.open("trained", batchsize=3),
            "options of a study are relations, .*; got 'batchs",
        ),
        (
            lambda study: headjax.open("trained", batch_size="3"),
            "'batch_size' must be a whole number; got '3'",
        ),
        (
            lambda study: HeadAblation(replacement="noise"),
            "'replacement' must be one of zero, mean, resample",
        ),
        (
            lambda study: HeadAblation(mean_over="tokens"),
            "'mean_over' has an effect where replacement is 'mean'",
        ),
        (
            lambda study: study.run(HeadAblation(), HeadAblation()),
            "a name of its own .*; twice: 'head_ablation'",
        ),
        (lambda study: study.run("head_ablatio"), "did you mean head_ablation"),
        (lambda study: study.run(HeadAblation(metrics=("logit_diff",))), "needs prompts with distractors"),
        (lambda study: study.run(GradientAttribution(metrics=("accuracy",))), "nothing would be measured"),
        (lambda study: study.run(DynamicScores(), prompts="ioi"), "must be an analysis"),
    ],
)
def test_wrong_asking_is_refused_in_one_line(study, call, message):
    with pytest.raises(headjax.InputError, match=message) as caught:
        call(study)
    assert "\n" not in str(caught.value)


def test_everything_public_is_there():
    for name in headjax.__all__:
        assert getattr(headjax, name) is not None
    for name in headjax.analyses.__all__:
        assert getattr(headjax.analyses, name) is not None
    assert headjax.__version__
    assert CopyScore.kind in headjax.analyses.registry.ANALYSES


def test_prompts_of_a_relation_that_was_skipped_say_so(study, tmp_path):
    skipped = headjax.Relation("rare", [("unheard-of", "word")])
    mine = headjax.open("trained", relations=[skipped, "copying"], checkpoint_dir=tmp_path)
    message = r"field 'prompts' names rare, a relation that was skipped: 0 of 1 pairs are single tokens"
    with pytest.raises(headjax.InputError, match=message):
        mine.run(HeadAblation(prompts="rare"))


def test_a_word_picks_grids_by_whatever_it_names(study, result):
    grids = result.grids
    for word, field in (
        ("accuracy", "metric"),
        ("static", "kind"),
        ("copying", "relation"),
        ("mean", "analysis"),
        (study.display_name, "model"),
    ):
        assert {getattr(grid, field) for grid in grids[word]} == {word}
        assert len(grids[word]) == sum(getattr(grid, field) == word for grid in grids)
    templated = study.run(DynamicScores()).grids
    template = templated.values("template")[1]
    assert {grid.template for grid in templated[template]} == {template}


def test_the_seed_draws_the_corrupted_twins(study):
    asked = study.pairs[0].relation.id
    all_of_them = dataclasses.replace(study.data, n_prompts=None)
    ours, theirs = (
        [
            prompt.distractor
            for prompt in dataclasses.replace(study, data=all_of_them, seed=seed).prompt_set(asked)
        ]
        for seed in (0, 1)
    )
    assert len(ours) == len(theirs) > 12
    assert ours != theirs


def test_named_prompts_of_path_patching_are_its_task(study):
    """All of them have partners; of a relation's own prompts only some may have."""
    asked = study.pairs[0].relation.id
    named = PathPatching(prompts=asked).clean_sets(study)
    assert [which for which, _ in named] == ["task", "corrupted"]
    assert [which for which, _ in PathPatching().clean_sets(study)][:2] == ["with_partners", "corrupted"]
