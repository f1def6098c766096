"""How the files of data sets lie on disk, one table row per published data set. Imports no torch."""

import importlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from sfda.data.formats import MAX_PIXELS
from sfda.data.label_spaces import CITYSCAPES19, SYNTHIA_IDS, ClassSet, in_train_ids
from sfda.data.paths import IMAGE_TYPES, expand_path
from sfda.errors import UserError, did_you_mean

LabelValues = Literal["label_ids", "train_ids"]


@dataclass(frozen=True)
class Domain:
    """One domain, source or target, as a user describes it.

    Attributes:
        layout: How the files lie: `gta5`, `synthia`, `cityscapes`, `acdc` or `bdd100k` as published, `folder` for
            anything else, or a `Layout` of your own as a dotted path (`package.module.name`). Foggy and Rainy
            Cityscapes are `cityscapes`: `leftImg8bit_foggy` or `leftImg8bit_rain` is read where there is no
            `leftImg8bit`; the versions of a frame are images of their own that share its label.
        root: Folder of the data set.
        classes: Class set of the label files, a name or a YAML file (`folder` only, and only where labels are read).
            The named sets have Cityscapes label ids (7 is road) in their files, unless `label_values` says otherwise.
        label_values: What the label files hold: the data set's `label_ids`, or `train_ids`, the order of `cityscapes19`
            (0 is road, 255 ignored). For `gta5`, `cityscapes` and `acdc` (the last two then read `*_labelTrainIds.png`
            where there are any) and a `folder` with a named class set; the `ids` of a YAML file say it themselves.
        train_list: Text file of the names to train on, one per line (`gta5`, `synthia`). Default: `train.txt` in the
            root; without any list, a fixed tenth of the images, chosen by a hash of the name, is `val`.
        val_list: The same for validation; default `val.txt` in the root.
        train_images: Folder of the training images, relative to the root (`folder` only, like the next three).
        train_labels: Folder of the training labels.
        val_images: Folder of the validation images.
        val_labels: Folder of the validation labels.
        max_pixels: Pixels that an image or a label may declare, at most 2**30; a pair with more is named and left out.
    """

    layout: str
    root: str
    classes: str | None = None
    label_values: LabelValues = "label_ids"
    train_list: str | None = None
    val_list: str | None = None
    train_images: str = "train/images"
    train_labels: str = "train/labels"
    val_images: str = "val/images"
    val_labels: str = "val/labels"
    max_pixels: int = MAX_PIXELS

    @property
    def folder(self) -> Path:
        """The root, as a path that exists if the data set is there."""
        return expand_path(self.root)


OPTIONS = tuple(field.name for field in fields(Domain) if field.name not in ("layout", "root", "max_pixels"))
"""Options of a `Domain` that not every layout takes."""


@dataclass(frozen=True)
class Layout:
    """Where the images and the labels of a data set lie, and what its label files hold.

    A pattern is a path relative to the root. In it, ``{split}`` is ``train`` or ``val``; ``{images}`` and ``{labels}``
    are the folders that the user names (`Domain.train_images` and so on); a part such as ``<city>`` is any folder, the
    same for an image and its label. The last part is ``*`` and what the names end with, without the type. What ``*``
    stands for names the pair.

    Attributes:
        images: Pattern of the images.
        labels: Pattern of the labels, which are PNG files.
        classes: Class set of the label files; None: the user's `Domain.classes`.
        options: Options of `Domain` that mean something here. With `train_list`, lists of names or else a hash split
            the images; `label_values` is for class sets in Cityscapes label ids.
        train_ids: What the names of label files with train ids end with; with ``label_values: train_ids`` they are read
            where there are any.
        red_channel: Whether label files have several channels, of which the first in RGB order counts.
        instead: Folders one of which is read in the place of the first part of `images` where that is not there.
        version: What the names of several versions of one image have in common: a regular expression; what stands
            before it names the label.

    Raises:
        UserError: a pattern or an option is not as said here.
    """

    images: str
    labels: str
    classes: ClassSet | None
    options: tuple[str, ...] = ()
    train_ids: str = ""
    red_channel: bool = False
    instead: tuple[str, ...] = ()
    version: str = ""

    def __post_init__(self) -> None:
        for pattern in (self.images, self.labels):
            name = pattern.rpartition("/")[2]
            if not name.startswith("*") or name.lower().endswith(IMAGE_TYPES):
                raise UserError(f"layout: {pattern!r} must end like images/*_rgb: with `*` and without a type")
            if set(re.findall("{.*?}", pattern)) - {"{split}", "{images}", "{labels}"}:
                raise UserError(f"layout: {pattern!r}: in braces stand only {{split}}, {{images}} and {{labels}}")
        if alone := set(re.findall("<.*?>", self.labels)) - set(re.findall("<.*?>", self.images)):
            raise UserError(f"layout: {self.labels!r}: {min(alone)} is not in the pattern of the images")
        if unknown := set(self.options) - set(OPTIONS):
            raise UserError(f"layout: unknown options {sorted(unknown)}; known are {', '.join(OPTIONS)}")


