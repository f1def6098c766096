import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import entropy as scipy_entropy
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_jaccard_index

from sfda.metrics.label_free import LabelFreeMetrics
from sfda.metrics.segmentation import SegmentationMetrics, iou_per_class

NAMES = ("road", "sky", "traffic light", "car", "person")
LABEL_FREE = {"entropy", "confidence", "infomax", "class_coverage"}


def random_batch(seed, batch=4, classes=5, size=12):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, classes, size, size, generator=generator)
    labels = torch.randint(0, classes, (batch, size, size), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < 0.2] = 255
    return (3 * logits).softmax(1), labels.to(torch.uint8)


def one_hot(classes, num_classes):
    return torch.nn.functional.one_hot(classes, num_classes).movedim(-1, 1).float()


@given(st.integers(0, 10_000), st.integers(2, 40))
@settings(deadline=None, max_examples=15)
def test_iou_against_torchmetrics(seed, classes):
    p, labels = random_batch(seed, classes=classes)
    metrics = SegmentationMetrics([f"c{i}" for i in range(classes)])
    metrics.update(p, labels)
    scores = metrics.compute()
    expected = multiclass_jaccard_index(p, labels.long(), num_classes=classes, ignore_index=255, average="none")
    ours = torch.stack([scores[f"iou_c{i}"] for i in range(classes)])
    torch.testing.assert_close(ours, expected.double(), rtol=0, atol=1e-6)
    assert scores["miou"].item() == pytest.approx(expected.mean().item(), abs=1e-6)
    accuracy = multiclass_accuracy(p, labels.long(), num_classes=classes, ignore_index=255, average="micro")
    assert scores["pixel_accuracy"].item() == pytest.approx(accuracy.item(), abs=1e-6)


def test_a_class_that_never_occurs_is_left_out_and_one_only_predicted_counts_zero():
    labels = torch.tensor([[[0, 0, 1, 255]]])
    predicted = torch.tensor([[[0, 2, 1, 4]]])
    metrics = SegmentationMetrics(NAMES)
    metrics.update(one_hot(predicted, 5), labels)
    scores = metrics.compute()
    assert [scores[f"iou_{name}"].item() for name in NAMES[:3]] == [0.5, 1.0, 0.0]
    assert math.isnan(scores["iou_car"])
    assert math.isnan(scores["iou_person"])  # predicted on an ignored pixel only
    assert scores["missing_classes"] == 2
    assert scores["miou"] == 0.5


def test_iou_of_a_known_confusion():
    confusion = torch.tensor([[3.0, 1, 0], [2, 4, 0], [0, 0, 0]])
    assert iou_per_class(confusion)[:2].tolist() == pytest.approx([3 / 6, 4 / 7])
    assert iou_per_class(confusion)[2].isnan()


def test_the_subset_mean_is_of_the_same_predictions():
    labels = torch.tensor([[[0, 0, 1, 1]]])
    predicted = torch.tensor([[[0, 3, 1, 1]]])
    metrics = SegmentationMetrics(NAMES, subsets={"3": NAMES[:3]})
    metrics.update(one_hot(predicted, 5), labels)
    scores = metrics.compute()
    assert scores["miou3"] == (0.5 + 1) / 2  # class 2 never occurs; the pixel lost to class 3 still counts
    assert scores["miou"] == (0.5 + 1 + 0) / 3


def test_without_labels_only_label_free_scores_and_labels_are_not_looked_at():
    p, labels = random_batch(0)
    metrics = SegmentationMetrics(NAMES, with_labels=False)
    metrics.update(p)
    metrics.update(p, torch.full_like(labels, 77))
    assert set(metrics.compute()) == LABEL_FREE
    alone = LabelFreeMetrics(5)
    alone.update(p)
    for name, value in alone.compute().items():
        assert metrics.compute()[name].item() == pytest.approx(value.item(), abs=1e-12)


def test_label_free_scores_against_scipy():
    p, labels = random_batch(1)
    metrics = SegmentationMetrics(NAMES)
    metrics.update(p, labels)
    scores = metrics.compute()
    q = p.double().movedim(1, -1).reshape(-1, 5).numpy()
    assert scores["entropy"].item() == pytest.approx(scipy_entropy(q, axis=1).mean(), rel=1e-6)
    assert scores["confidence"].item() == pytest.approx(q.max(1).mean(), rel=1e-6)
    expected = scipy_entropy(q.mean(0)) - scipy_entropy(q, axis=1).mean()
    assert scores["infomax"].item() == pytest.approx(expected, rel=1e-5)
    assert scores["class_coverage"] == 1


