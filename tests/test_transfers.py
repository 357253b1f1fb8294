"""What passes between host and device within a sweep: nothing that is not asked for, and nothing twice."""

import jax
import pytest

import headjax
from headjax.analyses import (
    AttentionPatterns,
    CircuitDiscovery,
    DynamicScores,
    GradientAttribution,
    HeadAblation,
    LogitAttribution,
    PathPatching,
)
from headjax.engine import mesh
from headjax.study import Study
from tests.helpers.trained_prompts import MODEL


@pytest.fixture(scope="module")
def study() -> Study:
    return headjax.open(MODEL, n_prompts=4)


@pytest.mark.parametrize(
    "analysis",
    [
        *(HeadAblation(replacement="mean"), HeadAblation(positions="all", replacement="resample")),
        *(DynamicScores(), LogitAttribution(), GradientAttribution(), AttentionPatterns()),
        *(PathPatching(prompts="ioi"), CircuitDiscovery(prompts="ioi", n_stages=1)),
    ],
    ids=lambda analysis: type(analysis).__name__,
)
def test_no_transfer_is_implicit(analysis, study: Study):
    expected = study.run(analysis)  # compiles, which may fold constants that lie on the host
    with jax.transfer_guard("disallow"):
        found = study.run(analysis)
    same = zip(found.grids, expected.grids, strict=True)
    assert all(one.scores.tobytes() == other.scores.tobytes() for one, other in same)


def test_a_replacement_is_uploaded_once_for_all_batches_of_variants(monkeypatch):
    study = headjax.open(MODEL, n_prompts=4, variant_batch=3)
    L, H, K = study.config.n_layers, study.config.n_heads, study.config.d_head
    uploaded, put = [], jax.device_put

    def count(values, *arguments, **options):
        uploaded.append(getattr(values, "shape", None))
        return put(values, *arguments, **options)

    monkeypatch.setattr(mesh.jax, "device_put", count)
    study.run(HeadAblation(prompts="ioi", replacement="mean"))
    assert len([shape for shape in uploaded if shape and shape[1:] == (L, H)]) > 1  # gains, of every batch
    assert uploaded.count((L, 1, 1, H, K)) == 1