_LISTS = ("train_list", "val_list")

LAYOUTS = {
    "gta5": Layout(
        images="images/*",
        labels="labels/*",
        # The licence plate is 34 in the list of GTA5, and -1 in that of Cityscapes, whose 8-bit files have it as 255.
        classes=replace(CITYSCAPES19, name="gta5", ignore=CITYSCAPES19.ignore | {34}),
        options=(*_LISTS, "label_values"),
    ),
    "synthia": Layout(
        images="RGB/*",
        labels="GT/LABELS/*",
        classes=replace(
            CITYSCAPES19, name="synthia", ids=SYNTHIA_IDS, ignore=frozenset(range(23)) - frozenset(SYNTHIA_IDS)
        ),
        options=_LISTS,
        red_channel=True,
    ),
    "cityscapes": Layout(
        images="leftImg8bit/{split}/<city>/*_leftImg8bit",
        labels="gtFine/{split}/<city>/*_gtFine_labelIds",
        classes=CITYSCAPES19,
        options=("label_values",),
        train_ids="_gtFine_labelTrainIds",
        # Fog and rain: one frame is there several times, `<frame>_leftImg8bit_foggy_beta_0.02` being one of them.
        instead=("leftImg8bit_foggy", "leftImg8bit_foggyDBF", "leftImg8bit_rain"),
        version="_leftImg8bit_(?:foggy|rain)_",
    ),
    "folder": Layout(
        images="{images}/*",
        labels="{labels}/*",
        classes=None,
        options=("classes", "label_values", "train_images", "train_labels", "val_images", "val_labels"),
    ),
    "acdc": Layout(
        images="rgb_anon/<condition>/{split}/<sequence>/*_rgb_anon",
        labels="gt/<condition>/{split}/<sequence>/*_gt_labelIds",
        classes=CITYSCAPES19,
        options=("label_values",),
        train_ids="_gt_labelTrainIds",
    ),
    "bdd100k": Layout(
        images="images/10k/{split}/*", labels="labels/sem_seg/masks/{split}/*", classes=in_train_ids(CITYSCAPES19)
    ),
}
"""The known layouts. Another data set is another row."""


def layout_of(domain: Domain) -> Layout:
    """The layout that a domain names; that of a third party is imported.

    Raises:
        UserError: there is none of that name.
    """
    name = domain.layout
    if name in LAYOUTS:
        return LAYOUTS[name]
    if "." in name:
        return _import_layout(name)
    known = f"known layouts are {', '.join(LAYOUTS)}, and `package.module.name` of your own"
    raise UserError(f"layout {name!r}: {known}{did_you_mean(name, LAYOUTS)}")


def _import_layout(path: str) -> Layout:
    module, _, name = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, TypeError, ValueError) as error:  # the last two: a path such as `.a` or `..a`
        raise UserError(f"layout {path!r} cannot be imported ({error}): give `package.module.name`") from error
    if not isinstance(found, Layout):
        raise UserError(f"layout {path!r} is no sfda.data.layouts.Layout, but a {type(found).__name__}")
    return found


def domains_of(options: Mapping[str, Any]) -> dict[str, Domain]:
    """The configured domains by name, `source` (where there is one) before `target`.

    Raises:
        UserError: a domain has unknown options, or lacks one.
    """
    return {name: _domain(name, options[name]) for name in ("source", "target") if options.get(name)}


def _domain(name: str, given: Any) -> Domain:
    known = [field.name for field in fields(Domain)]
    if not isinstance(given, dict):
        raise UserError(f"`{name}` must be a mapping with `layout` and `root`, not {given!r}")
    if unknown := [key for key in given if key not in known]:
        raise UserError(f"`{name}` has unknown options {unknown}; known are {', '.join(known)}")
    if missing := [key for key in ("layout", "root") if given.get(key) is None]:
        raise UserError(f"`{name}` lacks {' and '.join(missing)}")
    if not isinstance(given.get("max_pixels", 1), int):
        raise UserError(f"`{name}` has a `max_pixels` that is no whole number: {given['max_pixels']!r}")
    if wrong := [key for key, value in given.items() if key != "max_pixels" and not isinstance(value, str | None)]:
        raise UserError(f"`{name}` has options that are no text: {', '.join(wrong)}")
    return Domain(**given)
