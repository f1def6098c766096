"""`sfda export`: a file that predicts what PyTorch does, for images of every size, and what it says of itself."""

import json

import cv2
import numpy as np
import pytest
import torch
import yaml

from sfda.data.transforms import resize_image
from sfda.export.formats import WRITERS, load_program
from sfda.export.program import ExportedMethod
from sfda.methods.auto import Auto
from sfda.methods.kinds.method import MULTI_SCALES
from sfda.methods.label_calibration import LabelCalibration
from sfda.methods.source_training import SourceTraining
from sfda.methods.temperature_scaling import TemperatureScaling
from sfda.metrics.functional import group_probabilities
from sfda.networks.resampling import _scaled_exactly, antialiased, averaged, scale_images
from tiny_runs import tiny_arguments

ABOUT = {"input": "in", "output": "out", "class_names": ["a", "b"], "network": "n"}
SHAPES = ((7, 3, 64, 96), (6, 3, 45, 33), (7, 3, 70, 101))  # 20 images


def images(shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def method_of(network, views="single", method=SourceTraining, **more):
    """Weights that make predictions far from uniform, and running statistics that are no zeros and ones."""
    torch.manual_seed(0)
    made = method(network=network, num_classes=5, views=views, **more)
    made.train()
    with torch.no_grad():
        made.network(images((4, 3, 64, 64)))
        logits = made.eval().network(images((2, 3, 64, 64)))
        for parameter in made.network.head.parameters():
            parameter.mul_(3 / logits.std())
    return made.eval()


def written(kind, module, tmp_path):
    path = tmp_path / f"model.{kind}"
    WRITERS[kind](module, path, ABOUT)
    return load_program(kind, path)


def largest_difference(module, predict):
    with torch.no_grad():
        pairs = [(module(batch), predict(batch)) for batch in map(images, SHAPES)]
    assert all((expected.amax(1) - expected.amin(1)).mean() > 0.1 for expected, _ in pairs)  # far from uniform
    return max(float((found - expected).abs().max()) for expected, found in pairs)


@pytest.mark.medium
@pytest.mark.parametrize(
    "network",
    ["tiny_network.build", "deeplab_v2_resnet18@16", "smp:DeepLabV3Plus/mobilenet_v2", "smp:Segformer/mit_b0"],
)
def test_onnx_predicts_what_pytorch_does(network, tmp_path):
    module = ExportedMethod(method_of(network), None, None, 5).eval()
    assert largest_difference(module, written("onnx", module, tmp_path)) < 1e-4


def test_onnx_with_padding_views_a_size_and_groups(tmp_path):
    method = method_of("tiny_network.build", "multi_scale")
    method.network.multiple = 16
    module = ExportedMethod(method, (48, 80), np.array([0, 1, 1, 2, 0], dtype=np.uint8), 3).eval()
    assert largest_difference(module, written("onnx", module, tmp_path)) < 1e-4


def test_groups_are_those_that_are_scored():
    groups, probabilities = np.array([0, 1, 1, 2, 0], dtype=np.uint8), images((2, 5, 6, 7)).softmax(dim=1)
    module = ExportedMethod(method_of("tiny_network.build"), None, groups, 4)
    expected = group_probabilities(probabilities, torch.from_numpy(groups).long(), 4)
    torch.testing.assert_close(module.scored(probabilities), expected)


@pytest.mark.medium
def test_pt2_predicts_what_pytorch_does_whether_it_pads_or_not(tmp_path):
    method = method_of("tiny_network.build", "multi_scale")
    method.network.multiple = 16
    module = ExportedMethod(method, None, np.array([0, 1, 1, 2, 0], dtype=np.uint8), 3).eval()
    predict = written("pt2", module, tmp_path)
    assert largest_difference(module, predict) < 1e-4
    for shape in ((1, 3, 64, 96), (1, 3, 32, 50)):
        torch.testing.assert_close(predict(images(shape)), module(images(shape)), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["onnx", "pt2"])
def test_calibrated_probabilities(kind, tmp_path):
    tempered = method_of("tiny_network.build", method=TemperatureScaling)
    tempered.calibrated = method_of("tiny_network.build")
    tempered.temperature.fill_(1.7)
    labelled = method_of("tiny_network.build", method=LabelCalibration)
    labelled.head.set_prototypes(torch.softmax(3 * torch.eye(5) + images((5, 5)), dim=1), 0.2)
    for method in (tempered, labelled):
        module = ExportedMethod(method, None, None, 5).eval()
        assert largest_difference(module, written(kind, module, tmp_path)) < 1e-4


@pytest.mark.parametrize("scale", [0.75, 1.25])
@pytest.mark.parametrize("size", [(30, 42), (45, 64), (3, 2)])
def test_antialiasing_as_matrices_is_that_of_torch(scale, size):
    given = images((2, 3, *size))
    expected = scale_images(given, scale)
    found = antialiased(given, expected.shape[-2:])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_scaled_sides_are_rounded_as_python_rounds():
    for side in range(2, 40):
        for scale in (part * chosen for part in MULTI_SCALES for chosen in (0.5, 0.75, 1, 1.25, 1.5, 1.75, 2)):
            assert _scaled_exactly(side, scale) == round(side * scale)


@pytest.mark.parametrize("kind", ["onnx", "pt2"])
@pytest.mark.parametrize("views", ["single", "multi_scale"])
def test_the_size_that_auto_has_chosen_is_in_the_file(kind, views, tmp_path):
    method = method_of("tiny_network.build", views, method=Auto)
    module = ExportedMethod(method, None, None, 5).eval()
    before = module(images((1, 3, 33, 46)))
    method.input_scale = 1.75
    assert (module(images((1, 3, 33, 46))) - before).abs().max() > 1e-3
    assert largest_difference(module, written(kind, module, tmp_path)) < 1e-4


@pytest.mark.parametrize("size", [(20, 30), (10, 15), (50, 70), (12, 90), (60, 20), (40, 20)])
def test_bringing_to_a_size_as_matrices_is_that_of_opencv(size):
    """Down, up, and one side of each: OpenCV does something else in every one of them."""
    given = images((1, 3, 40, 60))
    picture = given[0].permute(1, 2, 0).numpy()
    flag = cv2.INTER_AREA if size[0] < 40 else cv2.INTER_LINEAR
    expected = cv2.resize(picture, size[::-1], interpolation=flag)
    np.testing.assert_allclose(averaged(given, size)[0].permute(1, 2, 0), expected, atol=2e-3)
    eight_bits = np.rint(picture * 255).astype(np.uint8)
    rounded = averaged(torch.from_numpy(eight_bits).permute(2, 0, 1)[None].float(), size)[0].permute(1, 2, 0)
    assert np.abs(rounded.numpy() - resize_image(eight_bits, size)).max() <= 1


# ---------------------------------------------------------------- the command


@pytest.mark.medium
def test_a_run_becomes_a_file_that_says_what_it_is(sfda, source_model, tmp_path, capsys):
    onnx = pytest.importorskip("onnx")
    out = tmp_path / "model.onnx"
    assert sfda("export", "--run", source_model.parent, "--format", "onnx", "--out", out) == 0
    assert "largest difference to PyTorch" in capsys.readouterr().out
    about = {entry.key: entry.value for entry in onnx.load(out).metadata_props}
    assert json.loads(about["class_names"])[:2] == ["road", "sidewalk"]
    assert json.loads(about["class_colours"])[0] == [128, 64, 128]
    assert "RGB, 0 to 1" in about["input"]
    assert json.loads(about["run"])["method"] == "SourceTraining"
    assert len(about["checkpoint_sha256"]) == 64
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    assert sfda("export", "--run", source_model.parent, "--format", "onnx", "--out", out) == 2
    assert "exists already" in capsys.readouterr().err


@pytest.mark.medium
def test_a_file_that_predicts_otherwise_is_not_kept(sfda, source_model, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sfda.cli.export.load_program", lambda kind, path: lambda given: torch.zeros(1, 19, 1, 1))
    assert sfda("export", "--run", source_model.parent, "--format", "onnx", "--out", tmp_path / "a/model.onnx") == 2
    assert "predicts otherwise than PyTorch" in capsys.readouterr().err
    assert not list((tmp_path / "a").iterdir())


@pytest.mark.medium
def test_a_method_that_changes_while_it_predicts_is_refused(sfda, source_model, town, tmp_path, capsys):
    run = tmp_path / "run"
    arguments = tiny_arguments("label_calibration", town, source_model)
    assert sfda("fit", *arguments, "--out", run) == 0
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["model"]["init_args"]["online"] = True
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    assert sfda("export", "--run", run, "--format", "onnx") == 2
    assert "LabelCalibration with online: true changes its weights with every image" in capsys.readouterr().err
