"""Random 512x512 crops of 2048x1024 PNG files, mirrored or not, against Pillow and torchvision.

Without copies both decode the whole PNG, of which inflating alone is three quarters: no reader of whole files is twice
as fast. The copies of `sfda data cache` are mapped into memory, and only what is cropped is read.
"""

import tempfile
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import cv2
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms import v2

from sfda.cli.data_cache import copy_pairs
from sfda.data.datasets import TrainingSet
from sfda.data.label_spaces import load_class_set
from sfda.data.layouts import Domain
from sfda.data.readers import SegmentationSet
from sfda.data.transforms import RandomViews
from sfda.town import write_streets
from side_by_side import Row, Where, faster

CROP = (512, 512)
NEEDS_NETWORK, ON_GPU = False, False


def rows(where: Where) -> Iterator[Row]:
    cv2.setNumThreads(0)
    with tempfile.TemporaryDirectory() as folder:
        counts = {"cityscapes": {"train": 4, "val": 1}}
        write_streets(folder, height=1024, width=2048, counts=counts, domains=("cityscapes",))
        domain = Domain("cityscapes", str(Path(folder) / "cityscapes"))
        yield from _rows(domain, ("images", "images and labels"), 2, where)
        copy_pairs(domain, SegmentationSet(domain, "train", True, load_class_set("cityscapes19")).pairs)
        yield from _rows(domain, ("images", "images and labels"), 15, where)


def _rows(domain: Domain, kinds: tuple[str, ...], aim: float, where: Where) -> Iterator[Row]:
    for kind in kinds:
        with_labels = kind != "images"
        samples = SegmentationSet(domain, "train", with_labels, load_class_set("cityscapes19"))
        views = TrainingSet(samples, None, RandomViews(CROP, (1, 1), strong=False), (0,))
        transform = v2.Compose([v2.RandomCrop(CROP), v2.RandomHorizontalFlip()])
        draws = count()

        def ours(views: TrainingSet = views, draws: Iterator[int] = draws) -> None:
            for index in range(len(views)):
                views[index, next(draws)]

        def theirs(samples: SegmentationSet = samples, transform: v2.Compose = transform) -> None:
            for pair in samples.pairs:
                with Image.open(pair.image) as image:
                    maps = [tv_tensors.Image(v2.functional.pil_to_tensor(image.convert("RGB")))]
                if pair.label is not None:
                    with Image.open(pair.label) as label:
                        maps.append(tv_tensors.Mask(v2.functional.pil_to_tensor(label)))
                transform(*maps)

        copies = " from copies of `sfda data cache`" if aim > 2 else ""
        yield faster(f"crops of 4 {kind}{copies}", ours, "Pillow + torchvision", theirs, aim, where)
