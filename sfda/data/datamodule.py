"""The DataModule that all methods share."""

import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.fabric.utilities import move_data_to_device
from torch.utils.data import DataLoader, Dataset, Sampler

from sfda.data.datasets import Batch, DomainBatch, EvaluationSet, Item, Size, TrainingSet, collate, to_device_format
from sfda.data.errors import MissingLabels
from sfda.data.label_spaces import ClassSet, Lookup, load_class_set, score_groups
from sfda.data.layouts import Domain, layout_of
from sfda.data.needs import DOMAINS, DomainName, Needs, Reader
from sfda.data.places import image_folder, lacks_validation
from sfda.data.readers import SegmentationSet
from sfda.data.sampling import EvaluationSampler, TrainingSampler, run_seed
from sfda.data.splits import Split
from sfda.data.transforms import RandomViews
from sfda.errors import UserError


class DomainAdaptationDataModule(L.LightningDataModule):
    """Images of a source and a target domain; a method is handed exactly what its `needs` say, nothing else.

    During a fit, the training sets hold the images, and where needed the labels, of the domains that the method reads.
    Validation during a fit uses the target (the source for a method that reads no target images), with labels only
    where the method reads that domain's labels. `validate` scores the validation sets of both domains, with labels
    where there are any; a source whose folder does not exist is left out with a warning. Where the target has no folder
    of validation images, a method that reads no labels is validated on the training images instead, without labels and
    with a warning.

    A training batch is a `sfda.data.datasets.Batch`, ``{"target": {...}, "source": {...}}`` with the domains that are
    read; a validation batch is the `DomainBatch` of one domain.

    Args:
        target: The domain to adapt to.
        source: The domain that the source model was trained on; None where it is gone.
        classes: What the network predicts: ``cityscapes19``, ``synthia16`` or a YAML class set.
        score_classes: What metrics and label-free scores speak of; default: `classes`. A coarser set is scored by
            adding up probabilities (see `sfda.data.label_spaces.score_groups`).
        size: [height, width] that all images are brought to; default: their own.
        crop: [height, width] of a random training crop; default: the whole image.
        scale: [smallest, largest] random rescale before the crop.
        batch_size: Training images per step and process.
        samples_per_epoch: Training images per epoch over all processes; default: the larger data set's size.
        val_batch_size: Validation images per step; above 1 they must have one size.
        num_workers: Worker processes per loader.

    Raises:
        UserError: an option contradicts itself, or a data set is not as its layout says.
    """

    def __init__(
        self,
        target: Domain,
        source: Domain | None = None,
        classes: str = "cityscapes19",
        score_classes: str | None = None,
        size: list[int] | None = None,
        crop: list[int] | None = None,
        scale: list[float] = [0.5, 1.5],  # noqa: B006 - read only, and a list is what YAML gives
        batch_size: int = 4,
        samples_per_epoch: int | None = None,
        val_batch_size: int = 1,
        num_workers: int = 2,
    ) -> None:
        super().__init__()
        self.domains: dict[DomainName, Domain | None] = {"source": source, "target": target}
        for domain in (source, target):
            if domain is not None:
                layout_of(domain)  # a mistyped name is refused now, not when the domain is first read
        self.classes: ClassSet = load_class_set(classes)
        self.score_classes: ClassSet = load_class_set(score_classes) if score_classes else self.classes
        self.score_groups: Lookup | None = score_groups(self.classes, self.score_classes)
        self.size = _pair("size", size)
        self.crop = _pair("crop", crop)
        if len(scale) != 2 or not 0 < scale[0] <= scale[1]:
            raise UserError(f"data option scale: [smallest, largest] with 0 < smallest <= largest, not {scale}")
        self.scale = (float(scale[0]), float(scale[1]))
        for option, value in (("batch_size", batch_size), ("val_batch_size", val_batch_size)):
            if value < 1:
                raise UserError(f"data option {option}: at least 1, not {value}")
        self.batch_size = batch_size
        self.samples_per_epoch = samples_per_epoch
        self.val_batch_size = val_batch_size
        self.num_workers = num_workers
        self.training_sets: dict[DomainName, SegmentationSet] = {}
        self.validation_sets: dict[DomainName, SegmentationSet] = {}

    @property
    def method(self) -> Reader:
        """The method at work, as far as it matters here."""
        if self.trainer is None:
            raise RuntimeError("the DataModule belongs to no Trainer yet")
        return self.trainer.lightning_module  # type: ignore[return-value]

    def setup(self, stage: str) -> None:
        """List the files of the sets that this stage needs, and no others."""
        if stage == "fit":
            needs = self.method.needs
            self.training_sets = {
                domain: self._open(domain, needs.split, needs.reads_labels(domain), self.classes)
                for domain in DOMAINS
                if needs.reads_images(domain)
            }
            if not self.training_sets:
                raise UserError(
                    f"{type(self.method).__name__} reads nothing, and so has nothing to fit: declare in its class what "
                    'it reads, for example `needs = Needs(target="images")`'
                )
            domain: DomainName = "target" if needs.reads_images("target") else "source"
            self.validation_sets = {
                domain: self._open_stand_in("the fit is watched on")
                if domain == "target" and self._needs_stand_in()
                else self._open(domain, "val", needs.reads_labels(domain), self.score_classes)
            }
            self._check_batch_size()
        elif stage == "validate":
            self.validation_sets = {"target": self._open_to_score("target")}
            if (source := self.domains["source"]) is not None:
                if source.folder.exists():
                    self.validation_sets["source"] = self._open_to_score("source")
                else:
                    warnings.warn(f"{source.root} does not exist: the source domain is not scored", stacklevel=1)
        world = self._world()[0]
        for name, samples in self.validation_sets.items():
            if len(samples) < world:
                raise UserError(
                    f"the {name} validation set has {len(samples)} images for {world} processes: use fewer "
                    "--trainer.devices"
                )

    def _needs_stand_in(self) -> bool:
        """Whether the target has training images alone, which is enough for a method that reads no labels."""
        target = self.domains["target"]
        return target is not None and lacks_validation(target) and not self.method.needs.labels_read

    def _open_stand_in(self, what: str) -> SegmentationSet:
        samples = self._open("target", "train", False, self.score_classes)
        if self._world()[1] == 0:
            folder = image_folder(samples.domain, "val")
            warnings.warn(f"no validation images in {folder}: {what} its {len(samples)} training images", stacklevel=1)
        return samples

    def _open_to_score(self, name: DomainName) -> SegmentationSet:
        if name == "target" and self._needs_stand_in():
            return self._open_stand_in("only label-free scores, of")
        try:
            return self._open(name, "val", True, self.score_classes)
        except MissingLabels as missing:
            warnings.warn(f"only label-free scores of the {name} domain: {missing}", stacklevel=1)
            return self._open(name, "val", False, self.score_classes)

    def _open(self, name: DomainName, split: Split, labels: bool, wanted: ClassSet) -> SegmentationSet:
        domain = self.domains[name]
        if domain is None:
            reader = type(self.method).__name__
            raise UserError(f"{reader} reads the {name} domain, but data.init_args.{name} is not set")
        samples = SegmentationSet(domain, split, with_labels=labels, class_set=wanted)
        if suspicion := samples.train_ids_suspected():
            warnings.warn(f"{domain.root}: {suspicion}", stacklevel=1)
        return samples

    def _check_batch_size(self) -> None:
        """Refuse an epoch without a full batch on every process."""
        world, length = self._world()[0], self._epoch_length()
        if length // world < self.batch_size:
            on_disk = " and ".join(f"{len(samples)} {name}" for name, samples in self.training_sets.items())
            raise UserError(
                f"an epoch of {length} images ({on_disk} on disk) has no full batch of {self.batch_size} on each of "
                f"{world} processes: lower --data.init_args.batch_size or raise --data.init_args.samples_per_epoch"
            )

    def _world(self) -> tuple[int, int]:
        return (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)

    def _epoch_length(self) -> int:
        return self.samples_per_epoch or max(len(samples) for samples in self.training_sets.values())

    def train_dataloader(self) -> Mapping[str, DataLoader[Item]]:
        """One loader per domain that is read; every epoch has the same number of batches in each."""
        views = self._views(self.method.needs)
        world, rank = self._world()
        # `trainer.current_epoch` is one too small here when a run is resumed.
        epoch = self.trainer.fit_loop.epoch_progress.current.ready if self.trainer else 0
        loaders: dict[str, DataLoader[Item]] = {}
        for name, samples in self.training_sets.items():
            seed = (run_seed(), DOMAINS.index(name))
            permutation_seed = int(np.random.SeedSequence(seed).generate_state(1)[0])
            loaders[name] = self._loader(
                TrainingSet(samples, self.size, views, seed, self.method.pseudo_labels if name == "target" else None),
                TrainingSampler(len(samples), self._epoch_length(), permutation_seed, epoch, world, rank),
                self.batch_size,
                drop_last=True,  # a last batch of one image kills BatchNorm in train mode
                pin_memory=torch.cuda.is_available(),
                persistent_workers=self.num_workers > 0,
            )
        return loaders

    def _loader(self, images: Dataset[Item], sampler: Sampler[Any], batch_size: int, **more: Any) -> DataLoader[Item]:
        workers = self.num_workers
        return DataLoader(images, batch_size, sampler=sampler, num_workers=workers, collate_fn=collate, **more)

    def _views(self, needs: Needs) -> RandomViews | None:
        if needs.view == "plain":
            return None
        strong = needs.view == "weak_and_strong"
        return RandomViews(self.crop, self.scale, strong=strong, wanted_classes=needs.wanted_classes)

    def plain_batches(
        self,
        name: DomainName,
        device: torch.device,
        *,
        split: Split = "train",
        title: str = "passing over images",
        batch_size: int | None = None,
        first: int | None = None,
        shuffled: int | None = None,
    ) -> Iterator[DomainBatch]:
        """Images of a domain as the network sees them, outside of the Trainer's own loops.

        Without `first` and `shuffled` every image comes exactly once over all ranks, in order.

        Args:
            name: A domain of `training_sets` or, for ``val``, of `validation_sets`.
            device: Where the batches are wanted.
            split: The training set or the validation set of the fit.
            title: What the pass is for, as `Reader.show_progress` shows it.
            batch_size: Images per batch and process; default `val_batch_size`.
            first: Only so many images, the first ones, and all of them on every rank.
            shuffled: Only so many images over all ranks, shuffled and in full batches, as batch statistics need them.

        Yields:
            Batches of at least one image, in the format of `to_device_format`.
        """
        samples = (self.training_sets if split == "train" else self.validation_sets)[name]
        world, rank = self._world() if first is None else (1, 0)
        batch_size = batch_size or self.val_batch_size
        sampler: TrainingSampler | EvaluationSampler
        if shuffled is None:
            count = len(samples) if first is None else min(first, len(samples))
            sampler = EvaluationSampler(count, world, rank)
            loader = self._loader(EvaluationSet(samples, self.size), sampler, batch_size)
        else:
            shuffled = min(shuffled, len(samples))
            sampler = TrainingSampler(len(samples), shuffled, run_seed(), 0, world, rank)
            images = TrainingSet(samples, self.size, None, (run_seed(),))
            loader = self._loader(images, sampler, min(batch_size, shuffled // world), drop_last=True)
        with self.method.show_progress(title, len(sampler)) as advance:
            for batch in loader:
                if batch["name"]:
                    yield to_device_format(move_data_to_device(batch, device))
                advance(len(batch["name"]) + len(batch["skipped"]))

    def val_dataloader(self) -> list[DataLoader[Item]]:
        """One loader per domain of `validation_sets`, in that order."""
        loaders = []
        for samples in self.validation_sets.values():
            images, sampler = EvaluationSet(samples, self.size), EvaluationSampler(len(samples), *self._world())
            loaders.append(self._loader(images, sampler, self.val_batch_size, pin_memory=torch.cuda.is_available()))
        return loaders

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Batch | DomainBatch:
        """Bytes to floats, on the device."""
        if "name" in batch:
            return to_device_format(batch)
        return {domain: to_device_format(part) for domain, part in batch.items()}


def _pair(option: str, value: list[int] | None) -> Size | None:
    if value is None:
        return None
    if len(value) != 2 or min(value) < 1:
        raise UserError(f"data option {option}: [height, width] in pixels, not {value}")
    return int(value[0]), int(value[1])
