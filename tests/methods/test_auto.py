import json

import pytest
import torch
from torch.nn.functional import interpolate

from sfda.errors import UserError
from sfda.methods.auto import Auto
from sfda.methods.source_only import SourceOnly
from sfda.methods.temperature_scaling import TemperatureScaling
from sfda.methods.tent import Tent
from sfda.search.candidates import SOURCE, Candidate, Scored
from tiny_runs import NETWORK, tiny_arguments

pytestmark = pytest.mark.medium

TWO = ["--trainer.devices", "2", "--trainer.strategy", "ddp_fork"]
WHOLE = ["--data.init_args.samples_per_epoch", 16, "--data.init_args.batch_size", 8]


def fit(sfda, town, source, folder, *more):
    assert sfda("fit", *tiny_arguments("auto", town, source), *WHOLE, "--out", folder, *more) == 0
    return torch.load(folder / "selected.ckpt", weights_only=True), json.loads((folder / "auto.json").read_text())


def preferring(monkeypatch, *candidates):
    """Candidates are tried as they are, but these score the more the later they stand."""
    order = [SOURCE, *candidates]

    def score(self, candidate, batches, advance):
        self._use(candidate)
        return Scored(candidate, order.index(candidate) / 10 if candidate in order else 0.0, 0.0, 19, 0.0)

    monkeypatch.setattr(Auto, "_score", score)


def test_every_candidate_is_reported_with_its_score_and_the_best_is_taken(town, source_model, sfda, tmp_path, capsys):
    checkpoint, report = fit(sfda, town, source_model, tmp_path / "run")
    rows = [row for step in report["steps"] for row in step["candidates"]]
    assert rows[0]["candidate"] == "size x 1"
    for row in rows:
        assert row["score"] == pytest.approx(row["agreement"] + row["infomax"] / torch.tensor(19.0).log().item())
        assert 0 <= row["agreement"] <= 1
        assert row["seconds"] > 0
    assert report["chosen"]["score"] >= max(row["score"] for row in rows) - 0.01  # little less, where hardly better
    assert checkpoint["input_scale"] == report["chosen"]["scale"]
    assert (tmp_path / "run/auto.png").stat().st_size > 0
    said = capsys.readouterr().out
    assert f"chosen: {report['chosen']['candidate']}" in said
    assert [line for line in said.splitlines() if line.startswith("statistics, finer")]


def test_what_is_chosen_is_what_ada_bn_does_with_this_share(town, source_model, sfda, tmp_path, monkeypatch):
    preferring(monkeypatch, Candidate(1.0, 0.5), Candidate(1.0, 0.75))
    checkpoint, report = fit(sfda, town, source_model, tmp_path / "run")
    assert report["chosen"]["candidate"] == "size x 1, α 0.75"
    arguments = [*tiny_arguments("ada_bn", town, source_model), *WHOLE, "--model.init_args.alpha", 0.75]
    assert sfda("fit", *arguments, "--out", tmp_path / "ada_bn") == 0
    expected = torch.load(tmp_path / "ada_bn/selected.ckpt", weights_only=True)["state_dict"]
    for key, value in expected.items():
        torch.testing.assert_close(checkpoint["state_dict"][key], value, rtol=1e-3, atol=1e-5)  # images in 8 bits


def test_the_source_model_is_kept_where_nothing_scores_more(town, source_model, sfda, tmp_path, monkeypatch, capsys):
    preferring(monkeypatch)
    checkpoint, _ = fit(sfda, town, source_model, tmp_path / "run")
    source = torch.load(source_model, weights_only=True)["state_dict"]
    assert all(torch.equal(checkpoint["state_dict"][key], value) for key, value in source.items())
    assert checkpoint["input_scale"] == 1.0
    assert "nothing scores more than the source model" in capsys.readouterr().out


def test_colours_are_corrected_in_the_network_itself(town, source_model, sfda, tmp_path, monkeypatch):
    preferring(monkeypatch, Candidate(1.0, 0.5), Candidate(1.0, 0.5, 1.0))
    checkpoint, _ = fit(sfda, town, source_model, tmp_path / "run")
    source = torch.load(source_model, weights_only=True)["state_dict"]
    for name in ("network.mean", "network.std", "network.network.backbone.1.running_mean"):
        assert not torch.equal(checkpoint["state_dict"][name], source[name])


