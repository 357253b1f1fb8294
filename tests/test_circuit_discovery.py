"""Circuit discovery on effects that are made up, and what two circuits share."""

import math

import numpy as np
import pytest

from headjax.analyses.path_patching import Receiver
from headjax.axes import Head
from headjax.circuits.discovery import discover_circuit, found_circuit, overlap
from headjax.circuits.published import circuit_text, read_circuit

SHAPE = (5, 7)


class Model:
    """Effects by what they go into, of three prompts, with an error; remembers what it was asked."""

    def __init__(self, effects: dict[str, dict[str, float]], stderr: float = 0.05):
        self.effects, self.asked = effects, []
        self.spread = stderr * 3**0.5 * np.array([-1, 0, 1])

    def __call__(self, receivers: tuple[Receiver, ...]) -> np.ndarray:
        self.asked.append(" ".join(map(str, receivers)))
        grid = np.zeros((*SHAPE, 3))
        for head, effect in self.effects.get(self.asked[-1], {}).items():
            grid[Head.parse(head)] = effect + self.spread
        return grid


STAGES = {
    "": {"L4H1": -40.0, "L3H2": 15.0, "L2H0": -2.0, "L1H1": 1.9},
    "L4H1.q L3H2.q L2H0.q": {"L2H5": -20.0, "L2H6": -3.0, "L4H1": 50.0},
    "L4H1.k L3H2.k L2H0.k": {"L2H6": 4.0},
    "L4H1.v L3H2.v L2H0.v": {"L2H6": -3.5, "L0H0": 2.5},
    "L2H5.v L2H6.v": {"L1H3": -1.5, "L0H4": -0.9, "L2H5": 70.0},
}


def test_stages_go_back_from_the_logits():
    """Three heads a stage, by the largest effect through any input; one that is known takes no place."""
    model = Model(STAGES)
    found = discover_circuit(model, n_stages=3, share=0.08)
    assert [(str(one.head), one.role, one.effect) for one in found.heads] == [
        ("L4H1", "Stage 1, direct: raises logit difference", -40.0),
        ("L3H2", "Stage 1, direct: lowers logit difference", 15.0),
        ("L2H0", "Stage 1, direct: raises logit difference", -2.0),
        ("L2H5", "Stage 2, into queries: raises logit difference", -20.0),
        ("L2H6", "Stage 2, into keys: lowers logit difference", 4.0),
        ("L0H0", "Stage 2, into values: lowers logit difference", 2.5),
        ("L1H3", "Stage 3, into values: raises logit difference", -1.5),
    ]
    assert model.asked == [*list(STAGES)[:4], "L2H5.q L2H6.q", "L2H5.k L2H6.k", "L2H5.v L2H6.v"]
    assert all(one.stderr == pytest.approx(0.05) and one.n_prompts == 3 for one in found.heads)
    assert list(found.effects) == [
        (1, "direct"),
        *((stage, name) for stage in (2, 3) for name in ("query", "key", "value")),
    ]
    assert found.effects[1, "direct"].shape == (*SHAPE, 3)


def test_small_effects_are_no_circuit():
    for effects in ({}, {"": {"L1H1": 0.99, "L2H2": -0.5}}):
        found = discover_circuit(Model(effects), n_stages=3, share=0.5)
        assert found.heads == ()
        assert list(found.effects) == [(1, "direct")]
    assert discover_circuit(Model({}), share=1.0, min_effect=0.0).heads == ()


def test_an_effect_counts_if_it_is_two_errors_beyond_the_least():
    effects = {"": {"L4H1": -40.0, "L3H2": 5.0, "L2H0": -2.9}}
    for stderr, expected in ((0.9, ("L4H1", "L3H2", "L2H0")), (1.0, ("L4H1", "L3H2")), (2.1, ("L4H1",))):
        found = discover_circuit(Model(effects, stderr), n_stages=1, share=0.5)
        assert tuple(str(one.head) for one in found.heads) == expected
    assert discover_circuit(Model(effects, 1.0), n_stages=1, share=0.5, min_effect=4.0).heads[1:] == ()
    # The stronger of two inputs is too uncertain: the head is taken through the other.
    uncertain = {"L4H1.q": {"L2H5": (-9.0, 5.0)}, "L4H1.k": {"L2H5": (3.0, 0.1)}, "": {"L4H1": (-40.0, 0.1)}}

    def measure(receivers):
        grid = np.zeros((*SHAPE, 3))
        for head, (effect, stderr) in uncertain.get(" ".join(map(str, receivers)), {}).items():
            grid[Head.parse(head)] = effect + stderr * 3**0.5 * np.array([-1, 0, 1])
        return grid

    (_, second) = discover_circuit(measure, share=0.05).heads
    assert (str(second.head), second.input, second.effect) == ("L2H5", "key", 3.0)


def test_a_single_prompt_finds_nothing():
    """Nobody knows the error of its effects."""
    model = Model({"": {"L4H1": -40.0}})
    assert discover_circuit(lambda receivers: model(receivers)[..., :1]).heads == ()


def test_nobody_sends_to_the_first_layer():
    model = Model({"": {"L0H3": -40.0, "L2H1": -30.0}})
    discover_circuit(model, share=0.05)
    assert model.asked == ["", "L2H1.q", "L2H1.k", "L2H1.v"]
    model = Model({"": {"L0H3": -40.0}})
    discover_circuit(model, share=0.05)
    assert model.asked == [""]


def test_a_found_circuit_is_marks_and_a_file_of_marks(tmp_path):
    heads = discover_circuit(Model(STAGES), n_stages=3, share=0.08).heads
    circuit = found_circuit(heads, "Some model", "a_task")
    assert circuit.roles == {
        "Stage 1, direct: raises logit difference": (Head(4, 1), Head(2, 0)),
        "Stage 1, direct: lowers logit difference": (Head(3, 2),),
        "Stage 2, into queries: raises logit difference": (Head(2, 5),),
        "Stage 2, into keys: lowers logit difference": (Head(2, 6),),
        "Stage 2, into values: lowers logit difference": (Head(0, 0),),
        "Stage 3, into values: raises logit difference": (Head(1, 3),),
    }
    (tmp_path / "found.json").write_text(circuit_text(circuit))
    read = read_circuit(tmp_path / "found.json")
    assert (read.roles, read.legend) == (circuit.roles, "Found by path patching (a task)")


def test_shared_heads_and_how_likely_they_are_by_chance():
    first, second = (
        [Head.parse(label) for label in labels.split()] for labels in ("1.1 0.2 3.0", "3.0 0.2 2.2 4.4")
    )
    both = overlap(first, second, 35)
    assert both.shared == (Head(0, 2), Head(3, 0))
    assert both.only_first == (Head(1, 1),)
    assert both.only_second == (Head(2, 2), Head(4, 4))
    assert both.jaccard == pytest.approx(2 / 5)
    # At least 2 of the 4 among 3 drawn of 35.
    ways = math.comb(4, 2) * 31 + math.comb(4, 3)
    assert both.p_value == pytest.approx(ways / math.comb(35, 3))
    assert overlap(first, second[2:], 35).p_value == 1
    assert math.isnan(overlap([], [], 35).jaccard)


def test_a_chance_too_small_for_a_number_is_not_0():
    heads = [Head(*place) for place in np.ndindex(40, 60)]
    assert overlap(heads[:900], heads[:900], len(heads)).p_value == 1e-300
