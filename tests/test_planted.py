"""The planted checkpoint: its files, its static scores by a slow oracle, its behaviour in torch."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file
from transformers import AutoTokenizer, GPT2LMHeadModel

from experiments import planted
from experiments.planted import words as planted_words
from headjax.data.prompts import load_tokenizer, select_pairs, word_tokens
from headjax.data.relations import CATEGORIES, RELATION_IDS, load_relations
from headjax.data.templates import DYNAMIC_TEMPLATES, SLOT, TASK_TEMPLATES
from headjax.errors import InputError
from headjax.grid import HeadGrid
from tests.helpers.grids import spelled
from tests.helpers.torch_or_skip import torch

LAYERS, HEADS = 12, 12
KINDS = ("static", "static_suppression")


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return planted.build(tmp_path_factory.mktemp("planted") / "model")


@pytest.fixture(scope="module")
def relations(directory):
    found = {relation.id: relation for relation in load_relations(directory=directory / "relations")}
    return [found[id] for id in RELATION_IDS]


@pytest.fixture(scope="module")
def record(directory):
    return planted.read_record(directory)["planted"]


@pytest.fixture(scope="module")
def tokenizer(directory):
    return load_tokenizer(directory)


@pytest.fixture(scope="module")
def model(directory):
    pytest.importorskip("torch", reason="needs torch, whose models are the oracle")
    return GPT2LMHeadModel.from_pretrained(directory).eval()


@pytest.fixture(scope="module")
def scores(model, relations, tokenizer):
    """[relation, kind, layer, head] by the definition: ranks among all logits, the MLP as torch runs it."""
    wte, K = model.transformer.wte.weight, model.config.n_embd // HEADS
    block = model.transformer.h[0]
    shares = np.zeros((len(relations), 2, LAYERS, HEADS))
    tokens = [torch.tensor([tokenizer.encode(s + " " + t) for s, t in r.pairs]) for r in relations]
    sources, targets = torch.cat(tokens).T
    of = np.repeat(np.arange(len(tokens)), [len(pairs) for pairs in tokens])
    with torch.no_grad():
        embedded = wte[sources]
        mapped = block.mlp(block.ln_2(embedded))
        for layer, head in np.ndindex(LAYERS, HEADS):
            attention = model.transformer.h[layer].attn
            W_V = attention.c_attn.weight[:, 2 * HEADS * K :][:, head * K : (head + 1) * K]
            W_O = attention.c_proj.weight[head * K : (head + 1) * K]
            logits = ((mapped if layer else embedded) @ W_V) @ (W_O @ wte.T)
            own = logits.gather(1, targets[:, None])
            for kind, beaten in enumerate(((logits > own).sum(1), (logits < own).sum(1))):
                for r, relation in enumerate(relations):
                    k = 1 if relation.id in ("copying", "name_copying") else 10
                    shares[r, kind, layer, head] = (beaten.numpy()[of == r] < k).mean()
    return shares


def make_grids(scores, relations):
    return [
        HeadGrid(
            *(scores[r, k], "Planted", relation.id, relation.category),
            **spelled(kind),
            n_pairs=len(relation.pairs),
        )
        for r, relation in enumerate(relations)
        for k, kind in enumerate(KINDS)
    ]


def test_files(directory, record):
    names = {path.name for path in directory.iterdir()}
    assert names == {
        *("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"),
        *("relations", "planted.json"),
    }
    assert (directory / "model.safetensors").stat().st_size < 100e6
    tensors = load_file(directory / "model.safetensors")
    assert all(tensor.dtype == np.float32 and np.isfinite(tensor).all() for tensor in tensors.values())
    assert all(set(entry) == {"layer", "head", "relation", "kind"} for entry in record)
    assert not list(directory.parent.glob(".*"))  # nothing temporary is left


def test_torch_takes_every_tensor(directory):
    pytest.importorskip("torch", reason="needs torch, whose models are the oracle")
    _, report = GPT2LMHeadModel.from_pretrained(directory, output_loading_info=True)
    assert not any(report.values())


def test_every_word_is_one_token(directory, tokenizer, relations):
    for relation in relations:
        for pair in relation.pairs:
            assert all(len(word_tokens(tokenizer, word)) == 1 for word in pair), pair
    templates = " ".join((*DYNAMIC_TEMPLATES, *TASK_TEMPLATES.values())).replace(SLOT, "")
    assert tokenizer.unk_token_id not in tokenizer(templates)["input_ids"]
    vocab_size = json.loads((directory / "config.json").read_text())["vocab_size"]
    assert len(tokenizer) == vocab_size
    kept, skipped = select_pairs(tokenizer, relations, vocab_size)
    assert len(kept) == 20
    assert not skipped
    assert AutoTokenizer.from_pretrained(directory).bos_token_id == tokenizer.bos_token_id == 0


def test_relations_are_parts_of_the_built_in_ones_and_share_no_word(relations):
    used = set()
    for built_in, relation in zip(load_relations(), relations, strict=True):
        assert (built_in.id, built_in.name, built_in.category) == (
            relation.id,
            relation.name,
            relation.category,
        )
        assert set(relation.pairs) <= set(built_in.pairs)
        assert len(relation.pairs) >= 30
        words = {word for pair in relation.pairs for word in pair}
        assert not words & used
        used |= words
        assert not {source for source, _ in relation.pairs} & set(planted_words.template_words())


def test_the_plan_covers_relations_layers_and_the_whole_legend(record, relations):
    category = {relation.id: relation.category for relation in relations}
    assert {entry["relation"] for entry in record if entry["kind"] == "static"} == set(category)
    assert 0 in {entry["layer"] for entry in record}
    heads = {}
    for entry in record:
        heads.setdefault((entry["layer"], entry["head"]), []).append((entry["relation"], entry["kind"]))
    of_heads = [{category[relation] for relation, _ in carried} for carried in heads.values()]
    assert {len(categories) for categories in of_heads} == {1, 2, 3, 4}
    assert {c for categories in of_heads if len(categories) == 1 for c in categories} == set(CATEGORIES)
    assert len(heads) < LAYERS * HEADS
    assert any({kind for _, kind in carried} == set(KINDS) for carried in heads.values())
    assert any({kind for _, kind in carried} == {"static_suppression"} for carried in heads.values())


def test_planted_heads_score_high_and_no_other_head_does(scores, record, relations):
    index = {relation.id: r for r, relation in enumerate(relations)}
    is_planted = np.zeros(scores.shape, bool)
    for entry in record:
        is_planted[index[entry["relation"]], KINDS.index(entry["kind"]), entry["layer"], entry["head"]] = True
    assert is_planted.sum() == len(record)
    assert scores[is_planted].min() > 0.5
    assert np.median(scores[is_planted]) > 0.95
    assert scores[~is_planted].max() < 0.13


def test_compare(directory, scores, relations, record):
    text, ok = planted.compare(make_grids(scores, relations), directory, 0.15)
    assert ok, text
    assert f"all {len(record)} planted" in text.splitlines()[-1]

    entry = record[0]
    r, k = RELATION_IDS.index(entry["relation"]), KINDS.index(entry["kind"])
    place = entry["layer"], entry["head"]
    changed = scores.copy()
    changed[r, k][place] = 0.15  # at the threshold is not above it
    text, ok = planted.compare(make_grids(changed, relations), directory, 0.15)
    assert not ok
    label = f"{entry['relation']} ({entry['kind']}) L{place[0]}H{place[1]}"
    assert f"{label} planted, 0.15" in text

    text, ok = planted.compare(make_grids(scores, relations)[2:], directory, 0.15)
    assert not ok
    assert "copying (static_suppression) " in text
    assert "planted, not scored" in text

    free = next(p for p in np.ndindex(LAYERS, HEADS) if scores[r, k][p] < 0.1)
    changed = scores.copy()
    changed[r, k][free] = 0.2
    text, ok = planted.compare(make_grids(changed, relations), directory, 0.15)
    assert not ok
    assert f"L{free[0]}H{free[1]} not planted, 0.20" in text


class Prompts:
    """Task prompts of all relations, grouped by length; accuracy with any heads cut out."""

    def __init__(self, model, tokenizer, relations, per_relation, templates, bos):
        self.model, self.n_relations = model, len(relations)
        groups = {}
        for r, relation in enumerate(relations):
            for source, target in relation.pairs[-per_relation:]:
                text = templates[relation.id].replace(SLOT, source)
                ids = [tokenizer.bos_token_id] * bos + tokenizer.encode(text)
                groups.setdefault(len(ids), []).append((ids, r, tokenizer.encode(target)[0]))
        self.groups = [tuple(map(torch.tensor, zip(*group, strict=True))) for group in groups.values()]

    @torch.no_grad()
    def accuracy(self, ablated=frozenset()):
        """Of each relation. A head is cut out before the output projection."""
        K = self.model.config.n_embd // HEADS

        def cut(layer):
            def hook(_, inputs):
                z = inputs[0].clone()
                for head in (h for (at, h) in ablated if at == layer):
                    z[..., head * K : (head + 1) * K] = 0
                return (z,)

            return hook

        blocks = self.model.transformer.h
        hooks = [
            block.attn.c_proj.register_forward_pre_hook(cut(layer)) for layer, block in enumerate(blocks)
        ]
        right, counts = np.zeros(self.n_relations), np.zeros(self.n_relations)
        for ids, relation, answers in self.groups:
            best = self.model(ids, logits_to_keep=1).logits[:, -1].argmax(-1)
            np.add.at(right, relation.numpy(), (best == answers).numpy())
            np.add.at(counts, relation.numpy(), 1)
        for hook in hooks:
            hook.remove()
        return right / counts


@pytest.mark.parametrize("bos", [False, True])
def test_it_answers_task_prompts(model, tokenizer, relations, bos):
    prompts = Prompts(model, tokenizer, relations, 3, TASK_TEMPLATES, bos)
    assert prompts.accuracy().min() == 1


def test_the_last_source_counts_in_few_shot_prompts(model, tokenizer, relations):
    templates = {
        relation.id: ", ".join(" ".join(pair) for pair in relation.pairs[:3]) + f", {SLOT}"
        for relation in relations
    }
    assert Prompts(model, tokenizer, relations, 3, templates, True).accuracy().min() == 1


def test_ablation_removes_the_relation_and_nothing_else(model, tokenizer, relations, record):
    short = dict.fromkeys(RELATION_IDS, "The capital of <X> is")
    prompts = Prompts(model, tokenizer, relations, 2, short, False)
    assert prompts.accuracy().min() == 1
    remaining = []
    for r, relation in enumerate(relations):
        carriers = {
            (entry["layer"], entry["head"])
            for entry in record
            if (entry["relation"], entry["kind"]) == (relation.id, "static")
        }
        accuracy = prompts.accuracy(carriers)
        remaining.append(accuracy[r])
        assert np.delete(accuracy, r).min() == 1, relation.id
    assert np.mean(remaining) < 0.03  # one of the 40 answers may come up by chance
    carriers = {(entry["layer"], entry["head"]) for entry in record}
    others = [place for place in np.ndindex(LAYERS, HEADS) if place not in carriers]
    assert prompts.accuracy(set(others)).min() == 1


def test_built_again_only_where_needed(directory, monkeypatch, tmp_path):
    before = (directory / "model.safetensors").stat().st_mtime_ns
    assert planted.build(directory) == directory
    assert (directory / "model.safetensors").stat().st_mtime_ns == before

    monkeypatch.setattr(planted, "draw_tensors", lambda *_: {"wte.weight": np.zeros(3, np.float32)})
    older = tmp_path / "older"
    older.mkdir()
    (older / planted.RECORD).write_text(json.dumps({"fingerprint": "another"}))
    (older / "stale").write_text("")
    planted.build(older)
    assert (older / "model.safetensors").exists()
    assert not (older / "stale").exists()

    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="directory of its own"):
        planted.build(other)
    assert [path.name for path in other.iterdir()] == ["thesis.txt"]

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(planted, "save_file", full)
    with pytest.raises(InputError, match="No space left"):
        planted.build(tmp_path / "full")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["older", "other"]
