"""How pseudo-labels are made: one forward pass over the images, which may be killed at any time and goes on after.

Batches come from `DomainAdaptationDataModule.plain_batches`, each rank its own; ranks may have uneven numbers of them.
All ranks call these functions together, with networks in eval mode on the device of the batches.
"""

import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from rich.filesize import decimal
from torch import Tensor
from typing_extensions import Self

from sfda.data.datasets import DomainBatch
from sfda.errors import UserError, refuse_outside
from sfda.metrics.functional import at_least_float32, top_label
from sfda.networks.finite import refuse_nan
from sfda.progress import ShowProgress, no_progress
from sfda.pseudo_labels.store import PseudoLabelStore
from sfda.pseudo_labels.thresholds import (
    BINS,
    UNLABELLED,
    bin_histogram,
    class_thresholds,
    confidence_bins,
    image_thresholds,
    lower_edges,
    realised_fraction,
    select_labels,
)
from sfda.ranks import barrier, rank_and_world_size, sum_on_cpu_over_ranks

Batches = Iterable["DomainBatch"]
Predict = Callable[[Tensor], Tensor]
PredictScaled = Callable[[Tensor], tuple[Tensor, Tensor | None]]
ADVICE = "check the source checkpoint"


@torch.no_grad()
def label_by_argmax(store: PseudoLabelStore, batches: Batches, predict: Predict) -> None:
    """Label every pixel with its most probable class.

    The store's report then has ``class_share``: class number → share of the pixels, for the classes that occur.

    Args:
        store: Open. Batches whose images all have their labels there are not predicted again.
        batches: ``name`` and ``image`` (B, 3, H, W) of the images to label, each once over all ranks.
        predict: Images (B, 3, H, W) → probabilities (B, C, H, W), C at most 254.

    Raises:
        UserError: a probability is NaN, or a file cannot be written or read.
    """
    counts = torch.zeros(UNLABELLED, dtype=torch.int64)
    for batch in batches:
        names = batch["name"]
        if not all(map(store.has, names)):
            for name, label in zip(names, _top_label(predict(batch["image"]), names)[1].cpu(), strict=True):
                store.write(name, label.numpy())
        for name in names:
            counts += _label_counts(torch.from_numpy(store.read(name)), UNLABELLED)
    share = sum_on_cpu_over_ranks(counts).double()
    share /= share.sum().clamp(min=1)
    store.finish({"class_share": {str(c): share[c].item() for c in share.nonzero().flatten().tolist()}})


@torch.no_grad()
def label_by_class_balance(
    store: PseudoLabelStore,
    batches: Batches,
    predict: PredictScaled,
    num_classes: int,
    class_fraction: float,
    image_fraction: float,
    *,
    images: int,
    show_progress: ShowProgress = no_progress,
) -> None:
    """Label the most confident pixels of every class, and those of every image, with their most probable class.

    The confidence is s = scale · max p. A pixel is labelled where s passes the threshold of its class, which the top
    `class_fraction` of all pixels predicted so do, or that of its image, which the top `image_fraction` of its pixels
    do (see `sfda.pseudo_labels.thresholds`). One forward pass: classes and bins of s are kept in temporaries, which
    are removed one by one as labels are written.

    The store's report then has, as lists over the classes, ``thresholds`` of s; ``unscaled_thresholds``, of max p by
    the same rule; ``realised_fraction``, the share of the pixels predicted as a class that got a label (0 if there
    are none); ``labelled_share``, the share of a class among all labels; and ``coverage``, the share of all pixels
    that got a label.

    Args:
        store: Open. What a killed process has left there is used.
        batches: ``name`` and ``image`` (B, 3, H, W) of the images to label, each once over all ranks.
        predict: Images (B, 3, H, W) → probabilities (B, C, H, W) and the scale (B,) in [0, 1], or None for 1.
        num_classes: Number of classes C, at most 254.
        class_fraction: In [0, 1]; 0 turns the thresholds of classes off.
        image_fraction: In [0, 1]; 0 turns the thresholds of images off.
        images: Number of images over all ranks, from which the disk space for temporaries is computed.
        show_progress: Shows how far the writing of labels is; the pass over `batches` is for the caller to show.

    Raises:
        UserError: a fraction is out of its range, the disk is too full, a probability or scale is NaN, or a file
            cannot be written or read.
    """
    refuse_outside(0, 1, class_fraction=class_fraction, image_fraction=image_fraction)
    if not store.notes:
        confidences = _keep_confidences(store, batches, predict, num_classes, images)
        scaled, unscaled = gather_histograms(confidences, num_classes)
        bins = {
            "scaled": class_thresholds(scaled, class_fraction),
            "unscaled": class_thresholds(unscaled, class_fraction),
        }
        notes = {**bins, "predicted": scaled.sum(1)}
        store.note({name: value.tolist() for name, value in notes.items()})
    notes = _read_notes(store, num_classes)
    labelled = _write_labels(store, notes["scaled"], image_fraction, show_progress).double()
    store.finish(
        {
            "thresholds": lower_edges(notes["scaled"]).tolist(),
            "unscaled_thresholds": lower_edges(notes["unscaled"]).tolist(),
            "realised_fraction": realised_fraction(labelled, notes["predicted"]).tolist(),
            "labelled_share": (labelled / labelled.sum().clamp(min=1)).tolist(),
            "coverage": (labelled.sum() / notes["predicted"].sum().clamp(min=1)).item(),
        }
    )


