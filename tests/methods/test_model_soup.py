"""Two networks from one start, their mean, and the size at which they see images."""

import json

import pytest
import torch
from torch.nn.functional import interpolate

import sfda.callbacks.fit_verdict as fit_verdict
from sfda.errors import UserError
from sfda.judging.models import source_method
from sfda.judging.verdict import Verdict
from sfda.methods.auto import Auto
from sfda.methods.model_soup import ModelSoup
from sfda.networks.normalisation import affine_parameters
from sfda.runs.run import Run
from sfda.search.candidates import SOURCE, Candidate, Scored
from tiny_runs import NETWORK, tiny_arguments, watched

TWO = ["--trainer.devices", "2", "--trainer.strategy", "ddp_fork", "--data.init_args.batch_size", "2"]
CLASSES = 5


def make_method(scale=1.0, **options):
    torch.manual_seed(0)
    method = ModelSoup(network=NETWORK, num_classes=CLASSES, **options)
    for network in (method.start.module, method.distilled, method.sharpened):
        if network is not None:
            network.load_state_dict(method.network.state_dict())
    method.input_scale = scale
    return method.eval()


def make_batch(size=(16, 24)):
    generator = torch.Generator().manual_seed(1)
    weak, strong = (torch.rand(2, 3, *size, generator=generator) for _ in range(2))
    valid = torch.ones(2, *size, dtype=torch.bool)
    valid[0, :5] = False
    return {"target": {"image": weak, "strong": strong, "valid": valid, "name": ["a", "b"]}}


def logits_at(network, images, factor):
    size = images.shape[-2:]
    seen = [round(side * factor) for side in size]
    images = images if factor == 1 else interpolate(images, size=seen, mode="bilinear", antialias=True)
    return interpolate(network(images), size=size, mode="bilinear")


@pytest.mark.parametrize("scale", [1.0, 1.5])
def test_the_losses_are_what_they_are_said_to_be(scale):
    method, batch = make_method(scale), make_batch()
    target = batch["target"]
    got = method.compute_losses(batch)
    with torch.no_grad():
        views = []
        for factor in (0.75, 1, 1.25):
            for mirrored in (False, True):
                images = target["image"].flip(-1) if mirrored else target["image"]
                seen = [round(side * factor * scale) for side in images.shape[-2:]]
                images = (
                    images if factor * scale == 1 else interpolate(images, size=seen, mode="bilinear", antialias=True)
                )
                p = interpolate(method.start(images), size=(16, 24), mode="bilinear").softmax(1)
                views.append(p.flip(-1) if mirrored else p)
        labels = torch.stack(views).mean(0)
        z = logits_at(method.distilled, target["strong"], scale)
        valid = target["valid"]
        expected = -(labels * z.log_softmax(1)).sum(1)[valid].mean()
        torch.testing.assert_close(got["views"], expected, rtol=1e-4, atol=1e-5)
        p = z.softmax(1).movedim(1, -1)[valid]
        infomax = torch.special.entr(p.mean(0)).sum() - torch.special.entr(p).sum(1).mean()
        torch.testing.assert_close(got["infomax"], -0.3 * infomax, rtol=1e-4, atol=1e-5)
        q = logits_at(method.sharpened, target["image"], scale).softmax(1).movedim(1, -1)[valid]
        entropy, predicted = torch.special.entr(q).sum(1), q.argmax(1)
        means = [entropy[predicted == label].mean() for label in predicted.unique()]
        torch.testing.assert_close(got["entropy"], torch.stack(means).mean(), rtol=1e-4, atol=1e-5)


def test_what_trains_is_one_network_and_the_others_scale_and_shift():
    method = make_method()
    first, second = method.trainable_parameters()
    assert [id(p) for p in first["params"]] == [id(p) for p in method.distilled.parameters()]
    assert [id(p) for p in second["params"]] == [id(p) for p in affine_parameters(method.sharpened)]
    assert (second["lr"], "lr" in first) == (5e-4, False)
    method.train()
    method.set_modes()
    assert not any(module.training for module in method.modules())


def test_a_network_without_normalisation_has_one_network():
    none = {"network": "tiny_network.build_without_normalisation", "num_classes": CLASSES}
    with pytest.raises(UserError, match="no normalisation layer with scale and shift: give 0"):
        ModelSoup(**none)
    method = ModelSoup(**none, normalisation_lr=0)
    assert len(method.trainable_parameters()) == 1
    assert set(method.compute_losses(make_batch())) == {"views", "infomax"}


