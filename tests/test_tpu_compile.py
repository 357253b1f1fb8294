"""libtpu's own compiler takes every TPU kernel: register layouts, on-chip memory and all, but no numbers.

Runs where libtpu can be imported (`pip install libtpu`); no TPU is needed.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.compile_for_tpu import ENVIRONMENT, PROGRAMS

ROOT = Path(__file__).resolve().parents[1]
CHIPS = (("v5e:2x2", "float32"), ("v5e:2x2", "bfloat16"), ("v5p:2x2x1", "float32"))

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("libtpu") is None,
        reason="needs libtpu, which compiles for TPUs on any machine: pip install libtpu",
    ),
]


@pytest.fixture(scope="module", params=CHIPS, ids=" ".join)
def compiled(request: pytest.FixtureRequest) -> dict[str, str | None]:
    """Program -> what the compiler says against it, for one chip."""
    process = subprocess.run(
        [sys.executable, "-m", "tests.helpers.compile_for_tpu", *request.param],
        env=os.environ | ENVIRONMENT,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=900,
    )
    if "topology" in process.stderr and not process.stdout:
        pytest.skip(f"libtpu describes no {request.param[0]} here: {process.stderr.splitlines()[-1]}")
    assert process.returncode == 0, process.stderr
    lines = [json.loads(line) for line in process.stdout.splitlines() if line.startswith("{")]
    return {line["program"]: line["error"] for line in lines}


def test_every_kernel_compiles_at_real_models_shapes(compiled: dict[str, str | None]):
    assert set(compiled) == set(PROGRAMS)
    refused = {name: error for name, error in compiled.items() if error is not None}
    assert not refused, "\n".join(f"{name}: {error[:2000]}" for name, error in refused.items())
