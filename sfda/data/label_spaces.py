"""Class sets: what the indices of a label map mean, and how one set turns into another.

Three sets are known by name: ``cityscapes19``, ``synthia16`` and ``synthia13``; any other comes from a YAML file
(see `load_class_set`). Indices are *train ids*: 0..C-1, and 255 for pixels that take part in nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from sfda.data.paths import expand_path
from sfda.errors import UserError
from sfda.yaml_files import read_yaml

IGNORE = 255
"""Train id of pixels that take part in no loss, no metric, no bin and no count."""

Lookup = npt.NDArray[np.uint8]
Colour = tuple[int, int, int]
_GROUPS = ("groups_of_cityscapes19", "groups")


@dataclass(frozen=True)
class ClassSet:
    """Classes in the order of their train ids.

    Attributes:
        name: Name, or path of the YAML file it came from.
        names: Class names, index = train id.
        colours: RGB colours, 0-255, one per class.
        ids: Value in a label file → train id. Values that are neither here nor in `ignore` are faults.
        ignore: Values in a label file that become 255.
        groups: Class of this set → the classes of a network (mostly those of Cityscapes) that fall into it; empty where
            unknown.
        subsets: Name → classes over which a further mean IoU is reported, as ``miou<name>``.
    """

    name: str
    names: tuple[str, ...]
    colours: tuple[Colour, ...]
    ids: Mapping[int, int]
    ignore: frozenset[int] = frozenset()
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    subsets: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.names)


_CITYSCAPES: tuple[tuple[str, Colour, int], ...] = (
    ("road", (128, 64, 128), 7),
    ("sidewalk", (244, 35, 232), 8),
    ("building", (70, 70, 70), 11),
    ("wall", (102, 102, 156), 12),
    ("fence", (190, 153, 153), 13),
    ("pole", (153, 153, 153), 17),
    ("traffic light", (250, 170, 30), 19),
    ("traffic sign", (220, 220, 0), 20),
    ("vegetation", (107, 142, 35), 21),
    ("terrain", (152, 251, 152), 22),
    ("sky", (70, 130, 180), 23),
    ("person", (220, 20, 60), 24),
    ("rider", (255, 0, 0), 25),
    ("car", (0, 0, 142), 26),
    ("truck", (0, 0, 70), 27),
    ("bus", (0, 60, 100), 28),
    ("train", (0, 80, 100), 31),
    ("motorcycle", (0, 0, 230), 32),
    ("bicycle", (119, 11, 32), 33),
)
CITYSCAPES_IDS: dict[int, int] = {label_id: train_id for train_id, (_, _, label_id) in enumerate(_CITYSCAPES)}
"""Cityscapes (and GTA5) label id → train id of ``cityscapes19``."""

SYNTHIA_IDS: dict[int, int] = {
    3: 0, 4: 1, 2: 2, 21: 3, 5: 4, 7: 5, 15: 6, 9: 7, 6: 8, 1: 10, 10: 11, 17: 12, 8: 13, 19: 15, 12: 17, 11: 18,
}  # fmt: skip
"""SYNTHIA label id → train id of ``cityscapes19``; terrain, truck and train do not occur."""

CITYSCAPES19 = ClassSet(
    name="cityscapes19",
    names=tuple(name for name, _, _ in _CITYSCAPES),
    colours=tuple(colour for _, colour, _ in _CITYSCAPES),
    ids=CITYSCAPES_IDS,
    ignore=frozenset(range(34)) - frozenset(CITYSCAPES_IDS) | {IGNORE},
)


def _without(parent: ClassSet, name: str, *left_out: str) -> ClassSet:
    kept = [i for i, class_name in enumerate(parent.names) if class_name not in left_out]
    return ClassSet(
        name=name,
        names=tuple(parent.names[i] for i in kept),
        colours=tuple(parent.colours[i] for i in kept),
        ids={label_id: kept.index(train_id) for label_id, train_id in parent.ids.items() if train_id in kept},
        ignore=parent.ignore | {label_id for label_id, train_id in parent.ids.items() if train_id not in kept},
    )


def in_train_ids(classes: ClassSet) -> ClassSet:
    """A class set of Cityscapes label ids as it stands in label files of train ids, in the order of `CITYSCAPES19`."""
    ids = {train: classes.ids[label] for label, train in CITYSCAPES_IDS.items() if label in classes.ids}
    return replace(classes, ids=ids, ignore=frozenset(range(len(CITYSCAPES19))) - frozenset(ids) | {IGNORE})


_SIXTEEN = _without(CITYSCAPES19, "synthia16", "terrain", "truck", "train")
SYNTHIA13 = _without(_SIXTEEN, "synthia13", "wall", "fence", "pole")
# The convention for SYNTHIA: the mean over 13 classes of the same 16-class predictions stands beside the other.
SYNTHIA16 = replace(_SIXTEEN, subsets={"13": SYNTHIA13.names})
NAMED = {classes.name: classes for classes in (CITYSCAPES19, SYNTHIA16, SYNTHIA13)}
"""Class sets that are known by name; their `ids` are Cityscapes label ids."""


def load_class_set(name: str) -> ClassSet:
    """The class set of a name (``cityscapes19``, ``synthia16``, ``synthia13``) or of a YAML file.

    The file has ``names`` and ``colours`` (RGB), and optionally ``ids`` (value in a label file → class name or index;
    default: the index itself), ``ignore`` (values that become 255; 255 always does) and ``groups_of_cityscapes19``
    (class → the Cityscapes classes that fall into it) or, for a network with other classes, ``groups`` (class → its
    classes that fall into it). A class that the network does not know is in `names` and in no group.

    Raises:
        UserError: neither a known name nor a readable file, or the file contradicts itself.
    """
    if name in NAMED:
        return NAMED[name]
    path = expand_path(name)
    if not path.is_file():
        raise UserError(f"class set {name!r}: neither one of {', '.join(NAMED)} nor an existing YAML file")
    return _parse(name, read_yaml(path))


def _parse(path: str, content: Any) -> ClassSet:
    known = {"names", "colours", "ids", "ignore", *_GROUPS}
    if not isinstance(content, dict) or not {"names", "colours"} <= set(content):
        raise UserError(f"class set {path}: needs the keys `names` and `colours`")
    if unknown := set(content) - known:
        raise UserError(f"class set {path}: unknown keys {sorted(map(str, unknown))}; known are {sorted(known)}")
    names = _parse_names(path, _section(path, content, "names", list))
    colours = _parse_colours(path, _section(path, content, "colours", list), len(names))
    ignore = _parse_ignore(path, _section(path, content, "ignore", list))
    if content.get("ids") is None:
        ids = {index: index for index in range(len(names)) if index not in ignore}
    else:
        ids = _parse_ids(path, _section(path, content, "ids", dict), names)
    if both := ignore & set(ids):
        raise UserError(f"class set {path}: the values {sorted(both)} stand in `ids` and in `ignore` (255 always does)")
    if all(key in content for key in _GROUPS):
        raise UserError(f"class set {path}: `{_GROUPS[0]}` and `{_GROUPS[1]}` say the same thing; keep one")
    key = next((key for key in _GROUPS if key in content), _GROUPS[0])
    groups = _parse_groups(path, key, _section(path, content, key, dict), names)
    return ClassSet(path, names, colours, ids, ignore, groups)


def _section(path: str, content: Mapping[str, Any], key: str, kind: type[list[Any]] | type[dict[Any, Any]]) -> Any:
    value = content.get(key)
    if value is not None and not isinstance(value, kind):
        raise UserError(f"class set {path}: `{key}` must be a {'list' if kind is list else 'mapping'}, not {value!r}")
    return value or kind()


def _parse_names(path: str, names: Sequence[Any]) -> tuple[str, ...]:
    # Unquoted, YAML reads `no` and `off` as false.
    if wrong := [name for name in names if not isinstance(name, str)]:
        raise UserError(f"class set {path}: `names` must be text; put quotes around {wrong}")
    if len(set(names)) != len(names) or not 2 <= len(names) <= 254:
        raise UserError(f"class set {path}: `names` must hold 2 to 254 different names")
    return tuple(names)


def _parse_colours(path: str, colours: Sequence[Any], count: int) -> tuple[Colour, ...]:
    if len(colours) != count or not all(
        isinstance(colour, list) and len(colour) == 3 and all(_is_index(value, 256) for value in colour)
        for colour in colours
    ):
        raise UserError(f"class set {path}: `colours` must hold one [red, green, blue] (0-255) for each of `names`")
    return tuple((red, green, blue) for red, green, blue in colours)


def _parse_ignore(path: str, values: Sequence[Any]) -> frozenset[int]:
    if wrong := [value for value in values if not _is_index(value, 2**16)]:
        raise UserError(f"class set {path}: `ignore` must hold values of a label file, 0 to 65535, not {wrong}")
    return frozenset(values) | {IGNORE}


def _parse_ids(path: str, ids: Mapping[Any, Any], names: Sequence[str]) -> dict[int, int]:
    parsed = {}
    for value, target in ids.items():
        index = names.index(target) if target in names else target
        if not _is_index(value, 2**16) or not _is_index(index, len(names)):
            raise UserError(
                f"class set {path}: `ids` entry {value}: {target} is not `value: class name or index`, "
                f"with a value of 0 to 65535 and one of the {len(names)} classes"
            )
        parsed[value] = index
    return parsed


def _is_index(value: Any, end: int) -> bool:
    return type(value) is int and 0 <= value < end


def _parse_groups(path: str, key: str, groups: Mapping[Any, Any], names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    of_cityscapes = key == _GROUPS[0]
    if wrong := [group for group, members in groups.items() if not isinstance(members, list)]:
        raise UserError(f"class set {path}: `{key}` needs a list of {'Cityscapes ' * of_cityscapes}classes for {wrong}")
    members = [member for group in groups.values() for member in group]
    if wrong := [member for member in members if not isinstance(member, str)]:
        raise UserError(f"class set {path}: `{key}` must hold names of classes; put quotes around {wrong}")
    unknown = [group for group in groups if group not in names]
    unknown += [member for member in members if member not in CITYSCAPES19.names and of_cityscapes]
    if unknown:
        raise UserError(f"class set {path}: `{key}` names unknown classes {unknown}")
    if len(set(members)) != len(members):
        raise UserError(f"class set {path}: `{key}` puts a {'Cityscapes ' * of_cityscapes}class into two groups")
    return {group: tuple(members) for group, members in groups.items()}


def index_map(classes: ClassSet, into: ClassSet) -> Lookup:
    """Where each class of one set falls in another: (C,) uint8, 255 where it has no place.

    Sets of the same names are the same set. Otherwise classes meet by name or, where `into` has
    groups, by group.

    Raises:
        UserError: no class of the one has a place in the other, or the one is coarser: its labels cannot be refined.
    """
    if classes.names == into.names:  # one file may be known by two paths
        return np.arange(len(classes), dtype=np.uint8)
    if classes.groups:
        raise UserError(
            f"labels in the classes of {classes.name!r}, which are groups, cannot be read as {into.name!r}: set "
            f"--data.init_args.score_classes (to train a network: --data.init_args.classes) to {classes.name}"
        )
    place = {name: index for index, name in enumerate(into.names)}
    if into.groups:
        groups = into.groups.items()
        place = {member: into.names.index(group) for group, members in groups for member in members}
    mapped = np.array([place.get(name, IGNORE) for name in classes.names], dtype=np.uint8)
    if (mapped == IGNORE).all():
        raise UserError(
            f"class set {classes.name!r} has nothing in common with {into.name!r}: give {into.name!r} "
            "`groups_of_cityscapes19` or `groups`, or name the same class set in both places"
        )
    return mapped


def score_groups(classes: ClassSet, score_classes: ClassSet) -> Lookup | None:
    """The scored class of every class that a network predicts, or None where both sets are the same.

    A network on `classes` is scored on a coarser `score_classes` by adding up the probabilities of each group.

    Raises:
        UserError: some predicted class has no place among the scored ones: its probability would vanish.
    """
    if classes.names == score_classes.names:
        return None
    groups = index_map(classes, score_classes)
    if lost := [name for name, group in zip(classes.names, groups, strict=True) if group == IGNORE]:
        raise UserError(
            f"score_classes {score_classes.name!r} has no place for {', '.join(lost)} of {classes.name!r}: "
            "every predicted class must fall into one of its `groups_of_cityscapes19` (or `groups`)"
        )
    return groups
