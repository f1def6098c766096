import numpy as np
import pytest
import torch

from sfda.metrics.reliability import reliability_diagram
from sfda.metrics.segmentation import SegmentationMetrics


def test_bars_show_accuracy_gap_and_share(tmp_path):
    count = torch.tensor([0.0, 30, 0, 10], dtype=torch.float64)
    confidence = torch.tensor([torch.nan, 0.4, torch.nan, 0.9], dtype=torch.float64)
    accuracy = torch.tensor([torch.nan, 0.3, torch.nan, 1.0], dtype=torch.float64)
    figure = reliability_diagram(count, confidence, accuracy)
    top, bottom = figure.axes
    heights = [bar.get_height() for bar in top.patches]
    assert heights == pytest.approx([0, 0.3, 0, 1.0, 0, 0.1, 0, -0.1])
    assert [bar.get_height() for bar in bottom.patches] == pytest.approx([0, 0.75, 0, 0.25])
    assert [bar.get_x() for bar in bottom.patches] == pytest.approx([0, 0.25, 0.5, 0.75])
    assert top.get_title() == "ECE 10.00 %"
    figure.savefig(tmp_path / "reliability.png")
    assert (tmp_path / "reliability.png").stat().st_size > 1000


def test_the_metric_gives_what_the_diagram_needs():
    generator = torch.Generator().manual_seed(0)
    p = (2 * torch.randn(2, 3, 20, 20, generator=generator)).softmax(1)
    labels = torch.randint(0, 3, (2, 20, 20), generator=generator)
    metrics = SegmentationMetrics(["a", "b", "c"])
    metrics.update(p, labels)
    count, confidence, accuracy = metrics.reliability()
    top, right = p.amax(1).numpy(), (p.argmax(1) == labels).numpy()
    for m in range(15):
        inside = (top > m / 15) & (top <= (m + 1) / 15)
        assert count[m] == inside.sum()
        if inside.any():
            assert confidence[m].item() == pytest.approx(top[inside].mean(), abs=1e-6)
            assert accuracy[m].item() == pytest.approx(right[inside].mean(), abs=1e-9)
        else:
            assert np.isnan(confidence[m])
    title = reliability_diagram(count, confidence, accuracy).axes[0].get_title()
    assert title == f"ECE {100 * metrics.compute()['ece'].item():.2f} %"
