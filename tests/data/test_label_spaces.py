"""Class sets against the facts of the data sets, and how one set turns into another."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from sfda.data.label_spaces import (
    CITYSCAPES19,
    CITYSCAPES_IDS,
    SYNTHIA13,
    SYNTHIA16,
    SYNTHIA_IDS,
    ClassSet,
    index_map,
    load_class_set,
    score_groups,
)
from sfda.errors import UserError

NAMES = [
    "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation", "terrain",
    "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle",
]  # fmt: skip
GROUPS = {
    "flat": ["road", "sidewalk"],
    "object": ["pole", "traffic light", "traffic sign"],
    "nature": ["vegetation", "terrain"],
    "building": ["building", "wall", "fence"],
    "sky": ["sky"],
    "human": ["person", "rider"],
    "vehicle": ["car", "truck", "bus", "train", "motorcycle", "bicycle"],
}
COARSE: dict[str, Any] = {
    "names": list(GROUPS),
    "colours": [[10 * i, 0, 255] for i in range(7)],
    "groups_of_cityscapes19": GROUPS,
}
COARSE_OF_CITYSCAPES = [0, 0, 3, 3, 3, 1, 1, 1, 2, 2, 4, 5, 5, 6, 6, 6, 6, 6, 6]


def load(tmp_path: Path, content: Any) -> ClassSet:
    path = tmp_path / "classes.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content), encoding="utf-8")
    return load_class_set(str(path))


# ---------------------------------------------------------------- known sets


def test_cityscapes_is_the_standard_19() -> None:
    assert list(CITYSCAPES19.names) == NAMES
    assert (
        dict(zip([7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33], range(19), strict=True))
        == CITYSCAPES_IDS
    )
    assert sorted([*CITYSCAPES19.ids, *CITYSCAPES19.ignore]) == [*range(34), 255]
    assert CITYSCAPES19.colours[0] == (128, 64, 128)
    assert CITYSCAPES19.colours[13] == (0, 0, 142)
    assert len(set(CITYSCAPES19.colours)) == 19


@pytest.mark.parametrize(
    ("label_id", "name"),
    [
        (1, "sky"), (2, "building"), (3, "road"), (4, "sidewalk"), (5, "fence"), (6, "vegetation"), (7, "pole"),
        (8, "car"), (9, "traffic sign"), (10, "person"), (11, "bicycle"), (12, "motorcycle"), (15, "traffic light"),
        (17, "rider"), (19, "bus"), (21, "wall"),
    ],
)  # fmt: skip
def test_synthia_ids_by_the_names_of_its_documentation(label_id: int, name: str) -> None:
    assert NAMES[SYNTHIA_IDS[label_id]] == name
    assert len(SYNTHIA_IDS) == 16


@pytest.mark.parametrize(
    ("classes", "left_out"),
    [
        (SYNTHIA16, ["terrain", "truck", "train"]),
        (SYNTHIA13, ["terrain", "truck", "train", "wall", "fence", "pole"]),
    ],
)
def test_synthia_sets_are_cityscapes_with_classes_left_out(classes: ClassSet, left_out: list[str]) -> None:
    kept = [name for name in NAMES if name not in left_out]
    assert list(classes.names) == kept
    assert len(classes) == len(classes.colours) == 19 - len(left_out)
    for name, colour in zip(classes.names, classes.colours, strict=True):
        assert colour == CITYSCAPES19.colours[NAMES.index(name)]
    for label_id, index in classes.ids.items():
        assert kept[index] == NAMES[CITYSCAPES_IDS[label_id]]
    assert sorted([*classes.ids, *classes.ignore]) == [*range(34), 255]


def test_sets_by_name() -> None:
    assert load_class_set("cityscapes19") is CITYSCAPES19
    assert load_class_set("synthia16") is SYNTHIA16
    assert load_class_set("synthia13") is SYNTHIA13
    with pytest.raises(UserError, match="'cityscapes': neither one of cityscapes19, synthia16, synthia13 nor an exis"):
        load_class_set("cityscapes")


# ---------------------------------------------------------------- YAML files


def test_a_file_with_names_and_colours_alone(tmp_path: Path) -> None:
    classes = load(tmp_path, {"names": ["a", "b"], "colours": [[0, 0, 0], [1, 2, 255]]})
    assert classes.names == ("a", "b")
    assert classes.colours == ((0, 0, 0), (1, 2, 255))
    assert classes.ids == {0: 0, 1: 1}
    assert classes.ignore == {255}
    assert classes.groups == {}
    assert classes.name == str(tmp_path / "classes.yaml")


def test_ids_by_name_and_index(tmp_path: Path) -> None:
    content = {"names": ["a", "b"], "colours": [[0] * 3] * 2, "ids": {65535: "b", 7: 0, 8: "a"}, "ignore": [0, 1]}
    classes = load(tmp_path, content)
    assert classes.ids == {65535: 1, 7: 0, 8: 0}
    assert classes.ignore == {0, 1, 255}


def test_ignored_values_have_no_default_id(tmp_path: Path) -> None:
    classes = load(tmp_path, {"names": ["a", "void"], "colours": [[0] * 3] * 2, "ignore": [1]})
    assert classes.ids == {0: 0}
    assert classes.ignore == {1, 255}


TWO = {"names": ["a", "b"], "colours": [[0, 0, 0], [1, 1, 1]]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("names: [a, b", "cannot be read as YAML"),
        ("just text", "needs the keys `names` and `colours`"),
        ({"names": ["a", "b"]}, "needs the keys `names` and `colours`"),
        (TWO | {"colors": []}, r"unknown keys \['colors'\]; known are"),
        (TWO | {"names": "ab"}, "`names` must be a list, not 'ab'"),
        (TWO | {"names": ["a", "a"]}, "2 to 254 different names"),
        ({"names": ["a"], "colours": [[0, 0, 0]]}, "2 to 254 different names"),
        ({"names": [f"c{i}" for i in range(255)], "colours": [[0, 0, 0]] * 255}, "2 to 254 different names"),
        ("names: [off, b]\ncolours: [[0, 0, 0], [1, 1, 1]]", r"must be text; put quotes around \[False\]"),
        (TWO | {"colours": [[0, 0, 0]]}, r"one \[red, green, blue\]"),
        (TWO | {"colours": [[0, 0, 0], [0, 0, 256]]}, r"one \[red, green, blue\]"),
        (TWO | {"colours": [[0, 0, 0], [0, 0]]}, r"one \[red, green, blue\]"),
        (TWO | {"colours": [0, 1]}, r"one \[red, green, blue\]"),
        (TWO | {"ids": [0, 1]}, "`ids` must be a mapping"),
        (TWO | {"ids": {"a": 7}}, "`ids` entry a: 7 is not"),
        (TWO | {"ids": {7: "c"}}, "`ids` entry 7: c is not"),
        (TWO | {"ids": {7: 2}}, "one of the 2 classes"),
        (TWO | {"ids": {7: -1}}, "`ids` entry 7: -1 is not"),
        (TWO | {"ids": {-1: "a"}}, "`ids` entry -1: a is not"),
        (TWO | {"ids": {65536: "a"}}, "with a value of 0 to 65535"),
        (TWO | {"ids": {3: "a"}, "ignore": [3]}, r"the values \[3\] stand in `ids` and in `ignore`"),
        (TWO | {"ids": {255: "a"}}, r"the values \[255\] stand in"),
        (TWO | {"ignore": 3}, "`ignore` must be a list, not 3"),
        (TWO | {"ignore": [-1, "x"]}, r"0 to 65535, not \[-1, 'x'\]"),
        (TWO | {"groups_of_cityscapes19": ["a"]}, "`groups_of_cityscapes19` must be a mapping"),
        (TWO | {"groups_of_cityscapes19": {"a": "sky"}}, r"needs a list of Cityscapes classes for \['a'\]"),
        (TWO | {"groups_of_cityscapes19": {"c": ["sky"]}}, r"unknown classes \['c'\]"),
        (TWO | {"groups_of_cityscapes19": {"sky": ["sky"]}}, r"unknown classes \['sky'\]"),
        (TWO | {"groups_of_cityscapes19": {"a": ["a", "sky"]}}, r"unknown classes \['a'\]"),
        (TWO | {"groups_of_cityscapes19": {"a": ["sky"], "b": ["sky"]}}, "puts a Cityscapes class into two groups"),
    ],
)
def test_faults_of_yaml_files(content: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load(tmp_path, content)
    assert str(tmp_path / "classes.yaml") in str(caught.value)


def test_a_class_file_may_be_in_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    load(tmp_path, TWO)
    assert load_class_set("~/classes.yaml").names == ("a", "b")


def test_a_binary_file_is_no_class_set(tmp_path: Path) -> None:
    (tmp_path / "classes.yaml").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(UserError, match="cannot be read as YAML"):
        load_class_set(str(tmp_path / "classes.yaml"))


# ---------------------------------------------------------------- from one set to another


def test_index_map_by_name() -> None:
    gone = {9, 14, 16}
    expected = [255 if i in gone else i - sum(g < i for g in gone) for i in range(19)]
    mapped = index_map(CITYSCAPES19, SYNTHIA16)
    assert mapped.dtype == np.uint8
    assert mapped.tolist() == expected
    assert index_map(SYNTHIA16, CITYSCAPES19).tolist() == [i for i in range(19) if i not in gone]
    assert index_map(SYNTHIA16, SYNTHIA16).tolist() == list(range(16))


def test_index_map_by_group(tmp_path: Path) -> None:
    coarse = load(tmp_path, COARSE)
    assert index_map(CITYSCAPES19, coarse).tolist() == COARSE_OF_CITYSCAPES
    assert index_map(SYNTHIA13, coarse).tolist() == [
        COARSE_OF_CITYSCAPES[NAMES.index(name)] for name in SYNTHIA13.names
    ]


def test_index_map_of_a_group_left_out(tmp_path: Path) -> None:
    coarse = load(tmp_path, COARSE | {"groups_of_cityscapes19": {k: v for k, v in GROUPS.items() if k != "sky"}})
    expected = [255 if name == "sky" else COARSE_OF_CITYSCAPES[i] for i, name in enumerate(NAMES)]
    assert index_map(CITYSCAPES19, coarse).tolist() == expected


def test_one_file_under_two_paths_is_one_set(tmp_path: Path) -> None:
    """By groups alone, its own classes would have no place in it."""
    one = load(tmp_path, COARSE)
    shutil.copy(tmp_path / "classes.yaml", tmp_path / "copy.yaml")
    other = load_class_set(str(tmp_path / "copy.yaml"))
    assert index_map(one, other).tolist() == list(range(7))
    assert score_groups(one, other) is None


def test_sets_with_nothing_in_common(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has nothing in common with .*give .*`groups_of_cityscapes19` or `groups`"):
        index_map(CITYSCAPES19, load(tmp_path, TWO))


def test_score_groups(tmp_path: Path) -> None:
    coarse = load(tmp_path, COARSE)
    assert score_groups(CITYSCAPES19, CITYSCAPES19) is None
    groups = score_groups(CITYSCAPES19, coarse)
    assert groups is not None
    assert groups.tolist() == COARSE_OF_CITYSCAPES
    with pytest.raises(UserError, match="has no place for terrain, truck, train of 'cityscapes19'"):
        score_groups(CITYSCAPES19, SYNTHIA16)
    with pytest.raises(UserError, match="which are groups, cannot be read as"):
        score_groups(coarse, CITYSCAPES19)


def test_groups_of_a_network_with_classes_of_its_own(tmp_path):
    network = ClassSet("fields", ("soil", "wheat", "weed"), ((0, 0, 0), (1, 1, 1), (2, 2, 2)), {0: 0, 1: 1, 2: 2})
    scored = load(
        tmp_path,
        TWO
        | {"names": ["ground", "plant", "machine"], "colours": [[0, 0, 0]] * 3}
        | {"groups": {"ground": ["soil"], "plant": ["wheat", "weed"]}},
    )  # no network class is a machine
    np.testing.assert_array_equal(score_groups(network, scored), [0, 1, 1])
    lost = load(tmp_path, TWO | {"groups": {"a": ["soil"], "b": ["wheat"]}})
    with pytest.raises(UserError, match="no place for weed"):
        score_groups(network, lost)
    with pytest.raises(UserError, match="say the same thing"):
        load(tmp_path, TWO | {"groups": {}, "groups_of_cityscapes19": {}})
    with pytest.raises(UserError, match="`groups` puts a class into two groups"):
        load(tmp_path, TWO | {"groups": {"a": ["soil"], "b": ["soil"]}})