@pytest.mark.parametrize("options", [{"infomax_weight": -1}, {"normalisation_lr": -1}, {"share": 2}])
def test_bad_values_are_refused(options):
    with pytest.raises(UserError, match="model option"):
        make_method(**options)


def state(path):
    return torch.load(path, weights_only=True)["state_dict"]


@pytest.fixture
def chosen(town, source_model, sfda, tmp_path, monkeypatch):
    """A run of Auto that has chosen another size and other statistics."""
    order = [SOURCE, Candidate(1.5, 0.5)]

    def score(self, candidate, batches, advance):
        self._use(candidate)
        return Scored(candidate, order.index(candidate) / 10 if candidate in order else 0.0, 0.0, 19, 0.0)

    monkeypatch.setattr(Auto, "_score", score)
    assert sfda("fit", *tiny_arguments("auto", town, source_model), "--out", tmp_path / "auto") == 0
    return tmp_path / "auto"


def fit(sfda, town, source, folder, *more):
    return sfda("fit", *tiny_arguments("model_soup", town, source), "--out", folder, *more)


def say(word):
    return lambda *_, **__: Verdict(word, ("so it is said",))


@pytest.mark.medium
def test_the_mean_of_both_at_the_size_of_the_start(chosen, town, sfda, tmp_path, monkeypatch, recwarn):
    monkeypatch.setattr(fit_verdict, "judge_without_labels", say("better"))
    run, start = tmp_path / "run", chosen / "selected.ckpt"
    assert fit(sfda, town, start, run, "--trainer.max_epochs", 2) == 0
    assert not [each for each in recwarn.list if "times their size" in str(each.message)]
    began, last, kept = state(start), state(run / "last.ckpt"), state(run / "selected.ckpt")
    moved = 0
    for key, value in began.items():
        name = key.removeprefix("network.")
        if "running_" in key:
            assert torch.equal(last[key], value)
            assert torch.equal(kept[key], value)
        elif value.is_floating_point():
            mean = (last[f"distilled.{name}"] + last[f"sharpened.{name}"]) / 2
            torch.testing.assert_close(last[key], mean)
            torch.testing.assert_close(kept[key], (value + mean) / 2)
            moved += not torch.equal(kept[key], value)
            assert torch.equal(last[f"start.module.{name}"], value)
    assert moved > 3
    assert json.loads((run / "selection.json").read_text())["share"] == 0.5
    method = ModelSoup.load_from_checkpoint(run / "selected.ckpt", weights_only=True).eval()
    assert method.input_scale == 1.5
    assert sfda("validate", "--run", run) == 0  # scores what is kept, not the mean again
    scored = state(run / "selected.ckpt")
    assert all(torch.equal(value, scored[key]) for key, value in kept.items())


@pytest.mark.medium
def test_what_validate_scores_is_what_is_kept(town, source_model, sfda, tmp_path, monkeypatch):
    monkeypatch.setattr(fit_verdict, "judge_without_labels", say("better"))
    run = tmp_path / "run"
    more = ["--model.init_args.lr", 0.1, "--model.init_args.views", "single"]
    assert fit(sfda, town, source_model, run, *more) == 0
    kept, scored = state(run / "selected.ckpt"), {}

    def keep(trainer, method):
        scored.update({key: value.clone() for key, value in method.state_dict().items()})

    with watched("on_validation_end", keep):
        assert sfda("validate", "--run", run) == 0
    assert all(torch.equal(value, scored[key]) for key, value in kept.items())


@pytest.mark.medium
def test_where_it_is_called_worse_the_start_is_kept_at_its_size(chosen, town, sfda, tmp_path, monkeypatch):
    monkeypatch.setattr(fit_verdict, "judge_without_labels", say("worse"))
    assert fit(sfda, town, chosen / "selected.ckpt", tmp_path / "run", "--model.init_args.views", "single") == 0
    kept = ModelSoup.load_from_checkpoint(tmp_path / "run/selected.ckpt", weights_only=True).eval()
    source = source_method(Run(tmp_path / "run").model(), 19)
    images = torch.rand(1, 3, 32, 64)
    with torch.no_grad():
        assert source.input_scale == 1.5
        torch.testing.assert_close(kept.predict_probabilities(images), source.predict_probabilities(images))


@pytest.mark.medium
def test_two_processes_hold_the_same(town, source_model, sfda, tmp_path, ranks_at_fit_end):
    assert fit(sfda, town, source_model, tmp_path / "run", *TWO, "--model.init_args.share", "auto") == 0
    one, other = ranks_at_fit_end()
    for key, value in one["state"].items():
        assert torch.equal(value, other["state"][key]), key