def test_coverage_sees_collapse_and_forgives_no_rare_class_below_one_in_ten_thousand():
    predicted = torch.zeros(1, 101, 100, dtype=torch.long)
    predicted[0, 0, 0] = 1  # 1 of 10,100 pixels
    predicted[0, 0, 1:3] = 2
    metrics = LabelFreeMetrics(4)
    metrics.update(one_hot(predicted, 4))
    assert metrics.compute()["class_coverage"] == 0.5


def test_padding_is_left_out():
    p, labels = random_batch(2)
    valid = torch.ones(labels.shape, dtype=torch.bool)
    valid[:, :, 8:] = False
    padded, cropped = SegmentationMetrics(NAMES), SegmentationMetrics(NAMES)
    padded.update(p, labels, valid=valid)
    cropped.update(p[..., :8], labels[..., :8])
    expected = cropped.compute()
    for name, value in padded.compute().items():
        assert value.item() == pytest.approx(expected[name].item(), rel=1e-6), name


@pytest.mark.parametrize("shards", [2, 4])
def test_shards_give_the_same_scores(shards):
    p, labels = random_batch(3, batch=8)
    whole = SegmentationMetrics(NAMES, subsets={"2": (NAMES[0], NAMES[3])})
    whole.update(p, labels)
    parts = []
    for part_p, part_labels in zip(p.chunk(shards), labels.chunk(shards), strict=True):
        part = SegmentationMetrics(NAMES, subsets={"2": (NAMES[0], NAMES[3])})
        for i in range(len(part_p)):
            part.update(part_p[i : i + 1], part_labels[i : i + 1])
        parts.append(part)
    merged, *others = parts
    for other in others:
        merged.merge_state(other)
    expected = whole.compute()
    for name, value in merged.compute().items():
        assert value.item() == pytest.approx(expected[name].item(), abs=1e-9), name


def test_all_states_are_summed_over_processes_and_saved_in_no_checkpoint():
    metrics = SegmentationMetrics(NAMES)
    assert all(getattr(metrics, name).dtype == torch.float64 for name in metrics._defaults)
    assert all(
        reduction is torch.sum or reduction.__name__ == "dim_zero_sum" for reduction in metrics._reductions.values()
    )
    assert not metrics.state_dict()


def test_half_precision_of_the_model_around_it_costs_no_digits():
    p, labels = random_batch(4, size=64)
    plain, inside = SegmentationMetrics(NAMES), SegmentationMetrics(NAMES)
    torch.nn.ModuleDict({"metrics": inside}).to(torch.float16)
    for metrics in (plain, inside):
        metrics.update(p, labels)
        metrics.update(p, labels)
    assert inside.compute()["ece"] == plain.compute()["ece"]


def test_reset_forgets_everything():
    metrics = SegmentationMetrics(NAMES)
    first, second = random_batch(5), random_batch(6)
    metrics.update(*first)
    metrics.reset()
    metrics.update(*second)
    fresh = SegmentationMetrics(NAMES)
    fresh.update(*second)
    expected = fresh.compute()
    assert all(value.equal(expected[name]) for name, value in metrics.compute().items())


def test_no_pixel_at_all_gives_nan_not_an_error():
    p, labels = random_batch(7)
    metrics = SegmentationMetrics(NAMES)
    metrics.update(p, torch.full_like(labels, 255))
    scores = metrics.compute()
    assert scores["miou"].isnan()
    assert scores["ece"].isnan()
    assert scores["missing_classes"] == 5
    assert scores["entropy"].isfinite()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_an_accelerator_gives_the_same_scores_without_a_synchronisation():
    p, labels = random_batch(8, size=300)
    cpu, gpu = SegmentationMetrics(NAMES), SegmentationMetrics(NAMES).cuda()
    cpu.update(p, labels)
    on_device = p.cuda(), labels.cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        gpu.update(*on_device)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    expected = cpu.compute()
    for name, value in gpu.compute().items():
        assert value.item() == pytest.approx(expected[name].item(), rel=1e-5, abs=1e-6), name
