"""A checkpoint whose parts are not what they should be is named, with the part."""

import shutil

import pytest
import torch

from tiny_runs import die, tiny_arguments

TWO = ("--trainer.devices", "2", "--trainer.strategy", "ddp_fork", "--data.init_args.batch_size", "2")
DAMAGES = {
    "state_dict a list": {"state_dict": [1]},
    "hyper_parameters a list": {"hyper_parameters": [1]},
    "loops a text": {"loops": "x"},
    "loops of lists": {"loops": {"fit_loop": [1]}},
    "loops empty": {"loops": {}},
    "optimizer_states a text": {"optimizer_states": "x"},
    "optimizer_states of texts": {"optimizer_states": ["x"]},
    "optimizer_states empty": {"optimizer_states": []},
    "lr_schedulers a number": {"lr_schedulers": 3},
    "lr_schedulers of numbers": {"lr_schedulers": [3]},
    "callbacks a list": {"callbacks": [1]},
    "callbacks of texts": {"callbacks": {"RunFolder": "x"}},
    "global_step a text": {"global_step": "x"},
    "version a number": {"pytorch-lightning_version": 3},
    "version missing": {"pytorch-lightning_version": None},
}


@pytest.fixture(scope="module")
def unfinished(town, tmp_path_factory):
    folder = tmp_path_factory.mktemp("unfinished") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["sfda"])
        die([*tiny_arguments("source_training", town), "--trainer.max_epochs", 2], folder)
    return folder


@pytest.fixture
def resumed(unfinished, sfda, tmp_path, capfd):
    """Goes on with a run whose checkpoint is damaged; gives the last line that is printed."""

    def go_on(damage, *more: str) -> str:
        shutil.copytree(unfinished, tmp_path / "run")
        path = tmp_path / "run/last.ckpt"
        checkpoint = torch.load(path, weights_only=True)
        damage(checkpoint)
        torch.save(checkpoint, path)
        assert sfda("fit", "--run", tmp_path / "run", *more) == 2
        error = capfd.readouterr().err  # that of forked processes too
        assert "Traceback" not in error
        assert sum(line.startswith("sfda: ") for line in error.splitlines()) == 1
        return error.splitlines()[-1]

    return go_on


@pytest.mark.medium
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_part_of_a_checkpoint_is_a_sentence(damage, resumed):
    assert "last.ckpt" in resumed(lambda checkpoint: checkpoint.update(DAMAGES[damage]))


@pytest.mark.medium
def test_weights_of_other_shapes_are_a_sentence(resumed):
    assert "network.network.classifier.weight" in resumed(cut_the_classifier)


@pytest.mark.medium
def test_weights_of_other_shapes_are_one_sentence_of_two_processes(resumed):
    error = resumed(cut_the_classifier, *TWO)
    assert "last.ckpt does not fit SourceTraining with these options (size mismatch for network.network." in error


def cut_the_classifier(checkpoint):
    state = checkpoint["state_dict"]
    state["network.network.classifier.weight"] = state["network.network.classifier.weight"][:3]
