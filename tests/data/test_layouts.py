"""Names, splits and lists of the data sets, and folders that are not as they ought to be."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest

from sfda.data.errors import BadList, DuplicateName, EmptyFolder, MissingLabels, MissingRoot
from sfda.data.images import read_image
from sfda.data.label_spaces import CITYSCAPES19
from sfda.data.layouts import LAYOUTS, Domain
from sfda.data.pairs import read_pairs
from sfda.data.paths import files_below
from sfda.data.places import describe_other_files, has_label_folder, lacks_validation
from sfda.data.readers import SegmentationSet
from sfda.errors import UserError
from tiny_files import SIZE, save, write_acdc, write_cityscapes, write_folder, write_gta5, write_synthia

BLACK = np.zeros((*SIZE, 3), np.uint8)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(3)


def gta5(root: Path, rng: np.random.Generator) -> Domain:
    write_gta5(root, 2, rng)
    (root / "train.txt").write_text("00001\n00002")
    return Domain("gta5", str(root))


# ---------------------------------------------------------------- names, order, lists


def test_natural_order_any_case_and_hidden_files(tmp_path: Path) -> None:
    for name in ("b10.png", "b9.PNG", "a.jpeg", "b1.JPG", "2²x.jpg", "10.png", ".hidden.png", "._b9.png"):
        save(BLACK, tmp_path / "train/images" / name)
    (tmp_path / "train/images/notes.txt").write_text("not an image")
    pairs = read_pairs(Domain("folder", str(tmp_path)), "train", False)
    assert [pair.name for pair in pairs] == ["2²x", "10", "a", "b1", "b9", "b10"]


def test_a_name_twice_is_an_error(tmp_path: Path) -> None:
    save(BLACK, tmp_path / "train/images/a.png")
    save(BLACK, tmp_path / "train/images/a.jpg")
    with pytest.raises(DuplicateName, match=r"a\.jpg and .*a\.png have one name, 'a'"):
        read_pairs(Domain("folder", str(tmp_path)), "train", False)
    (tmp_path / "train/images/a.jpg").unlink()
    save(BLACK, tmp_path / "train/labels/a.png")
    save(BLACK, tmp_path / "train/labels/a.PNG")
    assert len(read_pairs(Domain("folder", str(tmp_path)), "train", False)) == 1
    with pytest.raises(DuplicateName, match="labels"):
        read_pairs(Domain("folder", str(tmp_path)), "train", True)


def test_split_by_hash_is_pinned_disjoint_and_about_a_tenth(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for number in range(1, 1001):
        (tmp_path / "images" / f"{number:05d}.png").touch()
    domain = Domain("gta5", str(tmp_path))
    train = [pair.name for pair in read_pairs(domain, "train", False)]
    val = [pair.name for pair in read_pairs(domain, "val", False)]
    assert sorted(train + val) == [f"{number:05d}" for number in range(1, 1001)]
    assert 70 <= len(val) <= 130
    assert val[:8] == PINNED_VAL
    for name in train[::2]:  # the place of a name depends on nothing but the name
        (tmp_path / "images" / f"{name}.png").unlink()
    assert [pair.name for pair in read_pairs(domain, "val", False)] == val


PINNED_VAL = ["00015", "00044", "00050", "00051", "00102", "00116", "00118", "00119"]  # sha256sum, first 16 bits < 6553


def test_lists_of_names(tmp_path: Path, rng) -> None:
    write_gta5(tmp_path / "g", 4, rng)
    (tmp_path / "mine.txt").write_text("\ufeff00003.png\n\n  images/00001.png \n", encoding="utf-8")
    (tmp_path / "g/val.txt").write_text("00004\n00002")
    domain = Domain("gta5", str(tmp_path / "g"), train_list=str(tmp_path / "mine.txt"))
    assert [pair.name for pair in read_pairs(domain, "train", True)] == ["00001", "00003"]
    assert [pair.name for pair in read_pairs(domain, "val", True)] == ["00002", "00004"]


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        ("00001\n00007\n00009", BadList, r"2 of 3 names have no image, the first being '00007'.*such as '00001'"),
        ("\n \n", BadList, "the list is empty.*such as 00001"),
        ("00001\n00002\n00001.png", DuplicateName, "names '00001' twice"),
        (b"\xff\xfe\x00", BadList, "cannot be read"),
    ],
)
def test_faults_of_lists(content: str | bytes, error: type[UserError], message: str, tmp_path: Path, rng) -> None:
    domain = gta5(tmp_path, rng)
    (tmp_path / "train.txt").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(error, match=message):
        read_pairs(domain, "train", False)


def test_a_list_for_one_split_only_does_not_mix_with_hashing(tmp_path: Path, rng) -> None:
    domain = gta5(tmp_path, rng)
    with pytest.raises(BadList, match=r"none for `val`.*set `val_list` or write .*val\.txt"):
        read_pairs(domain, "val", False)
    with pytest.raises(BadList, match=r"gone\.txt: the list of names cannot be read"):
        read_pairs(dataclasses.replace(domain, val_list=str(tmp_path / "gone.txt")), "val", False)


def test_an_empty_split_says_how_to_fill_it(tmp_path: Path, rng) -> None:
    write_gta5(tmp_path, 1, rng)
    with pytest.raises(EmptyFolder, match=r"the split `val` is empty; name its images in .*val\.txt"):
        read_pairs(Domain("gta5", str(tmp_path)), "val", False)


@pytest.mark.parametrize(
    "domain",
    [
        Domain("gta5", "x", classes="cityscapes19"),
        Domain("cityscapes", "x", train_list="a.txt"),
        Domain("folder", "x", val_list="a.txt"),
        Domain("synthia", "x", val_images="images"),
        Domain("synthia", "x", label_values="train_ids"),
    ],
)
def test_options_that_a_layout_does_not_have(domain: Domain) -> None:
    with pytest.raises(UserError, match=f"means nothing for the layout `{domain.layout}`"):
        read_pairs(domain, "train", False)


def test_unknown_layout() -> None:
    with pytest.raises(UserError, match="known layouts are gta5, synthia, cityscapes, folder") as told:
        read_pairs(Domain("mapillary", "x"), "train", False)
    assert "did you mean" not in str(told.value)
    with pytest.raises(UserError, match=r"layout 'cityscape': .* did you mean cityscapes\?"):
        read_pairs(Domain("cityscape", "x"), "train", False)


# ---------------------------------------------------------------- rows of the table


def test_acdc_holds_its_conditions_together_and_its_reference_images_apart(tmp_path: Path, rng) -> None:
    write_acdc(tmp_path, rng)
    domain = Domain("acdc", str(tmp_path))
    pairs = read_pairs(domain, "train", True)
    assert [pair.image.parent.relative_to(tmp_path).as_posix() for pair in pairs] == [
        "rgb_anon/night/train/GOPR0351",
        "rgb_anon/fog/train/GOPR0475",
        "rgb_anon/fog/train/GOPR0475",
    ]
    assert describe_other_files(domain, "train") == ""
    train_ids = read_pairs(dataclasses.replace(domain, label_values="train_ids"), "train", True)
    assert {pair.label.name.split("_gt_")[1] for pair in train_ids} == {"labelTrainIds.png"}
    missing = tmp_path / "gt/fog/train/GOPR0475/GOPR0475_frame_000041_gt_labelIds.png"
    missing.unlink()
    assert read_pairs(domain, "train", True)[1].label == missing, "named where it ought to be"
    shutil.rmtree(tmp_path / "gt")
    assert not has_label_folder(domain, "train")
    with pytest.raises(MissingLabels, match=r"gt/<condition>/train: no label .* such as .*/gt/fog/train/GOPR0475/"):
        read_pairs(domain, "train", True)
    assert not lacks_validation(domain)
    shutil.rmtree(tmp_path / "rgb_anon/fog/val")
    assert not lacks_validation(domain)
    shutil.rmtree(tmp_path / "rgb_anon/snow/val")
    assert lacks_validation(domain)
    shutil.rmtree(tmp_path / "rgb_anon")
    with pytest.raises(MissingRoot, match="rgb_anon/<condition>/train: no such folder"):
        read_pairs(domain, "train", False)


def test_a_layout_of_somebody_else_is_named_by_its_dotted_path(tmp_path: Path, monkeypatch, rng) -> None:
    (tmp_path / "their_layouts.py").write_text(
        "from sfda.data.label_spaces import ClassSet\n"
        "from sfda.data.layouts import Layout\n"
        "classes = ClassSet('two', ('road', 'sky'), ((1, 2, 3), (4, 5, 6)), {3: 0, 4: 1}, frozenset({0}))\n"
        "lists = ('train_list', 'val_list')\n"
        "theirs = Layout('seq/<drive>/{split}/*_left', 'truth/{split}/<drive>/*_ids', classes, lists)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    save(BLACK, tmp_path / "d/seq/a/train/1_left.jpg")
    save(BLACK, tmp_path / "d/seq/b/train/2_left.png")
    save(np.full(SIZE, 4, np.uint8), tmp_path / "d/truth/train/b/2_ids.png")
    (tmp_path / "d/train.txt").write_text("2")
    domain = Domain("their_layouts.theirs", str(tmp_path / "d"))
    samples = SegmentationSet(domain, "train", True, CITYSCAPES19)
    assert [pair.name for pair in samples.pairs] == ["2"], "split by the list"
    assert (samples.read(0).label == CITYSCAPES19.names.index("sky")).all()
    (tmp_path / "d/train.txt").write_text("1\n2")
    assert read_pairs(domain, "train", True)[0].label == tmp_path / "d/truth/train/a/1_ids.png"
    with pytest.raises(UserError, match=r"`label_values` means nothing for the layout `their_layouts\.theirs`"):
        read_pairs(dataclasses.replace(domain, label_values="train_ids"), "train", False)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nobody_has_this.layout", "cannot be imported .*: give `package.module.name`"),
        ("sfda.data.layouts.nothing", "cannot be imported"),
        ("..a", "cannot be imported"),
        ("sfda.data.layouts.Domain", "is no sfda.data.layouts.Layout, but a type"),
    ],
)
def test_a_dotted_path_that_is_no_layout(name: str, message: str) -> None:
    with pytest.raises(UserError, match=f"layout '{name}' {message}"):
        read_pairs(Domain(name, "x"), "train", False)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"images": "images"}, "'images' must end like images/"),
        ({"labels": "labels/*_ids.png"}, "must end like .* without a type"),
        ({"images": "{city}/*"}, r"'\{city\}/\*': .*only \{split\}, \{images\} and \{labels\}"),
        ({"labels": "labels/<city>/*"}, "'labels/<city>/\\*': <city> is not in the pattern of the images"),
        ({"options": ("lists",)}, r"unknown options \['lists'\]; known are classes, label_values, train_list"),
    ],
)
def test_a_row_with_a_mistake_is_refused_where_it_is_written(row: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        dataclasses.replace(LAYOUTS["bdd100k"], **row)


# ---------------------------------------------------------------- fog and rain

FOG = ["leftImg8bit_foggy_beta_0.005", "leftImg8bit_foggy_beta_0.01", "leftImg8bit_foggy_beta_0.02"]
RAIN = ["leftImg8bit_rain_alpha_0.01_beta_0.005_dropsize_0.01_pattern_1"]


def in_weather(root: Path, folder: str, versions: list[str], rng: np.random.Generator) -> None:
    """One frame of Cityscapes with its label, the image in some versions."""
    write_cityscapes(root, 1, 0, rng)
    (clean,) = (root / "leftImg8bit/train/aachen").iterdir()
    clean.unlink()
    (root / "leftImg8bit").rename(root / folder)
    for version in versions:
        save(BLACK, root / folder / f"train/aachen/aachen_000000_000019_{version}.png")


@pytest.mark.parametrize(
    ("folder", "versions"),
    [("leftImg8bit", FOG), ("leftImg8bit_foggy", FOG), ("leftImg8bit_foggyDBF", FOG), ("leftImg8bit_rain", RAIN)],
)
def test_cityscapes_in_fog_and_rain(folder: str, versions: list[str], tmp_path: Path, rng) -> None:
    in_weather(tmp_path, folder, versions, rng)
    pairs = read_pairs(Domain("cityscapes", str(tmp_path)), "train", True)
    assert sorted(pair.name for pair in pairs) == [f"aachen_000000_000019_{version}" for version in versions]
    assert [pair.image for pair in pairs] == [
        tmp_path / folder / "train/aachen" / f"{pair.name}.png" for pair in pairs
    ], "every version is an image"
    label = tmp_path / "gtFine/train/aachen/aachen_000000_000019_gtFine_labelIds.png"
    assert {pair.label for pair in pairs} == {label}
    label.rename(tmp_path / "elsewhere.png")
    with pytest.raises(MissingLabels, match=f"such as {label}"):
        read_pairs(Domain("cityscapes", str(tmp_path)), "train", True)


def test_the_clean_images_come_first_and_two_weathers_are_not_mixed(tmp_path: Path, rng) -> None:
    domain = Domain("cityscapes", str(tmp_path))
    in_weather(tmp_path, "leftImg8bit_foggy", FOG, rng)
    (tmp_path / "leftImg8bit_rain").mkdir()
    with pytest.raises(UserError, match="holds leftImg8bit_foggy and leftImg8bit_rain; give each a root of its own"):
        read_pairs(domain, "train", False)
    write_cityscapes(tmp_path, 1, 0, rng)
    assert [pair.name for pair in read_pairs(domain, "train", False)] == ["aachen_000000_000019"]


def test_names_in_fog_mean_nothing_to_other_layouts(tmp_path: Path) -> None:
    name = f"aachen_000000_000019_{FOG[0]}.png"
    save(BLACK, tmp_path / "train/images" / name)
    save(BLACK, tmp_path / "train/labels" / name)
    (pair,) = read_pairs(Domain("folder", str(tmp_path)), "train", True)
    assert pair.label == tmp_path / "train/labels" / name


# ---------------------------------------------------------------- folders at fault


@pytest.mark.parametrize("layout", LAYOUTS)
def test_missing_root_names_the_way_out(layout: str, tmp_path: Path) -> None:
    with pytest.raises(MissingRoot, match=r"gone: no such folder; set `root`.*sfda data streets --out DIR"):
        read_pairs(Domain(layout, str(tmp_path / "gone")), "train", False)
    with pytest.raises(MissingRoot, match=r"images are expected there$"):
        read_pairs(Domain(layout, str(tmp_path)), "train", False)


def test_root_that_points_too_deep(tmp_path: Path, rng) -> None:
    write_cityscapes(tmp_path, 1, 1, rng)
    with pytest.raises(MissingRoot, match=f"set `root` to its parent {tmp_path}$"):
        read_pairs(Domain("cityscapes", str(tmp_path / "leftImg8bit")), "train", False)
    (tmp_path / "leftImg8bit").rename(tmp_path / "leftImg8bit_foggy")
    with pytest.raises(MissingRoot, match=f"set `root` to its parent {tmp_path}$"):
        read_pairs(Domain("cityscapes", str(tmp_path / "leftImg8bit_foggy")), "train", False)


def test_root_that_points_too_high(tmp_path: Path, rng) -> None:
    write_synthia(tmp_path / "RAND_CITYSCAPES", 1, rng)
    with pytest.raises(MissingRoot, match=f"set `root` to {tmp_path / 'RAND_CITYSCAPES'}, or"):
        read_pairs(Domain("synthia", str(tmp_path)), "train", False)


def test_gta5_parts_that_were_not_merged(tmp_path: Path, rng) -> None:
    write_gta5(tmp_path / "01_images", 1, rng)
    with pytest.raises(MissingRoot, match=f"found {tmp_path / '01_images/images'}.*move the files"):
        read_pairs(Domain("gta5", str(tmp_path)), "train", False)
    (tmp_path / "01_images").rename(tmp_path / "images")
    (tmp_path / "images/images").rename(tmp_path / "images/01_images")
    (tmp_path / "images/labels").rename(tmp_path / "labels")
    with pytest.raises(EmptyFolder, match=f"no image .*are they in {tmp_path / 'images/01_images'}"):
        read_pairs(Domain("gta5", str(tmp_path)), "train", False)


def test_empty_folders(tmp_path: Path) -> None:
    save(BLACK, tmp_path / "leftImg8bit/train/aachen/without_suffix.png")
    expected = r"no image <city>/\*_leftImg8bit \(\.png, .*; .*/without_suffix\.png is there: .* `layout: folder`"
    with pytest.raises(EmptyFolder, match=expected):
        read_pairs(Domain("cityscapes", str(tmp_path)), "train", False)
    (tmp_path / "train/images").mkdir(parents=True)
    with pytest.raises(EmptyFolder, match="train/images: no image"):
        read_pairs(Domain("folder", str(tmp_path)), "train", False)


def test_no_labels_at_all(tmp_path: Path, rng) -> None:
    write_cityscapes(tmp_path, 2, 0, rng)
    for path in tmp_path.glob("gtFine/train/*/*_labelIds.png"):
        path.unlink()
    with pytest.raises(
        MissingLabels,
        match=r"such as .*/train/aachen/aachen_000000_000019_gtFine_labelIds\.png; 2 \*_gtFine_labelTrainIds\.png are "
        "there: `label_values: train_ids` of the domain reads them",
    ):
        read_pairs(Domain("cityscapes", str(tmp_path)), "train", True)
    save(BLACK, tmp_path / "f/train/images/a.jpg")
    save(BLACK, tmp_path / "f/train/labels/a.jpg")
    with pytest.raises(MissingLabels, match=r"labels are PNG files with .*/a\.png$"):
        read_pairs(Domain("folder", str(tmp_path / "f")), "train", True)


# ---------------------------------------------------------------- paths, links, types


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_a_tilde_is_the_home_folder_wherever_a_domain_names_a_path(home: Path, rng) -> None:
    write_gta5(home / "g", 2, rng)
    (home / "mine.txt").write_text("00002")
    domain = Domain("gta5", "~/g", train_list="~/mine.txt", val_list="~/mine.txt")
    assert [pair.image for pair in read_pairs(domain, "train", True)] == [home / "g/images/00002.png"]
    write_folder(home / "f", 1, rng)
    mixed = Domain("folder", "~/g", val_images="~/f/val/images", val_labels="~/f/val/labels")
    assert [pair.name for pair in read_pairs(mixed, "val", True)] == ["val_0"]
    assert has_label_folder(mixed, "val")
    assert not has_label_folder(mixed, "train")
    with pytest.raises(UserError, match="~nobody-at-all/g: there is no such home folder"):
        read_pairs(Domain("gta5", "~nobody-at-all/g"), "train", False)


def test_files_below_follow_links_and_end_in_loops(tmp_path: Path) -> None:
    for name in ("disk/a/1.png", "disk/b/2.png", "tree/3.png", "tree/.hidden/4.png", "tree/out/5.png"):
        save(BLACK, tmp_path / name)
    (tmp_path / "tree/a").symlink_to(tmp_path / "disk/a")
    (tmp_path / "disk/a/up").symlink_to(tmp_path / "tree")
    (tmp_path / "tree/itself").symlink_to("itself")
    (tmp_path / "tree/gone.png").symlink_to("nowhere.png")
    (tmp_path / "tree/9.png").symlink_to(tmp_path / "disk/b/2.png")
    found = [path.relative_to(tmp_path / "tree").as_posix() for path in files_below(tmp_path / "tree")]
    assert found == ["3.png", "9.png", "gone.png", "itself", "a/1.png", "out/5.png"]
    flat = files_below(tmp_path / "tree", levels=0, without=tmp_path / "tree/out")
    assert [path.name for path in flat] == ["3.png", "9.png", "gone.png", "itself"]


def test_a_link_to_a_folder_above_brings_in_none_of_its_other_folders(tmp_path: Path) -> None:
    for name in ("train/2.png", "val/1.png"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    (tmp_path / "val/up").symlink_to(tmp_path)
    assert list(files_below(tmp_path / "val")) == [tmp_path / "val/1.png"]


def test_cities_may_be_links(tmp_path: Path, rng) -> None:
    write_cityscapes(tmp_path / "disk", 2, 0, rng)
    (tmp_path / "c/leftImg8bit/train").mkdir(parents=True)
    for city in ("aachen", "bremen"):
        (tmp_path / "c/leftImg8bit/train" / city).symlink_to(tmp_path / "disk/leftImg8bit/train" / city)
    (tmp_path / "c/leftImg8bit/train/aachen/loop").symlink_to(tmp_path / "c/leftImg8bit/train")
    (tmp_path / "c/gtFine").symlink_to(tmp_path / "disk/gtFine")
    pairs = read_pairs(Domain("cityscapes", str(tmp_path / "c")), "train", True)
    assert [pair.name for pair in pairs] == ["aachen_000000_000019", "bremen_000001_000019"]
    assert all(pair.label and pair.label.is_file() for pair in pairs)


def test_every_type_that_is_decoded_is_listed_and_the_rest_is_named(tmp_path: Path) -> None:
    images = tmp_path / "train/images"
    for number, ending in enumerate((".png", ".JPG", ".jpeg", ".tif", ".TIFF", ".bmp", ".WebP")):
        save(BLACK, images / f"{number}{ending}")
    for name in ("a.gif", "b.GIF", "LICENSE", "notes.txt", ".hidden.gif"):
        (images / name).write_bytes(b"")
    domain = Domain("folder", str(tmp_path))
    pairs = read_pairs(domain, "train", False)
    assert [pair.name for pair in pairs] == list("0123456")
    assert all((read_image(pair.image) == 0).all() for pair in pairs)
    assert describe_other_files(domain, "train") == (
        f"4 files are left out (.gif: 2, .txt: 1, no ending: 1), for example {images}/LICENSE; "
        "images are .png, .jpg, .jpeg, .tif, .tiff, .bmp, .webp"
    )
    assert describe_other_files(domain, "val") == ""


def test_images_of_cityscapes_with_another_name_or_place_are_named(tmp_path: Path, rng) -> None:
    write_cityscapes(tmp_path, 1, 1, rng)
    domain = Domain("cityscapes", str(tmp_path))
    assert describe_other_files(domain, "train") == ""
    save(BLACK, tmp_path / "leftImg8bit/train/stray_leftImg8bit.png")
    save(BLACK, tmp_path / "leftImg8bit/train/aachen/other.png")
    assert len(read_pairs(domain, "train", False)) == 1
    text = describe_other_files(domain, "train")
    assert text.startswith(f"2 files are left out (.png: 2), for example {tmp_path}/leftImg8bit/train/stray")
    assert text.endswith(".webp named <city>/*_leftImg8bit")


def test_a_target_lacks_validation_where_only_training_images_are_and_nothing_was_named(tmp_path: Path, rng) -> None:
    domain = Domain("folder", str(tmp_path))
    assert not lacks_validation(domain)  # nothing at all
    save(BLACK, tmp_path / "train/images/a.png")
    assert lacks_validation(domain)
    assert not lacks_validation(dataclasses.replace(domain, val_images="vla"))
    (tmp_path / "val/images").mkdir(parents=True)
    assert not lacks_validation(domain)  # an empty folder is a mistake
    write_cityscapes(tmp_path / "c", 1, 0, rng)
    assert lacks_validation(Domain("cityscapes", str(tmp_path / "c")))
    assert not lacks_validation(gta5(tmp_path / "g", rng))
