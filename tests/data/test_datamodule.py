import shutil
import warnings

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer

from sfda.data.datamodule import DomainAdaptationDataModule
from sfda.data.datasets import collate
from sfda.data.errors import BadPair, EmptyFolder, MissingRoot
from sfda.data.needs import Needs
from sfda.data.readers import Domain
from sfda.errors import UserError
from sfda.progress import no_progress
from tiny_files import save, write_folder


class Reader(torch.nn.Module):
    """What the DataModule looks at in a method."""

    def __init__(self, needs):
        super().__init__()
        self.needs = needs
        self.pseudo_labels = None
        self.show_progress = no_progress


def data_module(town, needs, **options):
    options = {"crop": [24, 48], "batch_size": 4, "num_workers": 0, **options}
    data = DomainAdaptationDataModule(
        target=Domain("cityscapes", str(town / "cityscapes")), source=Domain("gta5", str(town / "gta5")), **options
    )
    data.trainer = Trainer(logger=False, accelerator="cpu", enable_progress_bar=False)
    data.trainer.strategy._lightning_module = Reader(needs)
    return data


@pytest.mark.parametrize(
    ("needs", "keys", "validation"),
    [
        (Needs(source="labels"), {"source": True}, ("source", True)),
        (Needs(target="images"), {"target": False}, ("target", False)),
        (Needs(target="labels"), {"target": True}, ("target", True)),
        (Needs(source="labels", target="images"), {"source": True, "target": False}, ("target", False)),
    ],
)
def test_a_batch_holds_what_is_declared_and_nothing_else(town, needs, keys, validation):
    data = data_module(town, needs)
    data.setup("fit")
    loaders = data.train_dataloader()
    assert set(loaders) == set(keys)
    for domain, labelled in keys.items():
        batch = next(iter(loaders[domain]))
        expected = {"name", "skipped", "image", "valid"} | ({"label"} if labelled else set())
        assert set(batch) == expected
        assert batch["image"].shape == (4, 3, 24, 48)
    name, labelled = validation
    assert list(data.validation_sets) == [name]
    assert ("label" in next(iter(data.val_dataloader()[0]))) == labelled


def test_strong_view_only_for_who_wants_it(town):
    data = data_module(town, Needs(target="images", view="weak_and_strong"))
    data.setup("fit")
    assert next(iter(data.train_dataloader()["target"]))["strong"].shape == (4, 3, 24, 48)


def test_plain_images_are_whole_and_untouched(town):
    data = data_module(town, Needs(target="images", view="plain"))
    data.setup("fit")
    batch = next(iter(data.train_dataloader()["target"]))
    names = [pair.name for pair in data.training_sets["target"].pairs]
    for name, image in zip(batch["name"], batch["image"], strict=True):
        stored = data.training_sets["target"].read(names.index(name)).image
        np.testing.assert_array_equal(image.numpy().transpose(1, 2, 0), stored)


def test_a_fit_that_reads_nothing_is_told_to_declare_its_needs(town):
    with pytest.raises(UserError, match=r"Reader reads nothing.*`needs = Needs\(target=\"images\"\)`"):
        data_module(town, Needs()).setup("fit")


def test_plain_batches_are_those_of_a_split_in_order_or_its_first_images_on_every_rank(town, monkeypatch):
    data = data_module(town, Needs(source="labels", target="images"), val_batch_size=4)
    data.setup("fit")
    names = {
        "train": [pair.name for pair in data.training_sets["target"].pairs],
        "val": [pair.name for pair in data.validation_sets["target"].pairs],
    }

    def passed(**options):
        return [
            name for batch in data.plain_batches("target", torch.device("cpu"), **options) for name in batch["name"]
        ]

    assert passed() == names["train"]
    assert passed(split="val") == names["val"]
    assert passed(split="val", first=5) == names["val"][:5]
    assert passed(split="val", first=100) == names["val"]
    monkeypatch.setattr(data, "_world", lambda: (2, 1))
    assert passed(split="val") == names["val"][1::2]
    assert passed(split="val", first=5) == names["val"][:5]


def test_validate_scores_both_domains_or_says_which_is_missing(town, tmp_path):
    data = data_module(town, Needs(target="images"))
    data.setup("validate")
    assert list(data.validation_sets) == ["target", "source"]
    data.domains["source"] = Domain("gta5", str(tmp_path / "gone"))
    with pytest.warns(UserWarning, match="gone does not exist: the source domain is not scored"):
        data.setup("validate")
    assert list(data.validation_sets) == ["target"]


