"""Which images of a data set are for training and which for validation, where its layout does not say."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Literal

from sfda.data.errors import BadList, DuplicateName
from sfda.data.paths import IMAGE_TYPES, expand_path
from sfda.errors import UserError

Split = Literal["train", "val"]
Report = Callable[[UserError], None]
_VAL_SHARE = 0.1


def names_in_split(
    root: Path, split: Split, given: Mapping[Split, str | None], names: set[str], report: Report
) -> Iterable[str]:
    """Those of all `names` in a split: those of its list or, without any list, a fixed share by a hash of the name.

    The lists are at the `given` paths or, by default, in `root`. `report` is told of their names that stand twice or
    have no image.

    Raises:
        BadList: a list cannot be read, is empty, or is there for the other split alone.
    """
    lists = {part: expand_path(path) if path else root / f"{part}.txt" for part, path in given.items()}
    if given[split] or lists[split].is_file():
        return _names_in_list(lists[split], names, report)
    if any(given.values()) or any(path.is_file() for path in lists.values()):
        raise BadList(
            f"{root}: there is a list of names, but none for `{split}`, and a split by hash could overlap with it; "
            f"set `{split}_list` or write {lists[split]}"
        )
    return (name for name in names if _is_val(name) == (split == "val"))


def _is_val(name: str) -> bool:
    digest = hashlib.sha256(name.encode()).digest()
    return int.from_bytes(digest[:8], "big") < _VAL_SHARE * 2**64


def _names_in_list(path: Path, names: set[str], report: Report) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadList(f"{path}: the list of names cannot be read ({error})") from error
    listed = [Path(line.strip()) for line in lines if line.strip()]
    stems = [entry.stem if entry.suffix.lower() in IMAGE_TYPES else entry.name for entry in listed]
    if not stems:
        raise BadList(f"{path}: the list is empty; write one name per line, such as {min(names)}")
    if missing := [stem for stem in stems if stem not in names]:
        report(
            BadList(
                f"{path}: {len(missing)} of {len(stems)} names have no image, the first being {missing[0]!r}; "
                f"the images have names such as {min(names)!r}"
            )
        )
    for stem, count in Counter(stems).items():
        if count > 1:
            report(DuplicateName(f"{path}: names {stem!r} twice"))
    return [stem for stem in stems if stem in names]
