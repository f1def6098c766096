"""What training does beside the losses: schedules, frozen parameters, BatchNorm, ImageNet weights."""

import json
import re

import numpy as np
import pytest
import torch

from sfda.losses.cross_entropy import cross_entropy
from sfda.methods.source_training import SourceTraining
from sfda.methods.target_oracle import TargetOracle
from sfda.networks.build import build_network
from tiny_runs import NETWORK, tiny_arguments


def test_cross_entropy_is_the_mean_over_labelled_pixels():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 5, 3, 4, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 5, (2, 3, 4), generator=generator)
    labels[0, 1] = 255
    terms = [
        np.log(np.exp(logits[b, :, y, x].numpy()).sum()) - logits[b, labels[b, y, x], y, x].item()
        for b in range(2)
        for y in range(3)
        for x in range(4)
        if labels[b, y, x] != 255
    ]
    assert cross_entropy(logits, labels).item() == pytest.approx(np.mean(terms), abs=1e-12)


def test_cross_entropy_of_nothing_is_zero_with_a_gradient():
    logits = torch.randn(1, 3, 2, 2, requires_grad=True)
    loss = cross_entropy(logits, torch.full((1, 2, 2), 255))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_alpha_adds_the_weighted_calibration_error():
    batch = {
        "source": {"image": torch.rand(2, 3, 16, 16), "label": torch.randint(0, 4, (2, 16, 16)), "name": ["a", "b"]}
    }
    torch.manual_seed(0)
    plain = SourceTraining(alpha=0.0, network=NETWORK, num_classes=4).eval()
    torch.manual_seed(0)
    weighted = SourceTraining(alpha=2.5, network=NETWORK, num_classes=4).eval()
    assert set(plain.compute_losses(batch)) == {"ce"}
    losses = weighted.compute_losses(batch)
    assert losses["ce"] == plain.compute_losses(batch)["ce"]
    from sfda.losses.calibration import classwise_ece

    expected = 2.5 * classwise_ece(weighted(batch["source"]["image"]).softmax(1), batch["source"]["label"])
    torch.testing.assert_close(losses["ece"], expected)


class FakeTrainer:
    estimated_stepping_batches = 100


@pytest.mark.parametrize(("warmup", "power"), [(0, 0.9), (10, 0.9), (10, 0.0)])
def test_the_learning_rate_warms_up_and_decays_on_all_parameters(warmup, power):
    method = TargetOracle(lr=0.5, warmup_steps=warmup, poly_power=power, network=NETWORK, num_classes=4)
    method._trainer = FakeTrainer()
    configured = method.configure_optimizers()
    optimizer, schedule = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    assert sum(p.numel() for g in optimizer.param_groups for p in g["params"]) == sum(
        p.numel() for p in method.network.parameters()
    )
    for step in range(100):
        rise = min(1.0, 0.1 + 0.9 * step / warmup) if warmup else 1.0
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0.5 * rise * (1 - step / 100) ** power)
        optimizer.step()
        schedule.step()


@pytest.mark.medium
def test_imagenet_weights_are_fetched_when_a_source_training_starts_and_never_else(town, sfda, tmp_path, monkeypatch):
    asked = []

    def fetch(*arguments, **options):
        asked.append(arguments)
        raise OSError("no network")

    monkeypatch.setattr("torch.hub.load_state_dict_from_url", fetch)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fetch)
    arguments = [*tiny_arguments("source_training", town), "--model.init_args.network", "deeplab_v2_resnet18@16"]
    assert sfda("fit", *arguments, "--out", tmp_path / "scratch", "--trainer.max_epochs", 2) == 0
    assert asked == []
    imagenet = [*arguments, "--model.init_args.pretrained", "imagenet"]
    assert sfda("fit", *imagenet, "--out", tmp_path / "imagenet") == 2
    assert asked
    asked.clear()
    checkpoint = tmp_path / "scratch/last.ckpt"
    assert (
        sfda("fit", *imagenet, "--out", tmp_path / "resumed", "--ckpt_path", checkpoint, "--trainer.max_epochs", 3) == 0
    )
    assert sfda("validate", *imagenet, "--out", tmp_path / "scored", "--ckpt_path", checkpoint) == 0
    adapt = [*tiny_arguments("ada_bn", town, checkpoint), "--model.init_args.network", "deeplab_v2_resnet18@16"]
    assert sfda("fit", *adapt, "--out", tmp_path / "adapted") == 0
    assert asked == []