def test_the_network_sees_images_at_the_size_that_was_chosen(town, source_model, sfda, tmp_path, monkeypatch):
    preferring(monkeypatch, Candidate(1.5, 0.5), Candidate(1.75, 0.5), Candidate(2.0, 0.5))
    fit(sfda, town, source_model, tmp_path / "run")
    images = torch.rand(1, 3, 32, 48)
    single, averaged = (
        Auto.load_from_checkpoint(tmp_path / "run/selected.ckpt", weights_only=True, views=views).eval()
        for views in ("single", "multi_scale")
    )

    def by_hand(size, mirrored):
        view = interpolate(images, size=size, mode="bilinear", antialias=True)
        logits = single.network(view.flip(3) if mirrored else view)
        probabilities = interpolate(logits, size=(32, 48), mode="bilinear").softmax(1)
        return probabilities.flip(3) if mirrored else probabilities

    sizes = ((48, 72), (64, 96), (80, 120))
    with torch.no_grad():
        torch.testing.assert_close(single.predict_probabilities(images), by_hand((64, 96), False))
        views = [by_hand(size, mirrored) for size in sizes for mirrored in (False, True)]
        torch.testing.assert_close(averaged.predict_probabilities(images), torch.stack(views).mean(0))


def test_what_starts_from_its_network_alone_is_warned_and_what_wraps_it_keeps_the_size(
    town, source_model, sfda, tmp_path, monkeypatch, recwarn
):
    preferring(monkeypatch, Candidate(1.5, 0.5))
    fit(sfda, town, source_model, tmp_path / "run")
    start = {"network": NETWORK, "num_classes": 19, "source_checkpoint": str(tmp_path / "run/selected.ckpt")}
    recwarn.clear()
    calibrated = TemperatureScaling(**start)
    calibrated.initialise_from_source()
    assert calibrated.calibrated.input_scale == 1.5
    assert not recwarn.list
    with pytest.warns(UserWarning, match=r"saw images at 1.5 times their size, which Tent does not do by itself"):
        Tent(**start).initialise_from_source()
    recwarn.clear()
    source = SourceOnly(**start).eval()
    source.initialise_from_source()
    assert source.input_scale == 1.5
    auto = Auto.load_from_checkpoint(tmp_path / "run/selected.ckpt", weights_only=True, views="single").eval()
    images = torch.rand(1, 3, 32, 64)
    with torch.no_grad():
        assert torch.equal(source.predict_probabilities(images), auto.predict_probabilities(images))
    assert not recwarn.list


def test_two_processes_choose_the_same(town, source_model, sfda, tmp_path, ranks_at_fit_end):
    fit(sfda, town, source_model, tmp_path / "run", *TWO)
    one, other = ranks_at_fit_end()
    for key, value in one["state"].items():
        assert torch.equal(value, other["state"][key]), key


def test_a_folder_without_a_readable_image_is_refused(town, source_model, sfda, tmp_path, capsys):
    import shutil

    shutil.copytree(town, tmp_path / "town")
    for image in (tmp_path / "town/cityscapes/leftImg8bit/train").rglob("*.png"):
        image.write_bytes(image.read_bytes()[:-40])
    arguments = tiny_arguments("auto", tmp_path / "town", source_model)
    assert sfda("fit", *arguments, "--out", tmp_path / "run") == 2
    assert "no target training image could be read" in capsys.readouterr().err


def test_a_checkpoint_that_does_not_say_the_size_is_refused():
    method = Auto(network="tiny_network.build", num_classes=5)
    for scale in ({}, {"input_scale": 0.0}, {"input_scale": "1.5"}, {"input_scale": float("nan")}):
        with pytest.raises(UserError, match="does not say at which size"):
            method.on_load_checkpoint({"global_step": 0, **scale})


def test_no_images_to_score_on_are_refused():
    with pytest.raises(UserError, match="scored_images: at least 1, not 0"):
        Auto(network="tiny_network.build", num_classes=5, scored_images=0)