class ImageConfidence(NamedTuple):
    """What thresholds and label of one image are made from; on the CPU."""

    predicted: Tensor
    """(H, W) uint8."""
    bins: Tensor
    """(H, W) int16, of the scaled confidence."""
    unscaled: Tensor
    """(2, n) int32: the occupied places of the flat (C, BINS) histogram of the confidence itself, and their counts."""

    @classmethod
    def of(cls, predicted: Tensor, scaled: Tensor, confidence: Tensor, num_classes: int) -> Self:
        """From predicted classes and both confidences, each (H, W)."""
        histogram = bin_histogram(predicted, confidence_bins(confidence), num_classes).flatten()
        places = histogram.nonzero().flatten()
        unscaled = torch.stack([places, histogram[places]]).int()
        return cls(predicted.cpu(), confidence_bins(scaled).cpu(), unscaled.cpu())


def gather_histograms(confidences: Iterable[ImageConfidence], num_classes: int) -> Tensor:
    """Histograms of the scaled and of the unscaled confidence by predicted class, over all images and ranks.

    Returns:
        (2, C, BINS) int64, on the CPU; the memory needed does not depend on the number of images.
    """
    total = torch.zeros(2, num_classes, BINS, dtype=torch.int64)
    for image in confidences:
        total[0] += bin_histogram(image.predicted, image.bins, num_classes)
        total[1].view(-1)[image.unscaled[0].long()] += image.unscaled[1]
    return sum_on_cpu_over_ranks(total)


def _keep_confidences(
    store: PseudoLabelStore, batches: Batches, predict: PredictScaled, num_classes: int, images: int
) -> Iterator[ImageConfidence]:
    """Every image's confidences, from its temporary where a whole batch has them, otherwise predicted and kept."""
    checked = False
    for batch in batches:
        names = batch["name"]
        if all(map(store.has_temporary, names)):
            for name in names:
                yield _read_confidence(store, name)
            continue
        if not checked:
            _check_disk(store, images, batch["image"][0, 0].numel(), num_classes)
            checked = True
        for name, image in zip(names, _predict_confidences(predict, batch, num_classes), strict=True):
            store.write_temporary(name, {key: value.numpy() for key, value in image._asdict().items()})
            yield image


def _predict_confidences(predict: PredictScaled, batch: DomainBatch, num_classes: int) -> Iterator[ImageConfidence]:
    probabilities, scale = predict(batch["image"])
    confidence, predicted = _top_label(probabilities, batch["name"])
    scaled = confidence
    if scale is not None:
        scaled = confidence * scale.view(-1, 1, 1)
        refuse_nan(scaled.unsqueeze(1), batch["name"], ADVICE)
    for maps in zip(predicted, scaled, confidence, strict=True):
        yield ImageConfidence.of(*maps, num_classes)


def _read_confidence(store: PseudoLabelStore, name: str) -> ImageConfidence:
    return ImageConfidence(**{key: torch.from_numpy(value) for key, value in store.read_temporary(name).items()})


def _check_disk(store: PseudoLabelStore, images: int, pixels: int, num_classes: int) -> None:
    """A byte for the class and two for the bin of a pixel; eight for a place of the unscaled histogram."""
    of_one = 3 * pixels + 8 * min(pixels, num_classes * BINS)
    needed, free = (images - len(store.temporaries())) * of_one, shutil.disk_usage(store.folder).free
    if needed > free:
        raise UserError(
            f"{store.folder}: the temporaries of {images} images need up to {decimal(needed)} there, and "
            f"{decimal(free)} are free: make room, or choose another --out"
        )


def _write_labels(
    store: PseudoLabelStore, by_class: Tensor, image_fraction: float, show_progress: ShowProgress
) -> Tensor:
    """Make every temporary into a label; returns the labelled pixels of each class, (C,), over all ranks."""
    waiting = store.temporaries()
    done = store.labelled() - waiting
    barrier()  # all have looked before any removes one
    counts = torch.zeros_like(by_class)
    with show_progress("writing pseudo-labels", len(_own(done)) + len(_own(waiting))) as advance:
        for name in _own(done):
            counts += _label_counts(torch.from_numpy(store.read(name)), len(counts))
            advance(1)
        for name in _own(waiting):
            predicted, bins, _ = _read_confidence(store, name)
            by_image = image_thresholds(bins[None], image_fraction)
            label = select_labels(predicted[None], bins[None], by_class, by_image)[0]
            store.write(name, label.numpy())
            store.remove_temporary(name)
            counts += _label_counts(label, len(counts))
            advance(1)
    return sum_on_cpu_over_ranks(counts)


def _own(names: set[str]) -> Sequence[str]:
    """This rank's share."""
    rank, world_size = rank_and_world_size()
    return sorted(names)[rank::world_size]


def _label_counts(label: Tensor, num_classes: int) -> Tensor:
    return torch.bincount(label.flatten(), minlength=UNLABELLED + 1)[:num_classes]


def _top_label(probabilities: Tensor, names: Sequence[str]) -> tuple[Tensor, Tensor]:
    confidence, predicted = top_label(at_least_float32(probabilities))
    refuse_nan(confidence.unsqueeze(1), names, ADVICE)
    return confidence, predicted


def _read_notes(store: PseudoLabelStore, num_classes: int) -> dict[str, Tensor]:
    """The three vectors (C,) that were noted; a `UserError` where a damaged manifest says something else."""
    try:
        notes = {name: torch.tensor(value) for name, value in store.notes.items()}
    except (TypeError, ValueError, RuntimeError):
        notes = {}
    wanted = {"scaled", "unscaled", "predicted"}
    if notes.keys() != wanted or any(value.shape != (num_classes,) for value in notes.values()):
        raise UserError(
            f"{store.folder / 'manifest.json'} notes no thresholds of {num_classes} classes: {store.advice}"
        )
    return notes
