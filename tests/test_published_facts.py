"""Published circuits, words and numbers, each stated a second time beside its source.

A table that is only held against itself, or read back by the code that wrote it, hides a wrong digit. Here
stand the facts again, in another form: totals of the released tables, cells of the papers, lists as the
authors' code gives them. Where the released files are at hand, `test_published` compares every cell.
"""

import math
from collections import defaultdict
from decimal import Decimal

import numpy as np
import pytest

from experiments import compare
from experiments.published import citation, load_direct_effects, load_published
from headjax.axes import Head
from headjax.circuits.published import CIRCUITS
from headjax.data.relations import RELATION_IDS, load_relations
from headjax.data.templates import DYNAMIC_TEMPLATES, TASK_TEMPLATES

# --- circuits ----------------------------------------------------------------------------------------------

# Wang et al. 2022, figure 2, and CIRCUIT in easy_transformer/ioi_circuit_extraction.py of the authors' code
# (redwoodresearch/Easy-Transformer), where name movers and their backups are one list: 26 heads.
IOI = {
    "Name movers": {(9, 9), (10, 0), (9, 6)},
    "Negative name movers": {(10, 7), (11, 10)},
    "Backup name movers": {
        *{(10, 10), (10, 6), (10, 2), (10, 1)},
        *{(11, 2), (9, 7), (9, 0), (11, 9)},
    },
    "S-inhibition": {(7, 3), (7, 9), (8, 6), (8, 10)},
    "Induction": {(5, 5), (5, 8), (5, 9), (6, 9)},
    "Duplicate token": {(0, 1), (0, 10), (3, 0)},
    "Previous token": {(2, 2), (4, 11)},
}
# Merullo et al. 2024, figure 1 and section 4: the circuit of indirect object identification in GPT-2 medium.
REUSE = {
    "Movers": {(14, 14), (15, 14), (16, 15), (17, 4), (18, 5), (19, 15)},
    "Negative mover": {(19, 1)},
    "Inhibition": {(12, 3), (13, 4), (13, 13)},
    "Induction": {(9, 3)},
    "Duplicate token": {(6, 4)},
    "Content gatherers": {(11, 6), (11, 7), (12, 15)},
}


@pytest.mark.parametrize(
    ("name", "expected", "n_heads"), [("ioi", IOI, 26), ("circuit_reuse", REUSE, 15)], ids=["ioi", "reuse"]
)
def test_the_heads_of_published_circuits(name: str, expected: dict, n_heads: int):
    circuit = CIRCUITS[name]
    assert {role: set(heads) for role, heads in circuit.roles.items()} == expected
    assert circuit.heads() == tuple(sorted(Head(*head) for heads in expected.values() for head in heads))
    assert len(circuit.heads()) == n_heads


def test_direct_effects_agree_with_the_circuit_they_are_drawn_beside():
    """By another publication's numbers too the circuit's heads write most for the answer, and against it."""
    effects = load_direct_effects()["gpt2"]
    order = [divmod(int(head), 12) for head in np.argsort(-effects.ravel())]
    assert set(order[:3]) == IOI["Name movers"]
    assert set(order[-2:]) == IOI["Negative name movers"]
    assert set(order[3:6]) < IOI["Backup name movers"]


# --- numbers -----------------------------------------------------------------------------------------------

