"""Files of weights as other projects write them."""

import argparse
import pickle
import sys
import types
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from sfda.errors import UserError
from sfda.networks.import_weights import best_match, clear_subnormals, describe_misfit
from sfda.networks.matching import match_names
from sfda.networks.weights_file import read_weights


def network(outputs: int = 19) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), nn.Sequential(nn.Conv2d(4, outputs, 1)))


STATE = network().state_dict()


def decoder_per_class(outputs: int) -> dict[str, torch.Tensor]:
    """More than the head has the number of outputs in its shape."""
    more = nn.Sequential(nn.Conv2d(outputs, outputs, 1), nn.Conv2d(2 * outputs, outputs, 1, bias=False))
    return (
        network().state_dict() | behind("decoder.", more.state_dict()) | {"head.weight": torch.zeros(outputs, outputs)}
    )


def behind(prefix: str, state: dict[str, torch.Tensor] = STATE) -> dict[str, torch.Tensor]:
    return {prefix + name: value for name, value in state.items()}


def save(path: Path, content: object, **options: object) -> Path:
    torch.save(content, path, **options)
    return path


OTHERS = {
    "bare": STATE,
    "state_dict": {"state_dict": STATE, "epoch": 7},
    "module. in front": behind("module."),
    "model of a trainer": {"model": behind("module."), "optimizer": {"state": {}}, "best_pred": 0.7},
    "model_state_dict": {"model_state_dict": STATE},
    "net": {"net": behind("module.net.")},
    "Lightning": {"state_dict": behind("model."), "pytorch-lightning_version": "2.0", "hyper_parameters": {}},
    "teacher and student": {"state_dict": behind("student."), "ema": behind("teacher.", network(19).state_dict())},
    "mmsegmentation": {
        "meta": {"epoch": 1},
        "state_dict": {
            **{f"backbone.{name[2:]}": value for name, value in STATE.items() if name.startswith("0.")},
            **{f"decode_head.{name[2:]}": value for name, value in STATE.items() if name.startswith("1.")},
            "auxiliary_head.conv.weight": torch.zeros(2),
        },
    },
}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before 1.6"])
@pytest.mark.parametrize("kind", OTHERS)
def test_weights_are_found_wherever_they_lie(kind, zipped, tmp_path):
    path = save(tmp_path / "w.pth", OTHERS[kind], _use_new_zipfile_serialization=zipped)
    weights = read_weights(path)
    assert weights.form == ("torch" if zipped else "torch, before 1.6")
    _, found, match = best_match(STATE, weights)
    assert match.is_whole, describe_misfit(match, STATE, found, 19)
    for name, value in STATE.items():
        assert torch.equal(found[match.renamed[name]], value)


def test_safetensors(tmp_path):
    save_file(behind("model."), tmp_path / "w.safetensors")
    weights = read_weights(tmp_path / "w.safetensors")
    assert weights.form == "safetensors"
    assert best_match(STATE, weights)[2].is_whole


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before 1.6"])
def test_objects_beside_the_weights_are_named_and_never_made(zipped, tmp_path):
    content = {"state_dict": STATE, "args": argparse.Namespace(lr=0.1), "path": Path("runs"), "eps": 0.5}
    weights = read_weights(save(tmp_path / "w.pth", content, _use_new_zipfile_serialization=zipped))
    assert "argparse.Namespace" in weights.left_out
    assert not isinstance(weights.content["args"], argparse.Namespace)
    assert weights.content["args"].lr == 0.1
    assert best_match(STATE, weights)[2].is_whole
    assert weights.plain_values() == {"eps": 0.5}


