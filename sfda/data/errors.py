"""What can be wrong with a data set on disk, one type per fault."""

from __future__ import annotations

from pathlib import Path

from sfda.errors import UserError


class MissingRoot(UserError):
    """The root of a data set, or the image folder its layout asks for, does not exist."""


class EmptyFolder(UserError):
    """A folder, or a split of it, holds no image."""


class MissingLabels(UserError):
    """Labels are asked for, and not one image has any."""


class DuplicateName(UserError):
    """Two files or two lines of a list claim the same name."""


class BadList(UserError):
    """The text file that names a split is missing, empty, or names images that do not exist."""


class UnreadableFile(UserError):
    """One file that cannot be read as what it should be.

    Attributes:
        path: The file.
        reason: What is wrong with it and what to do.
    """

    # Everything but the first argument is optional because torch rebuilds a worker's exception from its text alone.
    def __init__(self, path: Path | str, reason: str = "") -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return ": ".join(str(part) for part in (self.path, self.reason) if part)


class BadPair(UserError):
    """One image or its label cannot be used; the rest of the data set can.

    Attributes:
        name: Name of the pair.
        path: The file at fault.
        reason: What is wrong with it and what to do.
    """

    def __init__(self, name: str, path: Path | str = "", reason: str = "") -> None:
        super().__init__(name, path, reason)
        self.name = name
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return ": ".join(str(part) for part in (self.name, self.path, self.reason) if part)