# Sums over the released tables of Elhelo & Geva 2024 (maps_correlations_and_max_scores.csv and
# maps_multi_token.csv): how many rows, and the sums of max_score, r_no_context and r_context, over the
# relations of a model and over the models of a relation; plain, then by suppression.
SUMS = """
gpt2-xl              18   8.94 16.05 12.77   5.14 14.44 10.55
pythia-6.9b          15   9.50 12.84 10.28   6.38 11.84  9.89
pythia-12b           15   8.85 12.50 10.23   5.65 11.13  8.80
llama-3.1-8b         19   7.01 14.90 13.77   5.75 14.67 12.79
llama-3.1-70b        19   9.40 15.53 14.38   7.80 15.40 14.39
adj_to_comparative    5   3.77  4.53  4.08   3.23  4.46  3.96
adj_to_superlative    3   1.80  2.71  2.46   1.45  2.58  2.39
copying               5   1.87  4.32  3.24   1.30  4.41  3.89
country_to_capital    5   4.28  4.64  4.41   2.96  4.30  4.10
country_to_language   5   3.43  4.51  4.09   2.16  4.34  3.92
english_to_french     2   0.34  1.42  1.36   0.15  1.35  1.24
english_to_spanish    2   0.76  1.67  1.64   0.61  1.70  1.64
name_copying          5   4.07  4.66  3.73   4.31  4.90  4.01
noun_to_pronoun       5   2.61  4.16  3.29   2.10  3.59  2.01
object_to_superclass  5   2.56  4.19  4.05   1.44  3.96  3.83
product_to_company    3   1.19  2.11  2.05   0.72  2.13  1.93
verb_to_past_tense    5   3.17  4.54  3.83   2.72  4.55  3.84
word_to_antonym       5   2.61  4.64  4.34   1.31  4.06  3.42
word_to_compound      3   0.77  2.43  2.09   0.62  2.50  2.16
word_to_first_letter  5   3.58  4.40  3.51   1.63  3.71  2.20
word_to_homophone     5   0.38  3.55  2.74   0.54  3.00  2.16
word_to_last_letter   5   0.91  2.74  1.55   1.07  3.00  1.58
word_to_synonym       5   1.36  4.41  3.58   0.67  4.08  3.37
work_to_location      5   1.30  3.41  3.08   0.96  3.27  2.86
year_to_following     3   2.94  2.78  2.31   0.77  1.59  1.91
"""
MULTI_TOKEN_SUMS = """
gpt2-xl              11   9.54  7.43   8.91  6.13
pythia-6.9b          11   9.38  7.17   7.95  6.25
pythia-12b           11   8.83  6.73   7.38  4.82
copying               3   2.60  1.40   2.71  2.41
country_to_capital    3   2.83  2.62   2.53  1.97
country_to_language   3   2.69  2.46   2.42  1.71
name_copying          3   2.61  1.38   2.93  2.05
noun_to_pronoun       3   2.65  2.05   2.59  1.33
object_to_superclass  3   2.68  2.50   2.49  2.39
word_to_first_letter  3   2.41  2.02   1.48  0.57
word_to_last_letter   3   1.81  0.83   1.45  0.51
word_to_synonym       3   2.66  1.96   2.43  1.58
work_to_location      3   2.28  2.21   2.20  1.90
year_to_following     3   2.53  1.90   1.01  0.78
"""
# The same of maps_causal.csv: rows; heads_removed, base, relation_removed; random_removed and its deviation;
# n_controls; control_base and control_removed with theirs.
CAUSAL_SUMS = """
gpt2-xl              10   934 6.52 2.04  6.11 0.39  10  4.00 0.13  3.43 0.16
pythia-6.9b          10   958 8.08 0.95  8.15 0.38  10  4.74 0.16  4.23 0.39
pythia-12b           10  1165 8.59 2.39  8.29 0.52  27  8.17 0.38  7.45 0.84
llama-3.1-8b         11   736 9.75 5.19  9.64 0.29  36  9.95 0.54  9.52 0.85
adj_to_comparative    3   327 2.41 1.07  2.37 0.23   7  2.56 0.09  2.10 0.25
copying               4   600 3.99 1.44  3.98 0.01   6  1.90 0.09  1.76 0.15
country_to_capital    4   183 3.71 0.22  3.66 0.14   9  3.52 0.13  3.58 0.12
country_to_language   4   346 3.91 0.73  3.86 0.05   7  1.87 0.03  1.87 0.03
english_to_spanish    1    54 0.94 0.97  0.94 0.00   3  0.95 0.04  0.96 0.03
name_copying          4   496 3.76 0.39  3.56 0.10   5  2.55 0.07  2.42 0.13
noun_to_pronoun       4   269 3.25 2.34  3.26 0.16  17  3.29 0.36  3.09 0.49
object_to_superclass  4   275 3.01 1.74  2.94 0.09   5  3.18 0.02  2.66 0.09
product_to_company    2    85 0.94 0.59  0.95 0.01   2  1.10 0.00  1.10 0.00
verb_to_past_tense    4   563 1.75 0.51  1.57 0.53   3  0.74 0.18  0.72 0.14
word_to_first_letter  4   429 3.09 0.57  2.93 0.12  13  2.90 0.10  2.44 0.75
year_to_following     3   166 2.18 0.00  2.17 0.14   6  2.30 0.10  1.93 0.06
"""
KINDS = ("plain", "suppression")
CAUSAL_MEASURES = (
    *("heads_removed", "base", "relation_removed", "random_removed", "random_removed_std", "n_controls"),
    *("control_base", "control_base_std", "control_removed", "control_removed_std"),
)
CORRELATIONS = ("r_no_context", "r_context")


def column_sums(table: str) -> tuple[dict, dict]:
    """(model or relation, kind, measure) -> sum and (model or relation, kind) -> number of rows, exactly."""
    sums, rows = defaultdict(Decimal), defaultdict(set)
    for number in load_published(table):
        for name in (number.model, number.relation):
            sums[name, number.kind, number.measure] += Decimal(repr(number.value))
            rows[name, number.kind].add((number.model, number.relation))
    return sums, {key: len(found) for key, found in rows.items()}


