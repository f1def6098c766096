import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from sfda.cli.main import main
from sfda.data.label_spaces import CITYSCAPES19
from sfda.data.readers import Domain, SegmentationSet
from sfda.errors import UserError
from sfda.losses.calibration import image_ece
from sfda.methods.cal_sfda import CalSFDA
from sfda.methods.kinds.value_net import load_value_net
from sfda.methods.source_training import SourceTraining
from sfda.methods.value_net_training import ValueNetTraining
from sfda.networks.value_net import ValueNet
from sfda.runs.experiment import resolve
from tiny_runs import NETWORK, tiny_arguments

TWO = ["--trainer.devices", "2", "--trainer.strategy", "ddp_fork"]


def loop_ece(p, y, bins=10, absent="skip"):
    """Class-averaged ECE of an image, p (C, H, W) and y (H, W), by loops over classes and bins; None unlabelled."""
    confidence, predicted = p.max(0), p.argmax(0)
    errors = []
    for c in range(len(p)):
        of_class, error = y == c, 0.0
        for m in range(bins):
            inside = of_class & (confidence > m / bins) & (confidence <= (m + 1) / bins)
            if inside.any():
                error += inside.sum() * abs((predicted[inside] == c).mean() - confidence[inside].mean())
        if of_class.any():
            errors.append(error / of_class.sum())
    if not errors:
        return None
    return np.sum(errors) / len(p) if absent == "zero" else np.mean(errors)


def random_batch(seed=0, images=4, classes=4):
    generator = torch.Generator().manual_seed(seed)
    return {
        "source": {
            "name": [str(i) for i in range(images)],
            "image": torch.rand(images, 3, 32, 32, generator=generator),
            "label": torch.randint(0, classes, (images, 32, 32), generator=generator),
        }
    }


def tiny_method(**options):
    torch.manual_seed(0)
    return ValueNetTraining(network=NETWORK, num_classes=4, **options)


def weights(path):
    return torch.load(path, weights_only=True)["state_dict"]


# --------------------------------------------------------------------- the loss


@pytest.mark.parametrize("absent", ["skip", "zero"])
@pytest.mark.parametrize("bins", [10, 3])
@pytest.mark.parametrize("unlabelled", [[], [1], [0, 3], [0, 1, 2]])
def test_the_loss_is_the_mean_over_labelled_images(unlabelled, bins, absent):
    method, batch = tiny_method(bins=bins, absent=absent).eval(), random_batch()
    batch["source"]["label"][:, :5] = 255
    batch["source"]["label"][batch["source"]["label"] == 2] = 1  # a class is absent
    batch["source"]["label"][unlabelled] = 255
    with torch.no_grad():
        method.network.head.weight *= 20  # confidences in all bins
        logits, features = method.network.forward_features(batch["source"]["image"])
        estimates = method.value_net(features).tolist()
    terms = []
    for i in range(4):
        truth = loop_ece(logits[i].double().softmax(0).numpy(), batch["source"]["label"][i].numpy(), bins, absent)
        if truth is not None:
            terms.append((estimates[i] - truth) ** 2)
    assert len(terms) == 4 - len(unlabelled)
    losses = method.compute_losses(batch)
    assert set(losses) == {"mse"}
    assert losses["mse"].item() == pytest.approx(np.mean(terms), abs=1e-6)


def test_a_batch_without_labels_is_zero_with_a_gradient():
    method, batch = tiny_method(), random_batch()
    batch["source"]["label"][:] = 255
    method.set_modes()
    loss = method.compute_losses(batch)["mse"]
    loss.backward()
    assert loss.item() == 0
    for parameter in method.value_net.parameters():
        assert torch.equal(parameter.grad, torch.zeros_like(parameter))


def test_the_segmenter_stands_still_in_a_step():
    method = tiny_method().train()
    before = {key: value.clone() for key, value in method.network.state_dict().items()}
    seen = method.value_net.norm.running_mean.clone()
    losses = []
    for _ in range(2):
        method.set_modes()
        losses.append(method.compute_losses(random_batch())["mse"])
        losses[-1].backward()
    assert losses[0] == losses[1]  # the network's dropout is off
    assert all(parameter.grad is None for parameter in method.network.parameters())
    assert all(parameter.grad.abs().sum() > 0 for parameter in method.value_net.parameters())
    for key, value in method.network.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert not torch.equal(method.value_net.norm.running_mean, seen)


class FakeTrainer:
    estimated_stepping_batches = 40
    num_training_batches = 10

    def __init__(self, accumulated):
        self.accumulate_grad_batches = accumulated


