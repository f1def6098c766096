"""What can be wrong with a data set on disk, one type per fault."""

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
    """One file that cannot be read as what it should be; its `reason` says what is wrong with it and what to do."""

    # Everything but the first argument is optional because torch rebuilds a worker's exception from its text alone.
    def __init__(self, path: Path | str, reason: str = "") -> None:
        super().__init__(path, reason)
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        return ": ".join(str(part) for part in self.args if part)


class BadPair(UserError):
    """The image or the label of the pair `name` cannot be used, because of the file at `path`; other pairs can."""

    def __init__(self, name: str, path: Path | str = "", reason: str = "") -> None:
        super().__init__(name, path, reason)
        self.name, self.path, self.reason = name, path, reason

    __str__ = UnreadableFile.__str__
