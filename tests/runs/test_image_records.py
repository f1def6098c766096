"""What a run keeps of its images: numbers equal to its scores, and pictures."""

import json
import zipfile

import numpy as np
import pytest
import torch

from sfda.data.label_spaces import CITYSCAPES19
from sfda.data.readers import Domain, SegmentationSet
from sfda.errors import UserError
from sfda.judging.bootstrap import mean_iou
from sfda.methods.source_only import SourceOnly
from sfda.runs.image_records import NAME, Records, draw_pictures, label_map, read_records, rgb
from tiny_runs import NETWORK, tiny_arguments

TWO = ["--trainer.devices", "2", "--trainer.strategy", "ddp_fork"]


@pytest.mark.medium
@pytest.mark.parametrize("devices", [[], TWO], ids=["one process", "two processes"])
def test_the_records_of_a_scored_run_add_up_to_its_scores(devices, town, source_model, sfda, tmp_path):
    arguments = tiny_arguments("source_only", town, source_model)
    assert sfda("validate", *arguments, *devices, "--out", tmp_path / "run") == 0
    row, records = json.loads((tmp_path / "run/result.json").read_text()), read_records(tmp_path / "run")
    samples = SegmentationSet(Domain("cityscapes", str(town / "cityscapes")), "val", True, CITYSCAPES19)
    pairs = sorted((samples.read(i) for i in range(len(samples))), key=lambda pair: pair.name)
    assert records.names == [pair.name for pair in pairs]
    assert mean_iou(records.confusion.sum(0).astype(float)) == pytest.approx(row["target_miou"], abs=1e-6)
    assert records.entropy.mean() == pytest.approx(row["target_entropy"], abs=1e-6)
    count, confidence, correct = records.bins.reshape(3, 15, -1).sum(-1)
    assert np.abs(confidence - correct).sum() / count.sum() == pytest.approx(row["target_ece"], abs=1e-6)

    method = SourceOnly(network=NETWORK, num_classes=19, source_checkpoint=str(source_model)).eval()
    method.initialise_from_source()
    images = torch.from_numpy(np.stack([pair.image for pair in pairs]).transpose(0, 3, 1, 2).copy()).float() / 255
    with torch.no_grad():
        predicted = method.predict_probabilities(images).argmax(1).numpy()
    for place, pair in enumerate(pairs):
        pictures = records.pictures[pair.name]
        assert (label_map(pictures["prediction"]) == predicted[place]).mean() > 0.999
        assert np.array_equal(label_map(pictures["truth"]), pair.label)
        assert np.abs(rgb(pictures["image"]).astype(int) - pair.image).mean() < 12  # a JPEG
        known = pair.label != 255
        hits = np.diagonal(records.confusion[place]).sum()
        assert hits == pytest.approx((predicted[place] == pair.label)[known].sum(), abs=3)


def test_large_panels_are_made_small_and_label_maps_keep_their_classes():
    truth = np.repeat(np.arange(6, dtype=np.uint8)[:, None] % 3, 2000, axis=1).repeat(200, axis=0)
    truth[:198] = 255  # no multiple of what one small pixel stands for
    pictures = draw_pictures({"prediction": truth, "truth": truth}, CITYSCAPES19)
    small = label_map(pictures["truth"])
    assert small.shape == (288, 480)
    assert set(np.unique(small)) == {0, 1, 2, 255}
    assert tuple(rgb(pictures["truth"])[60, 0]) == CITYSCAPES19.colours[1]


def test_records_without_labels_and_damaged_ones(tmp_path):
    assert read_records(tmp_path) is None
    Records({"road": (1, 2, 3)}, ["a"], None, np.ones((1, 3)), np.array([0.5])).write(tmp_path / NAME)
    again = read_records(tmp_path)
    assert again.classes == {"road": (1, 2, 3)}
    assert (again.names, again.confusion, again.bins, again.pictures) == (["a"], None, None, {})
    content = (tmp_path / NAME).read_bytes()
    (tmp_path / NAME).write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"images_target.zip is damaged .*sfda validate --run"):
        read_records(tmp_path)
    with zipfile.ZipFile(tmp_path / NAME, "w"):
        pass
    with pytest.raises(UserError, match="is damaged"):
        read_records(tmp_path)