@pytest.mark.parametrize(("accumulated", "steps"), [(1, 10), (3, 4)])
def test_the_learning_rate_is_divided_by_the_root_of_two_every_epoch(accumulated, steps):
    method = tiny_method(lr=0.5)
    method._trainer = FakeTrainer(accumulated)
    configured = method.configure_optimizers()
    optimizer, schedule = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert trained == {id(p) for p in method.value_net.parameters()}
    for step in range(40):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0.5 / np.sqrt(2) ** (step // steps))
        optimizer.step()
        schedule.step()


@pytest.mark.medium
@pytest.mark.parametrize(("benchmark", "steps"), [("gta5", 6241), ("synthia", 2350)])
def test_the_published_benchmarks_schedule_reaches_the_level_of_the_truth(benchmark, steps):
    """Where features share nothing, so that the bias alone can learn it; a 100th of the steps at 100 times the lr."""
    config = resolve(f"{benchmark}_to_cityscapes/value_net_training").config
    method = tiny_method(lr=100 * config["model"]["init_args"]["lr"])
    method._trainer = SimpleNamespace(
        estimated_stepping_batches=30 * (steps // 100), num_training_batches=steps // 100, accumulate_grad_batches=1
    )
    configured, estimates = method.configure_optimizers(), []
    generator = torch.Generator().manual_seed(0)
    for _ in range(12 * (steps // 100)):  # the movement of the other 18 epochs is 1.5 % of that of all
        estimates.append(method.value_net(torch.randn(4, 16, 4, 4, generator=generator)))
        (estimates[-1] - 0.12).square().mean().backward()
        torch.nn.utils.clip_grad_norm_(method.value_net.parameters(), config["trainer"]["gradient_clip_val"])
        configured["optimizer"].step()
        configured["optimizer"].zero_grad()
        configured["lr_scheduler"]["scheduler"].step()
    first, last = (torch.cat(part).mean().item() for part in (estimates[:1], estimates[-20:]))
    assert first > 0.4
    assert last == pytest.approx(0.12, abs=0.02)


def test_bins_out_of_range_are_refused():
    with pytest.raises(UserError, match="bins"):
        tiny_method(bins=0)


# --------------------------------------------------------------------- a run


@pytest.mark.medium
def test_a_fit_keeps_the_source_model_and_reads_no_target(town, source_model, sfda, tmp_path, monkeypatch):
    averaged = []
    for module in ("sfda.methods.kinds.trained", "sfda.methods.value_net_training"):
        monkeypatch.setattr(f"{module}.average_running_statistics", averaged.append)
    alone = tmp_path / "town"
    shutil.copytree(town / "gta5", alone / "gta5")
    arguments = [*tiny_arguments("value_net_training", alone, source_model), "--trainer.max_epochs", 2]
    assert sfda("fit", *arguments, "--model.init_args.lr", 0.1, "--out", tmp_path / "run") == 0
    source, got = weights(source_model), weights(tmp_path / "run/selected.ckpt")
    assert {key for key in got if not key.startswith("value_net.")} == set(source)
    for key, value in source.items():
        assert torch.equal(got[key], value), key
    torch.manual_seed(0)
    assert not torch.equal(got["value_net.estimate.weight"], ValueNet(16).state_dict()["estimate.weight"])
    assert got["value_net.norm.num_batches_tracked"] == 4
    # the mean of three processes' equal statistics would be another one
    assert averaged
    assert all(isinstance(module, ValueNet) for module in averaged)

    header = (tmp_path / "run/metrics.csv").read_text().splitlines()[0].split(",")
    logged = {"source/estimated_ece", *(f"source/value_net_{n}" for n in ("pearson", "spearman", "mae", "true_ece"))}
    assert logged <= set(header)
    assert not [name for name in header if name.startswith("target/")]


@pytest.mark.medium
def test_it_learns(town, source_model, sfda, tmp_path):
    """Trained for longer, the estimates of unseen images come closer to their errors."""
    errors = []
    for epochs in (1, 10):
        arguments = [*tiny_arguments("value_net_training", town, source_model), "--trainer.max_epochs", epochs]
        arguments += ["--model.init_args.optimizer", "adamw", "--model.init_args.lr", 0.01]
        arguments += ["--trainer.check_val_every_n_epoch", epochs]
        assert sfda("fit", *arguments, "--out", tmp_path / str(epochs)) == 0
        assert sfda("validate", "--run", tmp_path / str(epochs)) == 0
        errors.append(json.loads((tmp_path / str(epochs) / "value_net.json").read_text())["source"]["mae"])
    assert errors[1] < 0.8 * errors[0]


def read(town, layout):
    """Validation names, images (N, 3, H, W) and labels (N, H, W)."""
    samples = SegmentationSet(Domain(layout, str(town / layout)), "val", True, CITYSCAPES19)
    pairs = [samples.read(i) for i in range(len(samples))]
    images = torch.from_numpy(np.stack([pair.image for pair in pairs]).transpose(0, 3, 1, 2)).float() / 255
    return [pair.name for pair in pairs], images, np.stack([pair.label for pair in pairs])


@pytest.fixture(scope="module")
def trained(town, source_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("value_net") / "run"
    arguments = [*tiny_arguments("value_net_training", town, source_model), "--model.init_args.lr", "0.1"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["sfda"])
        assert main(["fit", *arguments, "--out", str(folder)]) == 0
    return folder / "selected.ckpt"


@pytest.mark.medium
@pytest.mark.parametrize(("views", "absent"), [("single", "zero"), ("multi_scale", "skip")])
def test_the_report_says_every_estimate_and_truth(views, absent, town, trained, sfda, tmp_path, monkeypatch):
    """The estimate is that of the plain image, the truth that of the probabilities that are predicted."""
    from sfda.networks.segmenter import Segmenter

    passes = []
    forward = Segmenter.forward
    monkeypatch.setattr(Segmenter, "forward", lambda self, *a, **k: passes.append(1) or forward(self, *a, **k))
    arguments = [*tiny_arguments("value_net_training", town), "--model.init_args.views", views]
    arguments += ["--model.init_args.absent", absent]
    folder = tmp_path / "scored"
    assert sfda("validate", *arguments, "--ckpt_path", trained, "--out", folder) == 0
    monkeypatch.undo()
    # two domains, two batches each, all views of each: none is made twice; before, one pass that counts channels, and
    # one at each size that will be used
    assert len(passes) == (4 * 1 + 1 + 1 if views == "single" else 4 * 6 + 1 + 3)

    method = ValueNetTraining.load_from_checkpoint(trained, weights_only=True, views=views).eval()
    report = json.loads((folder / "value_net.json").read_text())
    assert set(report) == {"source", "target"}
    for domain, layout in (("source", "gta5"), ("target", "cityscapes")):
        names, images, labels = read(town, layout)
        with torch.no_grad():
            estimates = method.value_net(method.network.forward_features(images)[1]).double().numpy()
            probabilities = method.predict_probabilities(images).double().numpy()
        truths = np.array([loop_ece(p, y, absent=absent) for p, y in zip(probabilities, labels, strict=True)])
        rows = {row["name"]: (row["estimate"], row["truth"]) for row in report[domain]["images"]}
        assert list(rows) == sorted(names)
        np.testing.assert_allclose([rows[name] for name in names], np.stack([estimates, truths], 1), atol=1e-4)
        assert report[domain]["estimated_ece"] == pytest.approx(estimates.mean(), abs=1e-5)
        assert report[domain]["true_ece"] == pytest.approx(truths.mean(), abs=1e-4)
        assert report[domain]["mae"] == pytest.approx(np.abs(estimates - truths).mean(), abs=1e-4)
        assert report[domain]["pearson"] == pytest.approx(np.corrcoef(estimates, truths)[0, 1], abs=1e-2)
        assert (folder / f"value_net_{domain}.png").stat().st_size > 0


@pytest.mark.medium
def test_a_target_without_labels_has_estimates_alone(town, trained, sfda, tmp_path):
    alone = tmp_path / "town"
    shutil.copytree(town, alone)
    shutil.rmtree(alone / "cityscapes/gtFine")
    folder = tmp_path / "scored"
    arguments = [*tiny_arguments("value_net_training", alone), "--ckpt_path", trained, "--out", folder]
    assert sfda("validate", *arguments) == 0
    report = json.loads((folder / "value_net.json").read_text())["target"]
    assert set(report) == {"estimated_ece", "images"}
    assert [row["truth"] for row in report["images"]] == [None] * 6
    assert not (folder / "value_net_target.png").exists()
    assert (folder / "value_net_source.png").exists()


@pytest.mark.medium
def test_two_processes_report_what_one_does(town, trained, source_model, sfda, tmp_path):
    arguments = [*tiny_arguments("value_net_training", town), "--ckpt_path", trained]
    assert sfda("validate", *arguments, "--out", tmp_path / "one") == 0
    assert sfda("validate", *arguments, *TWO, "--out", tmp_path / "two") == 0
    one, two = (json.loads((tmp_path / name / "value_net.json").read_text()) for name in ("one", "two"))
    for domain in ("source", "target"):
        images = [report[domain].pop("images") for report in (one, two)]
        assert one[domain] == pytest.approx(two[domain], abs=1e-3)
        for first, second in zip(*images, strict=True):
            assert first["name"] == second["name"]
            assert first["estimate"] == pytest.approx(second["estimate"], abs=1e-5)
            assert first["truth"] == pytest.approx(second["truth"], abs=1e-4)

    fit = [*tiny_arguments("value_net_training", town, source_model), "--data.init_args.batch_size", 2]
    assert sfda("fit", *fit, *TWO, "--out", tmp_path / "fit") == 0
    got = weights(tmp_path / "fit/selected.ckpt")
    assert all(torch.equal(got[key], value) for key, value in weights(source_model).items())


# --------------------------------------------------------------------- whether it learnt anything


def fit(method, steps, resumed=False):
    """What a Trainer would call, on random images; gives the checkpoint."""
    method._trainer = SimpleNamespace(global_step=steps, is_global_zero=True)
    optimizer = torch.optim.AdamW(method.value_net.parameters(), method.lr)
    for step in range(steps):
        method.compute_losses(random_batch(step))["mse"].backward()
        optimizer.step()
        optimizer.zero_grad()
    checkpoint = {}
    method.on_save_checkpoint(checkpoint)
    if not resumed:
        method.on_train_end()
    return checkpoint


def wrong_by(error):
    """A method whose estimates are wrong by about this much at the start."""
    method = tiny_method(lr=0.0).train()
    method.set_modes()
    with torch.no_grad():
        batch = random_batch()["source"]
        truth = image_ece(method.network(batch["image"]).softmax(1), batch["label"]).mean()
        method.value_net.estimate.weight *= 0.01
        method.value_net.estimate.bias.fill_(torch.logit(truth + error))
    return method


def test_a_fit_whose_mean_estimate_stays_at_its_start_warns_once(recwarn):
    fit(wrong_by(0.3), 5)
    assert len(recwarn) == 1
    assert "has not learnt its level" in str(recwarn[0].message)
    assert "--model.init_args.lr" in str(recwarn[0].message)


def test_a_fit_that_learns_or_has_nothing_to_learn_does_not_warn(recwarn):
    method = wrong_by(0.3)
    method.lr = 0.05
    fit(method, 60)
    fit(wrong_by(0.01), 5)
    assert not recwarn


def test_a_resumed_fit_remembers_its_start(recwarn):
    method = wrong_by(0.3)
    method.lr = 0.05
    checkpoint = fit(method, 60, resumed=True)
    resumed = wrong_by(0.2)
    resumed.on_load_checkpoint(checkpoint)
    fit(resumed, 5)
    assert not recwarn


# --------------------------------------------------------------------- what other methods take from it


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """A source model's and a value net's checkpoint, as a Trainer would write them."""
    folder = tmp_path_factory.mktemp("checkpoints")
    for name, method in (("source", SourceTraining(network=NETWORK, num_classes=4)), ("value_net", tiny_method())):
        torch.save({"state_dict": method.state_dict(), "hyper_parameters": {}}, folder / name)
    return folder


def test_the_value_net_of_a_checkpoint_is_loaded(checkpoints):
    net = ValueNet(16)
    load_value_net(net, str(checkpoints / "value_net"))
    expected = tiny_method().value_net.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in net.state_dict().items())


def test_a_checkpoint_without_a_fitting_value_net_is_refused(checkpoints):
    with pytest.raises(UserError, match="value_net_training"):
        load_value_net(ValueNet(16), str(checkpoints / "source"))
    with pytest.raises(UserError, match="another network"):
        load_value_net(ValueNet(8), str(checkpoints / "value_net"))
    with pytest.raises(UserError, match="does not exist"):
        load_value_net(ValueNet(8), str(checkpoints / "nowhere"))


def test_a_value_net_that_has_learnt_another_ece_is_refused(tmp_path):
    method = tiny_method(absent="zero")
    torch.save({"state_dict": method.state_dict(), "hyper_parameters": dict(method.hparams)}, tmp_path / "zero")
    load_value_net(ValueNet(16), str(tmp_path / "zero"), "zero")
    with pytest.raises(UserError, match="absent zero"):
        load_value_net(ValueNet(16), str(tmp_path / "zero"))
    cal_sfda = CalSFDA(network=NETWORK, num_classes=4, source_checkpoint=str(tmp_path / "zero"))
    with pytest.raises(UserError, match="absent zero"):
        cal_sfda.initialise_from_source()


def test_probabilities_and_estimates_come_from_one_pass():
    method = tiny_method().eval()
    images = torch.rand(2, 3, 30, 45)
    with torch.no_grad():
        probabilities, estimates = method.probabilities_and_ece(images, (60, 90))
        torch.testing.assert_close(probabilities, method.predict_probabilities(images, (60, 90)))
        torch.testing.assert_close(estimates, method.value_net(method.network.forward_features(images)[1]))