def test_training_images_stand_in_for_validation_images_where_no_label_is_read(town, tmp_path):
    (tmp_path / "c/leftImg8bit").mkdir(parents=True)
    (tmp_path / "c/leftImg8bit/train").symlink_to(town / "cityscapes/leftImg8bit/train")
    (tmp_path / "c/gtFine").symlink_to(town / "cityscapes/gtFine")

    def set_up(stage, needs):
        data = data_module(town, needs)
        data.domains = {"source": None, "target": Domain("cityscapes", str(tmp_path / "c"))}
        if not needs.source_free:
            data.domains["source"] = Domain("gta5", str(town / "gta5"))
        data.setup(stage)
        return data.validation_sets

    for stage, message in (("fit", "the fit is watched on its 16"), ("validate", "only label-free scores, of its 16")):
        with pytest.warns(UserWarning, match=f"no validation images in .*leftImg8bit/val: {message} training images"):
            (samples,) = set_up(stage, Needs(target="images")).values()
        assert (len(samples), samples.with_labels) == (16, False)
        for needs in (Needs(target="labels"), Needs(source="labels", target="images")):
            with pytest.raises(MissingRoot, match="leftImg8bit/val: no such folder"):
                set_up(stage, needs)
    (tmp_path / "c/leftImg8bit/val").mkdir()
    with pytest.raises(EmptyFolder, match="leftImg8bit/val: no image"):
        set_up("fit", Needs(target="images"))


def test_validate_finds_a_source_in_the_home_folder(town, monkeypatch):
    monkeypatch.setenv("HOME", str(town))
    data = data_module(town, Needs(target="images"))
    data.domains["source"] = Domain("gta5", "~/gta5")
    data.setup("validate")
    assert list(data.validation_sets) == ["target", "source"]


def test_labels_that_look_like_train_ids_are_told_once_to_who_reads_them(town, tmp_path):
    shutil.copytree(town / "gta5", tmp_path / "gta5")
    shutil.copytree(town / "cityscapes", tmp_path / "cityscapes")
    for path in (tmp_path / "gta5/labels").iterdir():
        save(np.arange(24 * 48, dtype=np.uint8).reshape(24, 48) % 19, path)
    data = data_module(tmp_path, Needs(source="labels"))
    with pytest.warns(UserWarning, match="gta5: the label files look as if they held train ids") as told:
        data.setup("fit")
    assert len({str(warning.message) for warning in told}) == 1, "Python shows one text once"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data_module(tmp_path, Needs(source="images", target="labels")).setup("fit")
        data_module(town, Needs(source="labels")).setup("fit")


def test_images_become_floats_and_labels_integers_on_the_device(town):
    data = data_module(town, Needs(source="labels"))
    data.setup("fit")
    batch = next(iter(data.train_dataloader()["source"]))
    moved = data.on_after_batch_transfer({"source": batch}, 0)["source"]
    assert moved["image"].dtype == torch.float32
    assert moved["label"].dtype == torch.int64
    torch.testing.assert_close(moved["image"] * 255, batch["image"].float())


def test_an_epoch_is_the_same_whoever_draws_it(town, monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "5")

    def images(**options):
        data = data_module(town, Needs(target="images"), **options)
        data.setup("fit")
        return torch.cat([batch["image"] for batch in data.train_dataloader()["target"]])

    first = images()
    assert torch.equal(first, images(num_workers=2))
    monkeypatch.setenv("PL_GLOBAL_SEED", "6")
    assert not torch.equal(first, images())


def test_coarser_classes_are_scored_in_groups(town, tmp_path):
    path = tmp_path / "coarse.yaml"
    names = data_module(town, Needs()).classes.names
    path.write_text(
        "names: [ground, rest]\ncolours: [[1, 2, 3], [4, 5, 6]]\n"
        f"groups_of_cityscapes19: {{ground: [road, sidewalk, terrain], rest: {list(set(names) - {'road', 'sidewalk', 'terrain'})}}}\n"  # noqa: E501
    )
    data = data_module(town, Needs(target="images"), score_classes=str(path))
    assert data.score_groups.tolist() == [0, 0, 1, 1, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1]
    data.setup("validate")
    labels = next(iter(data.val_dataloader()[0]))["label"]
    assert set(labels.unique().tolist()) <= {0, 1, 255}


def test_mixed_sizes_are_explained(tmp_path):
    write_folder(tmp_path / "mine", 4, np.random.default_rng(0))
    items = [
        {"name": name, "image": torch.zeros(3, *size), "valid": torch.ones(size)}
        for name, size in (("a", (4, 6)), ("b", (5, 6)))
    ]
    with pytest.raises(UserError, match=r"a \(4, 6\), b \(5, 6\).*size"):
        collate(items)


def test_bad_pairs_are_skipped_and_listed_unless_nothing_is_left():
    good = {"name": "a", "image": torch.zeros(3, 2, 2), "valid": torch.ones(2, 2)}
    fault = BadPair("b", "b.png", "cut off")
    batch = collate([good, fault])
    assert batch["name"] == ["a"]
    assert batch["image"].shape[0] == 1
    assert batch["skipped"] == ["b: b.png: cut off"]
    assert collate([fault, fault]) == {"name": [], "skipped": ["b: b.png: cut off"] * 2}


def test_a_worker_hands_a_bad_pair_on(town, tmp_path):
    shutil.copytree(town / "cityscapes", tmp_path / "cityscapes")
    for image in sorted((tmp_path / "cityscapes/leftImg8bit/train").rglob("*.png"))[:2]:
        image.write_bytes(b"no picture")
    data = data_module(tmp_path, Needs(target="images"), num_workers=1)
    data.setup("fit")
    batches = list(data.train_dataloader()["target"])
    assert sum(len(batch["skipped"]) for batch in batches) == 2
    assert sum(len(batch["name"]) for batch in batches) == 14
