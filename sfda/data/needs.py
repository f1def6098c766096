"""What a fit reads, as a method declares it, and all that the DataModule knows of a method. Imports no torch."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Literal, Protocol, get_args

import numpy as np
import numpy.typing as npt

from sfda.data.splits import Split
from sfda.errors import UserError, did_you_mean
from sfda.progress import Advance

DomainName = Literal["source", "target"]
DOMAINS: tuple[DomainName, ...] = ("source", "target")

Read = Literal["nothing", "images", "labels"]
View = Literal["plain", "weak", "weak_and_strong"]

_READ: tuple[Read, ...] = get_args(Read)
_WORDS = {"source": _READ, "target": _READ, "split": get_args(Split), "view": get_args(View)}
_BEFORE = ("reads", "fit_split", "training_view", "wanted_classes")
"""Attributes of a method class that said the same before there was `Needs`."""


@dataclass(frozen=True)
class Needs:
    """What a fit reads of each domain, and in which form; the DataModule opens exactly this.

    Attributes:
        source: ``nothing``, ``images`` or ``labels`` (which come with their images) of the source domain.
        target: The same of the target domain.
        split: The images that a fit passes over: those for training, or those for validation.
        view: ``plain`` images, a ``weak`` random view, or ``weak_and_strong`` views of one crop.
        wanted_classes: Crops with more classes than this in their label are looked for; see `RandomViews`. None: any.

    Raises:
        UserError: a word that does not exist, or a `wanted_classes` that is no number of classes.
    """

    source: Read = "nothing"
    target: Read = "nothing"
    split: Split = "train"
    view: View = "weak"
    wanted_classes: int | None = None

    def __post_init__(self) -> None:
        for name, words in _WORDS.items():
            if (given := getattr(self, name)) not in words:
                guess = did_you_mean(str(given), words)
                raise UserError(f"Needs: {name}: one of {', '.join(map(repr, words))}, not {given!r}{guess}")
        if self.wanted_classes is not None and (type(self.wanted_classes) is not int or self.wanted_classes < 1):
            raise UserError(f"Needs: wanted_classes: None or a number from 1 up, not {self.wanted_classes!r}")

    def reads_images(self, domain: DomainName) -> bool:
        """Whether images of a domain are read."""
        return self._read(domain) != "nothing"

    def reads_labels(self, domain: DomainName) -> bool:
        """Whether labels of a domain are read."""
        return self._read(domain) == "labels"

    @property
    def source_free(self) -> bool:
        """Whether nothing of the source domain is read."""
        return not self.reads_images("source")

    @property
    def labels_read(self) -> str | None:
        """Domains whose labels are read, joined by ``+``; None where there are none."""
        return "+".join(domain for domain in DOMAINS if self.reads_labels(domain)) or None

    def together_with(self, other: Needs) -> Needs:
        """These needs, and also what `other` reads of each domain."""
        source, target = (max(self._read(name), other._read(name), key=_READ.index) for name in DOMAINS)
        return replace(self, source=source, target=target)

    def __str__(self) -> str:
        read = [f"{name} {self._read(name)}" for name in DOMAINS if self.reads_images(name)]
        return " and ".join(read) or "nothing"

    def _read(self, domain: DomainName) -> Read:
        return self.source if domain == "source" else self.target


def refuse_words_of_before(method: type) -> None:
    """Say what to write in a class that declares what it reads as `Needs` was written before.

    Raises:
        UserError: the class defines one of these attributes.
    """
    if old := [word for word in _BEFORE if word in vars(method)]:
        raise UserError(
            f"{method.__name__}: `{'`, `'.join(old)}` is now part of one `needs`: write, for example, "
            '`needs = Needs(target="images", view="weak")`, with `from sfda.data.needs import Needs`. `source` and '
            '`target` are "nothing", "images" or "labels" (which come with their images); `split` is what `fit_split` '
            "was, `view` what `training_view` was"
        )


class PseudoLabels(Protocol):
    """Labels that a method has made itself."""

    def read(self, name: str) -> npt.NDArray[np.uint8]:
        """The label (H, W) of the image of that name, 255 = ignored."""


class Reader(Protocol):
    """What the DataModule looks at in a method."""

    @property
    def needs(self) -> Needs:
        """What the fit reads."""

    @property
    def pseudo_labels(self) -> PseudoLabels | None:
        """Labels for the target training images, handed out under ``pseudo_label``."""

    def show_progress(self, title: str, total: int) -> AbstractContextManager[Advance]:
        """See `sfda.progress.ShowProgress`."""