@pytest.mark.parametrize(
    ("table", "text", "measures", "kinds", "columns"),
    [
        ("maps_scores", SUMS, ("max_score",), KINDS, (0, 3)),
        ("maps_correlations", SUMS, CORRELATIONS, KINDS, (1, 2, 4, 5)),
        ("maps_multi_token", MULTI_TOKEN_SUMS, CORRELATIONS, KINDS, (0, 1, 2, 3)),
        ("maps_causal", CAUSAL_SUMS, CAUSAL_MEASURES, ("plain",), range(10)),
    ],
    ids=["maps_scores", "maps_correlations", "maps_multi_token", "maps_causal"],
)
def test_tables_add_up_as_the_released_ones(table, text, measures, kinds, columns):
    sums, rows = column_sums(table)
    named = [(kind, measure) for kind in kinds for measure in measures]
    for line in text.split("\n")[1:-1]:
        name, n_rows, *expected = line.split()
        ours = {key: sums.pop((name, *key)) for key in named}
        expected = [Decimal(expected[column]) for column in columns]
        assert ours == dict(zip(named, expected, strict=True)), name
        assert {rows.pop((name, kind)) for kind in kinds} == {int(n_rows)}, name
    assert not sums, "a measure, a model or a relation that was not published"
    assert not rows


def test_copy_scores_are_of_the_papers_model_and_names():
    """Wang et al. 2022, section 3.1 and appendix; the four values are in `test_published`."""
    numbers = load_published("ioi_copy_scores")
    assert {number[:2] for number in numbers} == {("gpt2", "ioi_names")}
    assert len(numbers) == 4


# Of callummcdougall/SERI-MATS-2023-Streamlit-pages, rounded to three digits: layers and heads; the sum of
# all effects, weighted by the layer's and by the head's number; the sum of their three digits as integers.
EFFECT_SUMS = """
gpt2         12 12  7.462995798  67.28947488  31.32924947   19285
gpt2-medium  24 16  6.940644936 128.60605797  59.07538198   43027
gpt2-large   36 20  6.544312937 172.12886581  71.11754446   72062
gpt2-xl      48 25  6.097574488 207.30979122  70.16668580   78661
pythia-70m    6  8  1.590319372   5.71522385   6.82303098    5387
pythia-160m  12 12  6.654454822  55.47949393  52.19242349   36570
pythia-410m  24 16  6.892721096 122.41934714  54.07244761   42869
pythia-1.4b  24 16  7.411482852 113.20521975  54.38229169   30033
pythia-2.8b  32 32  7.225653950 139.06444686 108.66684799   55294
pythia-6.9b  32 32  6.471909997 135.60280924 115.77614865  115779
"""


def test_direct_effects_add_up_as_the_released_ones():
    effects = load_direct_effects()
    for line in EFFECT_SUMS.split("\n")[1:-1]:
        model, layers, heads, *sums, digits = line.split()
        grid = effects.pop(model)
        assert grid.shape == (int(layers), int(heads)), model
        weights = (1, np.arange(len(grid))[:, None], np.arange(grid.shape[1]))
        ours = [math.fsum((weight * grid).ravel()) for weight in weights]
        np.testing.assert_allclose(ours, np.array(sums, float), rtol=0, atol=1e-8, err_msg=model)
        assert sum(int(f"{effect:.2e}"[:-4].replace(".", "")) for effect in grid.ravel()) == int(digits), (
            model
        )
    assert not effects


def test_every_table_cites_its_paper():
    for name in ("scores", "correlations", "multi_token", "causal"):
        assert citation(f"maps_{name}") == (
            "A. Elhelo, M. Geva. Inferring Functionality of Attention Heads from their Parameters. 2024. "
            "arXiv:2412.11965"
        )
    assert citation("ioi_copy_scores").endswith("Interpretability in the Wild. ICLR 2023. arXiv:2211.00593")
    assert "arXiv:2310.04625; numbers of github.com/callummcdougall/" in citation("ioi_direct_effects")
    assert CIRCUITS["ioi"].citation.endswith("ICLR 2023. arXiv:2211.00593")
    assert CIRCUITS["circuit_reuse"].citation.endswith("ICLR 2024. arXiv:2310.08744")
    assert {circuit.model for circuit in CIRCUITS.values()} == {"gpt2", "gpt2-medium"}


# How near a number must come to agree, as the configs of papers announce it: with the publication's own word
# lists, and with ours.
TOLERANCES = {
    "maps_scores": {"max_score": (0.02, 0.2)},
    "maps_correlations": {"r_no_context": (0.03, 0.15), "r_context": (0.03, 0.15)},
    "maps_multi_token": {"r_no_context": (0.15, 0.2), "r_context": (0.15, 0.2)},
    "maps_causal": dict.fromkeys(
        ("base", "relation_removed", "random_removed", "control_base", "control_removed"), (0.15, 0.25)
    ),
    "ioi_copy_scores": dict.fromkeys(("least_circuit_head", "mean_circuit_head", "mean_head"), (0.05, 0.05)),
    "ioi_direct_effects": {"rank_correlation": (0.3, 0.3)},
}


