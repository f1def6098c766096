"""Zip files, as torch writes them since 1.6: checked before they are read. Imports no torch."""

import zipfile
import zlib
from pathlib import Path

from sfda.errors import UserError

UNLOADABLE = (RuntimeError, EOFError, ValueError, KeyError, IndexError, TypeError, AttributeError, OSError)
"""What `torch.load` raises, beside `pickle.UnpicklingError`, on bytes that torch did not write."""


def is_archive(path: Path) -> bool:
    """Whether a file is a zip file, damaged or not, that was not cut off."""
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:  # of which it looks at more than the end
        return True


def refuse_damaged_archive(path: Path) -> None:
    """Compare every member of a zip file with its checksum (CRC-32), which `torch.load` does not.

    Files of torch before 1.6 and of safetensors have no checksums.

    Raises:
        UserError: a member is damaged, or the file as a whole.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if (member := archive.testzip()) is None:
                return
            fault = f"the checksum of {member} in it is wrong"
    # What a damaged directory makes `zipfile` raise: an unknown compression, a password, a place outside of the file.
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, RuntimeError, OverflowError, OSError) as error:
        fault = str(error) or type(error).__name__
    raise UserError(f"{path} is damaged ({fault}): copy it again, or save it again where it was made")
