"""Published circuits as their papers list them, and the marks that users give."""

import json
import time
from pathlib import Path

import pytest

from headjax.axes import Head
from headjax.circuits.published import CIRCUITS, check_fits, find_circuit, parse_heads, read_circuit
from headjax.errors import InputError


@pytest.mark.parametrize(
    ("name", "model", "layers", "heads", "roles"),
    [
        ("ioi", "gpt2", 12, 12, [3, 2, 8, 4, 4, 3, 2]),
        ("circuit_reuse", "gpt2-medium", 24, 16, [6, 1, 3, 1, 1, 3]),
    ],
)
def test_published_circuits_fit_their_model_and_cite_their_source(name, model, layers, heads, roles):
    circuit = CIRCUITS[name]
    assert circuit.model == model
    assert "arXiv" in circuit.citation
    assert [len(marked) for marked in circuit.roles.values()] == roles
    assert len(circuit.heads()) == sum(roles)  # no head has two roles
    check_fits(circuit, layers, heads)


def test_published_heads_as_the_papers_name_them():
    ioi, reuse = CIRCUITS["ioi"], CIRCUITS["circuit_reuse"]
    assert ioi.roles["Name movers"] == (Head(9, 9), Head(9, 6), Head(10, 0))
    assert ioi.roles["Negative name movers"] == (Head(10, 7), Head(11, 10))
    assert reuse.roles["Movers"][-1] == Head(19, 15)
    assert reuse.legend == "'Circuits Components Reused' classifications"


def test_heads_are_read_in_every_spelling():
    expected = (Head(9, 6), Head(9, 10), Head(0, 1))
    assert parse_heads("L9H6, 9.10;(0, 1)") == expected
    assert parse_heads(" l9h6\n9.10\n(0,1) 9.6 ") == expected
    assert find_circuit(["L9H6", "9.10", "0.1"]).heads() == tuple(sorted(expected))
    assert find_circuit("L9H6, 9.10").roles == {"Marked heads": expected[:2]}


def test_a_name_means_a_published_circuit():
    assert find_circuit("ioi") is CIRCUITS["ioi"]


def test_marks_come_from_a_text_file(tmp_path):
    (tmp_path / "capital.txt").write_text("# found by hand\nL9H6, 9.10  # two of them\n(0, 1)\n")
    circuit = find_circuit(str(tmp_path / "capital.txt"))
    assert circuit.roles == {"Marked heads": (Head(9, 6), Head(9, 10), Head(0, 1))}
    assert circuit.legend == "Marked in capital.txt"


def test_marks_come_from_json_with_or_without_roles(tmp_path):
    path = tmp_path / "capital.json"
    path.write_text(json.dumps(["L9H6", [9, 10]]))
    assert read_circuit(path).roles == {"Marked heads": (Head(9, 6), Head(9, 10))}
    path.write_text(json.dumps({"legend": "Found circuit", "Movers": ["9.6"], "Capital heads": "L1H2 L3H4"}))
    circuit = find_circuit(path)
    assert circuit.legend == "Found circuit"
    assert circuit.roles == {"Movers": (Head(9, 6),), "Capital heads": (Head(1, 2), Head(3, 4))}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("[9.10]", r"capital\.json.*\[9, 6\].*9\.1"),  # a number: 9.10 would be head 1
        ('{"Movers": 7}', r"capital\.json.*Movers.*list.*7"),
        ('["L9"]', r"capital\.json.*L9"),
        ("[]", r"capital\.json.*at least one"),
        ("{", r"capital\.json.*JSON"),
        ("[[1, 2, 3]]", r"capital\.json.*\[1, 2, 3\]"),
        ("[[-1, 2]]", r"capital\.json.*\[-1, 2\]"),
        ("[[1, 1" + 999 * "0" + "]]", r"capital\.json.*a head is written .*got \[1, 10"),
        ('["L1H' + 9999 * "9" + '"]', r"capital\.json.*a head is written"),
        ('{"legend": 7, "Movers": ["L1H2"]}', r"capital\.json.*'legend' must be a text.*got 7"),
        ('{"legend": "' + 999 * "x" + '", "a": ["L1H2"]}', r"capital\.json.*1 to 200 characters"),
        ('{"' + 999 * "x" + '": ["L1H2"]}', r"capital\.json.*a role must have at most 200"),
        ('{"Movers": ["L1H2"], "Others": ["1.2"]}', r"L1H2 is given as 'Movers' and 'Others'"),
        ('{"Movers": ["L1H2"], "Movers": ["L1H3"]}', r"names each field once; twice: 'Movers'"),
    ],
)
def test_a_bad_file_of_marks_is_named(tmp_path, content, says):
    (tmp_path / "capital.json").write_text(content)
    with pytest.raises(InputError, match=says):
        find_circuit(tmp_path / "capital.json")


@pytest.mark.parametrize("suffix", ["json", "txt"])
def test_a_file_too_large_to_be_marks_is_refused_at_once(tmp_path, suffix):
    """100,000 heads, the same one 100,000 times, 10 MB, and spaces without end: one short line each."""
    many = [f"L{i // 500}H{i % 500}" for i in range(100_000)]
    for n, heads in enumerate((many, ["L1H2"] * 100_000, ["L1H2"] * 2_000_000, ["L1H2" + " " * 999_990])):
        path = tmp_path / f"{n}.{suffix}"
        path.write_text(json.dumps(heads) if suffix == "json" else "\n".join(heads))
        start = time.monotonic()
        if n == 3:
            assert find_circuit(path).heads() == (Head(1, 2),)
        else:
            with pytest.raises(InputError) as refused:
                find_circuit(path)
            assert len(str(refused.value).replace(str(path), "")) < 400
        assert time.monotonic() - start < 2


def test_unreadable_and_unknown_marks_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"nowhere\.json.*No such file"):
        find_circuit(str(tmp_path / "nowhere.json"))
    with pytest.raises(InputError, match=r"ioi, circuit_reuse.*ioy"):
        find_circuit("ioy")
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"bytes\.txt"):
        find_circuit(Path(tmp_path / "bytes.txt"))


def test_marks_outside_the_model_are_all_named():
    with pytest.raises(InputError, match=r"layers 0 to 10 and heads 0 to 9; got L3H12, L11H0 \("):
        check_fits(find_circuit("L3H4 3.12 11.0"), 11, 10)
    many = find_circuit([f"L{i}H0" for i in range(5000)])
    with pytest.raises(InputError, match=r"got L11H0, .*, L20H0 and 4,979 more \(") as refused:
        check_fits(many, 11, 10)
    assert len(str(refused.value)) < 300