def test_a_run_agrees_within_what_the_configs_announce():
    assert compare.TOLERANCES == TOLERANCES


# --- words -------------------------------------------------------------------------------------------------

# Elhelo & Geva 2024, section 4.1: the four templates of dynamic scores.
PUBLISHED_TEMPLATES = {
    "This is a document about <X>",
    "No <X> means no",
    "The story of <X> contains",
    "When I think about <X> I think about",
}


def test_the_templates_of_dynamic_scores_are_the_published_ones():
    assert set(DYNAMIC_TEMPLATES) == PUBLISHED_TEMPLATES
    assert len(DYNAMIC_TEMPLATES) == 4


@pytest.mark.parametrize("relation", RELATION_IDS)
def test_the_examples_of_a_task_template_are_pairs_of_its_relation(relation: str):
    """A template asks for this relation and no other: it shows two pairs of it, in order, before <X>."""
    template = TASK_TEMPLATES[relation]
    examples = EXAMPLES[relation]
    assert template.count("<X>") == 1
    assert "<X>" in template[len(template) // 2 :] or relation == "country_to_capital"
    at = 0
    for source, target in examples:
        at = template.index(source, at)
        at = template.index(target, at + len(source))
    assert at < template.index("<X>")
    others = {other: pairs for other, pairs in EXAMPLES.items() if other != relation}
    assert examples not in others.values() or not examples


EXAMPLES = {
    "copying": [("moon", "moon"), ("hand", "hand")],
    "name_copying": [("Peter", "Peter"), ("Laura", "Laura")],
    "word_to_first_letter": [("moon", "m,"), ("hand", "h,")],
    "word_to_last_letter": [("moon", "n,"), ("hand", "d,")],
    "year_to_following": [("1912", "1913"), ("1984", "1985")],
    "country_to_capital": [],
    "country_to_language": [("Chile", "Spanish"), ("Germany", "German")],
    "object_to_superclass": [("dog", "animal"), ("rose", "flower")],
    "product_to_company": [("Windows", "Microsoft"), ("Walkman", "Sony")],
    "work_to_location": [("nurse", "hospital"), ("teacher", "school")],
    "adj_to_comparative": [("tall", "taller"), ("cold", "colder")],
    "adj_to_superlative": [("tall", "tallest"), ("cold", "coldest")],
    "word_to_antonym": [("hot", "cold"), ("up", "down")],
    "noun_to_pronoun": [("mother", "she"), ("boys", "they")],
    "verb_to_past_tense": [("walk", "walked"), ("sing", "sang")],
    "word_to_compound": [("sun", "sunlight"), ("rain", "rainbow")],
    "word_to_homophone": [("sea", "see"), ("knight", "night")],
    "word_to_synonym": [("big", "large"), ("quick", "fast")],
    "english_to_french": [("house", "maison"), ("water", "eau")],
    "english_to_spanish": [("house", "casa"), ("water", "agua")],
}


# Our own word lists: category, pairs, and the sum of the characters' code points of all sources and of all
# targets, by which a word that was lost, misspelt or put on the other side is noticed.
RELATION_SUMS = """
copying              Algorithmic  270 142770 142770
name_copying         Algorithmic  393 237864 237864
word_to_first_letter Algorithmic  294 155192  31804
word_to_last_letter  Algorithmic  294 155192  31936
year_to_following    Algorithmic  230  48085  48081
country_to_capital   Knowledge    157 111486 115597
country_to_language  Knowledge    126  90253  87416
object_to_superclass Knowledge    220 130672 139666
product_to_company   Knowledge    197 125342 126209
work_to_location     Knowledge    116  91286  80698
adj_to_comparative   Linguistic   154  77085 107619
adj_to_superlative   Linguistic   135  66976 108346
word_to_antonym      Linguistic   488 307384 307992
noun_to_pronoun      Linguistic   301 183778  87878
verb_to_past_tense   Linguistic   224 115881 139754
word_to_compound     Linguistic   333 154937 306909
word_to_homophone    Linguistic   518 265705 267734
word_to_synonym      Linguistic   653 407889 404219
english_to_french    Translation  451 231138 260998
english_to_spanish   Translation  482 254183 281759
"""


def test_the_words_of_relations_are_all_there_and_on_their_side():
    expected = [line.split() for line in RELATION_SUMS.split("\n")[1:-1]]
    for relation, (name, category, *sums) in zip(load_relations(), expected, strict=True):
        sides = [sum(map(ord, "".join(words))) for words in zip(*relation.pairs, strict=True)]
        assert (relation.id, relation.category) == (name, category)
        assert [len(relation.pairs), *sides] == [int(value) for value in sums], name
