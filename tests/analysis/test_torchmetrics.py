"""CKAMetric: what torchmetrics does with its states gives what one pass gives."""

from __future__ import annotations

import sys

import pytest
import torch

import pyguide
from pyguide.analysis import StreamingCKA

torchmetrics = pytest.importorskip("torchmetrics")


@pytest.fixture
def batches(related_layers):
    x, y, z = related_layers(90, [7, 30, 5])
    parts = zip(*(t.split([40, 30, 20]) for t in (x, y, z)), strict=True)
    return [([a, b], [c]) for a, b, c in parts]


def _metric(*batches, **options):
    from pyguide.analysis.torchmetrics import CKAMetric

    metric = CKAMetric(rows=2, columns=1, **options)
    for batch in batches:
        metric.update(*batch)
    return metric


def _one_pass(batches, debiased=True):
    streaming = StreamingCKA(debiased=debiased)
    for batch in batches:
        streaming.update(*batch)
    return streaming.compute()


def _is_close(values, expected) -> bool:
    return torch.allclose(values, expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("debiased", [True, False])
def test_batches_are_summed(batches, debiased):
    metric = _metric(*batches, debiased=debiased)
    assert _is_close(metric.compute(), _one_pass(batches, debiased))
    metric.reset()
    metric.update(*batches[0])
    assert _is_close(metric.compute(), _one_pass(batches[:1], debiased))


def test_forward_gives_the_value_of_the_batch(batches):
    metric = _metric()
    for xs, ys in batches:
        expected = pyguide.cka_matrix(xs, ys, debiased=True)
        torch.testing.assert_close(metric(xs, ys), expected, rtol=0, atol=1e-12)
    assert _is_close(metric.compute(), _one_pass(batches))


def test_merged_states_give_one_pass(batches):
    metric = _metric(batches[2])
    metric.merge_state(_metric(batches[0], batches[1]))
    assert _is_close(metric.compute(), _one_pass(batches))


def test_processes_are_synchronised_by_sums(batches):
    others = [_metric(*batches[2:]), _metric()]
    states = iter(zip(*(other.metric_state.values() for other in others), strict=True))
    metric = _metric(
        *batches[:2],
        distributed_available_fn=lambda: True,
        dist_sync_fn=lambda state, group: [state, *next(states)],
    )
    assert _is_close(metric.compute(), _one_pass(batches))
    assert _is_close(metric.cross, _metric(*batches[:2]).cross)


def test_layers_compared_with_each_other(batches):
    from pyguide.analysis.torchmetrics import CKAMetric

    metric = CKAMetric(rows=2)
    metric.update(batches[0][0])
    expected = pyguide.cka_matrix(batches[0][0], debiased=True)
    torch.testing.assert_close(metric.compute(), expected, rtol=0, atol=1e-12)


def test_too_small_a_batch_has_no_value_and_is_not_counted(batches):
    metric = _metric(*batches)
    xs, ys = ([x[:3] for x in side] for side in batches[0])
    with pytest.warns(UserWarning, match="a batch of 3 samples was left out"):
        assert metric(xs, ys).isnan().all()
    assert _is_close(metric.compute(), _one_pass(batches))
    assert metric.samples == 90


def test_bad_calls_say_what_is_wrong(batches):
    xs, ys = batches[0]
    with pytest.raises(ValueError, match=r"expected 2 layers xs and 1 layers ys .* got 1"):
        _metric().update(xs[:1], ys)
    from pyguide.analysis.torchmetrics import CKAMetric

    with pytest.raises(ValueError, match="rows must be at least 1, got 0"):
        CKAMetric(rows=0)


def test_without_torchmetrics_the_import_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    monkeypatch.delitem(sys.modules, "pyguide.analysis.torchmetrics", raising=False)
    with pytest.raises(ImportError, match="pip install torchmetrics"):
        import pyguide.analysis.torchmetrics  # noqa: F401
