"""torch data sets over the readers, and how their samples become batches."""

from collections.abc import Sequence
from typing import Any, TypedDict, cast

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from sfda.data.errors import BadPair
from sfda.data.needs import DomainName, PseudoLabels
from sfda.data.readers import SegmentationSet
from sfda.data.transforms import RandomViews, View, resize_image, resize_label
from sfda.errors import UserError

Item = dict[str, Any] | BadPair
Size = tuple[int, int]


class DomainBatch(TypedDict, total=False):
    """Images of one domain; what was not asked for is not there, and without a good pair there is no tensor at all.

    Attributes:
        name: Names of the B images.
        skipped: Messages of pairs that cannot be used.
        image: (B, 3, H, W) uint8 RGB; float32 in [0, 1] after `to_device_format`.
        strong: The strong view of the same crops, in the same format.
        valid: (B, H, W) bool, False where a crop reaches beyond its image.
        label: (B, H, W) uint8, 255 = ignored; int64 after `to_device_format`. At its own size in evaluation.
        pseudo_label: The same, of the labels that the method made itself.
    """

    name: list[str]
    skipped: list[str]
    image: Tensor
    strong: Tensor
    valid: Tensor
    label: Tensor
    pseudo_label: Tensor


Batch = dict[DomainName, DomainBatch]
"""A training batch: one part per domain that the method reads."""


def _to_tensor(image: Any) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


class TrainingSet(Dataset[Item]):
    """Views of a data set for training; indexed by ``(index, draw)`` of a `TrainingSampler`.

    Images and labels are brought to `size` = (height, width) first, where there is one, and are plain without `views`.
    The `seed` (of the run and a number of the domain) makes, with the draw, the seed of a view. `pseudo_labels`, at
    the size that the network sees, come in the place of the labels on disk.
    """

    def __init__(
        self,
        samples: SegmentationSet,
        size: Size | None,
        views: RandomViews | None,
        seed: Sequence[int],
        pseudo_labels: PseudoLabels | None = None,
    ) -> None:
        self.samples, self.size, self.views = samples, size, views
        self.seed = tuple(seed)
        self.pseudo_labels = pseudo_labels

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: tuple[int, int]) -> Item:
        cv2.setNumThreads(0)  # the workers are the parallelism
        index, draw = key
        try:
            sample = self.samples.read(index)
        except BadPair as fault:
            return fault
        image = resize_image(sample.image, self.size)
        label_key, label = "label", None if sample.label is None else resize_label(sample.label, self.size)
        if self.pseudo_labels is not None:
            label_key, label = "pseudo_label", self.pseudo_labels.read(sample.name)
            if label.shape != image.shape[:2]:
                sizes = " and ".join(f"{height}x{width}" for height, width in (label.shape, image.shape[:2]))
                raise UserError(
                    f"the pseudo-label of {sample.name} and its image differ in size ({sizes}, height x width): delete "
                    "the folder pseudo_labels of the run, and all are made again"
                )
        if self.views is None:
            view = View(image, label, np.ones(image.shape[:2], dtype=np.bool_), None)
        else:
            view = self.views(image, label, int(np.random.SeedSequence([*self.seed, draw]).generate_state(1)[0]))
        item = {"name": sample.name, "image": _to_tensor(view.image), "valid": torch.from_numpy(view.valid)}
        if view.strong is not None:
            item["strong"] = _to_tensor(view.strong)
        if view.label is not None:
            item[label_key] = torch.from_numpy(view.label)
        return item


class EvaluationSet(Dataset[Item]):
    """A data set as it is scored: images at the network's input size, labels at their own."""

    def __init__(self, samples: SegmentationSet, size: Size | None):
        self.samples = samples
        self.size = size

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Item:
        cv2.setNumThreads(0)
        try:
            sample = self.samples.read(index)
        except BadPair as fault:
            return fault
        item = {"name": sample.name, "image": _to_tensor(resize_image(sample.image, self.size))}
        if sample.label is not None:
            item["label"] = torch.from_numpy(sample.label)
        return item


def collate(items: Sequence[Item]) -> DomainBatch:
    """Stack items into a batch; bad pairs are left out and named under ``skipped``.

    Raises:
        UserError: images of different sizes meet in one batch.
    """
    faults = [str(item) for item in items if isinstance(item, BadPair)]
    good = [item for item in items if not isinstance(item, BadPair)]
    batch: dict[str, Any] = {"name": [item["name"] for item in good], "skipped": faults}
    for key in [key for key in good[0] if key != "name"] if good else []:
        tensors = [item[key] for item in good]
        if len({tensor.shape for tensor in tensors}) > 1:
            shapes = ", ".join(f"{item['name']} {tuple(item[key].shape[-2:])}" for item in good)
            raise UserError(
                f"the {key}s of one batch differ in size ({shapes}): give all images one with --data.init_args.size "
                "'[H, W]'; or use --data.init_args.val_batch_size 1, and --data.init_args.crop '[H, W]' for training"
            )
        batch[key] = torch.stack(tensors)
    return cast(DomainBatch, batch)


def has_images(batch: Batch) -> bool:
    """Whether every domain of a training batch has an image left."""
    return all(part["name"] for part in batch.values())


def to_device_format(batch: DomainBatch) -> DomainBatch:
    """Images to float RGB in [0, 1], labels to int64; after the transfer, so that bytes travel."""
    converted: dict[str, Any] = dict(batch)
    for key in converted.keys() & {"image", "strong"}:
        converted[key] = converted[key].float() / 255
    for key in converted.keys() & {"label", "pseudo_label"}:
        converted[key] = converted[key].long()
    return cast(DomainBatch, converted)