@pytest.mark.medium
def test_training_learns(town, sfda, tmp_path):
    """Twenty epochs on the town beat one: the loss falls and the source mIoU rises."""
    rows = []
    for epochs in (1, 20):
        folder = tmp_path / str(epochs)
        arguments = [*tiny_arguments("source_training", town), "--model.init_args.optimizer", "adamw"]
        arguments += ["--model.init_args.lr", "0.01", "--trainer.max_epochs", epochs, "--out", folder]
        assert sfda("fit", *arguments, "--data.init_args.samples_per_epoch", "16") == 0
        assert sfda("validate", "--run", folder) == 0
        rows.append(json.loads((folder / "result.json").read_text()))
    assert rows[1]["source_miou"] > rows[0]["source_miou"] + 0.05
    assert rows[1]["selected_step"] == 80
    assert rows[1]["trained_parameters"] == sum(
        p.numel() for p in SourceTraining(network=NETWORK, num_classes=19).network.parameters()
    )


@pytest.mark.medium
@pytest.mark.parametrize("model", ["ada_bn", "tent", "target_oracle", "self_training"])
@pytest.mark.parametrize(
    ("network", "batch", "message"),
    [
        ("build_with_pooling", 1, "one value per channel.*larger --data.init_args.batch_size"),
        ("build_with_eps_0", 2, "eps 0, .* build the network with eps 1e-5"),
    ],
)
def test_a_batch_norm_layer_that_cannot_train_is_a_sentence(
    model, network, batch, message, town, sfda, tmp_path, capsys
):
    """One image has one value behind a global pooling; found before labels are made."""
    name = f"tiny_network.{network}"
    state = build_network(name, 19).state_dict()
    torch.save({"state_dict": {f"network.{key}": value for key, value in state.items()}}, tmp_path / "source.ckpt")
    arguments = [*tiny_arguments(model, town, tmp_path / "source.ckpt"), "--model.init_args.network", name]
    assert sfda("fit", *arguments, "--data.init_args.batch_size", batch, "--out", tmp_path / "run") == 2
    assert re.search(rf"^sfda: BatchNorm layer 'pooling\.2' .*{message}", capsys.readouterr().err, re.MULTILINE)
    assert not list(tmp_path.rglob("pseudo_labels/*/*"))
    if (model, batch) == ("tent", 1):
        assert sfda("fit", *arguments, "--data.init_args.batch_size", 2, "--out", tmp_path / "two") == 0


@pytest.mark.medium
@pytest.mark.parametrize("processes", [1, 2], ids=["one process", "two_processes"])
def test_the_batch_after_which_weights_are_nan_is_named_and_nothing_of_it_is_kept(
    processes, town, sfda, tmp_path, monkeypatch, capfd
):
    seen = tmp_path / "seen"
    seen.mkdir()

    compute_losses = SourceTraining.compute_losses

    def spoilt(self, batch):
        losses, number = compute_losses(self, batch), self.trainer.fit_loop.epoch_loop.batch_idx
        if self.trainer.current_epoch == 1:
            names = [name for part in batch.values() for name in part["name"]]
            (seen / f"{number}.{self.global_rank}").write_text("\n".join(names))
            if number == 0 and self.global_rank == processes - 1:
                return {name: loss * torch.nan for name, loss in losses.items()}
        return losses

    monkeypatch.setattr(SourceTraining, "compute_losses", spoilt)

    run = tmp_path / "run"
    selector = "[{class_path: sfda.callbacks.select_by_ece.SelectByECE, init_args: {start_after: 0.0}}]"
    more = ["--trainer.max_epochs", 2, "--trainer.callbacks", selector, "--data.init_args.samples_per_epoch", 16]
    more += ["--data.init_args.batch_size", 2]
    if processes == 2:
        more += ["--trainer.devices", 2, "--trainer.strategy", "ddp_fork"]
    assert sfda("fit", *tiny_arguments("source_training", town), *more, "--out", run) == 2
    error = capfd.readouterr().err
    ranks = [[(seen / f"{batch}.{rank}").read_text().split("\n") for rank in range(processes)] for batch in (0, 1)]
    named = re.search(r"NaN or infinite after step (\d+), which took the images (.*): lower --model", error)
    assert int(named[1]) == 16 // (2 * processes) + 1
    assert sorted(named[2].split(", ")) == sorted(name for names in ranks[0] for name in names)
    assert ranks[0] != ranks[1]
    assert f"{run / 'last.ckpt'} holds the last weights that are numbers" in error
    assert all(torch.load(path, weights_only=True)["epoch"] == 0 for path in run.rglob("*.ckpt"))
    assert len(list(run.rglob("*.ckpt"))) == 2
