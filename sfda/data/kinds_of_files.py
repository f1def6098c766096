"""What a file of the data sets is, and which of them may be opened while adapting and while scoring."""

import os
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from sfda.data.cache import copy_path
from sfda.data.layouts import Domain, layout_of
from sfda.data.needs import DOMAINS, DomainName, Needs
from sfda.data.pairs import read_pairs
from sfda.data.paths import expand_path
from sfda.data.places import places
from sfda.data.readers import label_kind
from sfda.data.splits import Split
from sfda.errors import UserError

What = Literal["images", "labels", "list", "other files"]
SPLITS: tuple[Split, ...] = get_args(Split)
PAIR: tuple[What, What] = ("images", "labels")


class Kind(NamedTuple):
    """What a file is: of a pair, the list of a split's names, or neither, and then it may hold anything."""

    domain: DomainName
    split: Split | None
    what: What

    def __str__(self) -> str:
        split = {"train": "training ", "val": "validation "}.get(self.split or "", "")
        return f"{self.domain} {split}{self.what}"


KINDS = [
    *(Kind("target", split, what) for split in SPLITS for what in PAIR),
    *(Kind("source", split, what) for split in SPLITS for what in PAIR),
]
"""Those of the pairs of the two domains."""


def may_adapt(kind: Kind, needs: Needs) -> bool:
    """Whether a fit with these needs may open it: what nobody knows can hold labels."""
    return needs.reads_images(kind.domain) if kind.what in ("images", "list") else needs.reads_labels(kind.domain)


def may_score(kind: Kind, *, stand_in: bool) -> bool:
    """Whether scoring may open it; target training images, where they stand in for validation images."""
    return kind.split == "val" or (stand_in and kind == Kind("target", "train", "images"))


class DataFiles:
    """Tells what the files of two domains are, by the layouts of their data sets; opens lists of names alone.

    A file that links lead to is what its link is. A file that both domains have is one of the target.

    Args:
        domains: The configured domains by name.
        not_data: Files that may lie among the data and are none, such as class sets.
    """

    def __init__(self, domains: Mapping[str, Domain], not_data: Collection[Path] = ()) -> None:
        self._files: dict[str, Kind] = {}
        self._folders: dict[str, Kind] = {}
        self._roots: dict[str, DomainName] = {}
        self._not_data = {name for path in not_data for name in _names(path)}
        for domain in reversed(DOMAINS):
            if (configured := domains.get(domain)) is not None:
                for name in _names(configured.folder):
                    self._roots.setdefault(name, domain)
                for split in SPLITS:
                    with suppress(UserError):  # which the run itself says, if it matters to it
                        self._add(domain, configured, split)

    def _add(self, name: DomainName, domain: Domain, split: Split) -> None:
        images, labels, names = (Kind(name, split, what) for what in (*PAIR, "list"))
        for folder in places(domain, split)[1].folders():
            for path in _names(folder):
                self._folders.setdefault(path, labels)
        if "train_list" in layout_of(domain).options:
            given = domain.train_list if split == "train" else domain.val_list
            for path in _names(expand_path(given) if given else domain.folder / f"{split}.txt"):
                self._files.setdefault(path, names)
        for pair in read_pairs(domain, split, with_labels=True, report=lambda fault: None):
            for file, kind, what in ((pair.image, images, "image"), (pair.label, labels, label_kind(domain))):
                if file is None:
                    continue
                with suppress(OSError):  # without the file there is no copy
                    self._files.update(dict.fromkeys(_names(copy_path(file, what)), kind))
                for path in _names(file):
                    self._files.setdefault(path, kind)

    def kind(self, path: str, *, is_folder: bool = False) -> Kind | None:
        """What a file is; None where it belongs to no domain. A folder is what lies in it, the images of its domain."""
        found = [self._kind(name, is_folder) for name in _names(Path(path))]
        return next((kind for kind in found if kind is not None), None)

    def _kind(self, path: str, is_folder: bool) -> Kind | None:
        if path in self._not_data:
            return None
        if not is_folder and path in self._files:
            return self._files[path]
        above = [path, *map(str, Path(path).parents)]
        if (folder := next((folder for folder in above if folder in self._folders), None)) is not None:
            return self._folders[folder]
        root = next((folder for folder in above if folder in self._roots), None)
        return Kind(self._roots[root], None, "images" if is_folder else "other files") if root is not None else None

    def folders_without(self, allowed: Callable[[Kind], bool]) -> list[str]:
        """Real folders that hold a file that is not `allowed`, or nothing that is known."""
        good = {Path(path).parent for path, kind in self._files.items() if allowed(kind)}
        bad = {Path(path).parent for path, kind in self._files.items() if not allowed(kind)}
        real = {folder.resolve() for folder in bad | (set(self._below_roots()) - good)}
        return sorted(str(folder) for folder in real if folder.is_dir())

    def _below_roots(self) -> Iterator[Path]:
        return (Path(folder) for root in self._roots for folder, _, _ in os.walk(root))


def _names(path: Path) -> tuple[str, ...]:
    """The whole path of a file as it is written and without links."""
    return tuple(dict.fromkeys((os.path.abspath(path), str(path.resolve()))))  # noqa: PTH100 - keeps links
