"""Damaged files of every kind are refused in one line or read right. More cases: tests/helpers/fuzz.py."""

from pathlib import Path

import pytest

from tests.helpers.fuzz import REFUSED, RIGHT, TARGETS, run_cases

CASES = {"finished_run": 30}  # each of which builds figures


@pytest.mark.parametrize("name", TARGETS)
def test_damaged_input_is_refused_in_one_line_or_read_right(name: str, tmp_path: Path):
    cases = list(run_cases(name, CASES.get(name, 100), seed=0, directory=tmp_path))
    faults = [case for case in cases if case.outcome not in (REFUSED, RIGHT)]
    assert not faults, "\n".join(map(str, faults[:3]))
    # It is damage that is looked at, and not only such as any reader would notice.
    assert sum(case.outcome == REFUSED for case in cases) > len(cases) / 4