class Runs:
    """Unpickling it calls a function."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before 1.6"])
def test_nothing_in_a_file_is_run(zipped, tmp_path):
    made = tmp_path / "made"
    content = {"state_dict": STATE, "args": Runs(exec, f"open({str(made)!r}, 'w')")}
    weights = read_weights(save(tmp_path / "w.pth", content, _use_new_zipfile_serialization=zipped))
    assert not made.exists()
    assert weights.left_out == ["builtins.exec"]
    pickle.loads(pickle.dumps(content["args"]))
    assert made.exists()  # what an ordinary unpickler would have done
    import os

    path = save(tmp_path / "o.pth", {"a": Runs(os.system, "true")}, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match=r"would call posix\.system; do not use it"):
        read_weights(path)


def test_a_whole_pickled_module_of_a_package_that_is_gone(tmp_path):
    package = types.ModuleType("gone_package")

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = network()

    Net.__module__, Net.__qualname__ = "gone_package", "Net"
    package.Net = Net
    sys.modules["gone_package"] = package
    try:
        torch.save({"net": Net()}, tmp_path / "w.pth")
    finally:
        del sys.modules["gone_package"]
    weights = read_weights(tmp_path / "w.pth")
    assert "gone_package.Net" in weights.left_out
    _, found, match = best_match(STATE, weights)
    assert match.is_whole
    assert torch.equal(found[match.renamed["0.0.weight"]], STATE["0.0.weight"])


def test_files_that_hold_no_weights_say_so(tmp_path):
    (tmp_path / "text.pth").write_text("weights")
    with pytest.raises(UserError, match=r"text\.pth is no file of weights"):
        read_weights(tmp_path / "text.pth")
    with pytest.raises(UserError, match="no such file"):
        read_weights(tmp_path / "absent.pth")
    whole = save(tmp_path / "old.pth", STATE, _use_new_zipfile_serialization=False).read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="damaged, or was cut off"):
        read_weights(tmp_path / "cut.pth")
    save_file(STATE, tmp_path / "w.safetensors")
    data = (tmp_path / "w.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(data[:-40])
    with pytest.raises(UserError, match="damaged file of safetensors"):
        read_weights(tmp_path / "cut.safetensors")
    torch.jit.save(torch.jit.script(network()), tmp_path / "script.pt")
    with pytest.raises(UserError, match=r"TorchScript program: .*state_dict"):
        read_weights(tmp_path / "script.pt")
    with pytest.raises(UserError, match="no tensors by name"):
        best_match(STATE, read_weights(save(tmp_path / "empty.pth", {"epoch": 3})))


def test_the_moving_average_comes_after_the_weights_unless_it_is_named(tmp_path):
    average = {name: value + 1 for name, value in STATE.items()}
    weights = read_weights(save(tmp_path / "w.pth", {"state_dict_ema": average, "state_dict": STATE}))
    assert best_match(STATE, weights)[0] == "state_dict"
    assert best_match(STATE, weights, key="state_dict_ema")[0] == "state_dict_ema"
    with pytest.raises(UserError, match=r"--key ema: .* holds tensors under state_dict, state_dict_ema"):
        best_match(STATE, weights, key="ema")


def test_what_does_not_fit_is_said(tmp_path):
    def said(content: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor] = STATE) -> str:
        _, found, match = best_match(wanted, read_weights(save(tmp_path / "w.pth", content)))
        assert not match.is_whole
        return describe_misfit(match, wanted, found, 19)

    twenty = said(network(20).state_dict())
    assert "2 tensors have other shapes, for example 1.0.bias: 20, not 19" in twenty
    assert "has 20 outputs, this one 19: say with --drop-output" in twenty
    assert "has 20 outputs, this one 19" in said(decoder_per_class(20), decoder_per_class(19))
    assert "outputs" not in said({**STATE, "1.0.weight": torch.zeros(19, 5, 1, 1)})
    assert "--drop-output" not in said(network(12).state_dict())
    assert "1 weights of the network are not in it: 0.0.bias" in said(
        {k: v for k, v in STATE.items() if k != "0.0.bias"}
    )
    assert "no place for 1 of its tensors: extra.weight" in said({**STATE, "extra.weight": torch.zeros(1)})
    assert "its tensors (a.b) are not those of the network" in said({"a.b": torch.zeros(3)})


def test_what_is_left_out_by_pattern_and_what_by_itself():
    more = {**STATE, "criterion.weight": torch.zeros(19), "aux_classifier.4.weight": torch.zeros(3)}
    assert match_names(STATE, more).left_over == ["criterion.weight"]
    assert match_names(STATE, more, ["criterion.*"]).is_whole
    counted = {name: value for name, value in STATE.items() if not name.endswith("num_batches_tracked")}
    assert match_names(STATE, counted).is_whole  # as torch wrote it before 0.4.1


def test_values_that_slow_cpus_down_are_cleared_and_no_others():
    module = network()
    weight = module[0][0].weight
    with torch.no_grad():
        weight.view(-1)[:4] = torch.tensor([1e-39, -1e-40, 1.2e-38, 0.0])
    others = weight.detach().view(-1)[4:].clone()
    assert clear_subnormals(module) == 2
    assert weight.view(-1)[:4].tolist() == [0.0, 0.0, torch.tensor(1.2e-38).item(), 0.0]
    assert torch.equal(weight.view(-1)[4:], others)
    assert clear_subnormals(module.half()) == 0  # 1.2e-38 is 0 there
