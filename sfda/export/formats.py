"""The two kinds of file that a module of images is written to, and how each is run again."""

import importlib
import io
import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sfda.errors import UserError

Format = Literal["onnx", "pt2"]
Predict = Callable[[Tensor], Tensor]
"""Images (B, 3, H, W) → probabilities (B, C, H, W)."""

INPUT, OUTPUT = "images", "probabilities"
METADATA_FILE = "metadata.json"
"""Name of the extra file of a pt2 file."""
OPSET = 18
EXAMPLE = (2, 3, 93, 131)
"""Shape of the images that a module is traced with: sides with nothing in common."""
AXES = {0: "batch", 2: "height", 3: "width"}
"""What may be of any length."""


def require_packages(kind: Format) -> None:
    """Refuse ONNX where its packages are missing, before anything takes time.

    Raises:
        UserError: they are.
    """
    try:
        for package in ("onnx", "onnxruntime") if kind == "onnx" else ():
            importlib.import_module(package)
    except ImportError as error:
        raise UserError(f"--format onnx needs the package {error.name}: `pip install onnx onnxruntime`") from error


def write_onnx(module: nn.Module, path: Path, about: Mapping[str, Any]) -> None:
    """Write a module as ONNX; `about` stands in ``metadata_props``, text as it is and all else as JSON.

    By the exporter that records what happens to an example: the newer one, over `torch.export`, takes minutes for a
    network whose images are padded, since every size becomes a long formula.
    """
    import onnx

    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the older exporter's age, and of sizes that are constants indeed
        torch.onnx.export(
            module,
            (_example(),),
            str(path),
            dynamo=False,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_axes={INPUT: AXES, OUTPUT: AXES},
        )
    model = onnx.load(path)
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in about.items()}
    onnx.helper.set_model_props(model, texts)
    model.graph.input[0].doc_string, model.graph.output[0].doc_string = texts["input"], texts["output"]
    onnx.save(model, path)


def write_pt2(module: nn.Module, path: Path, about: Mapping[str, Any]) -> None:
    """Write a module for `torch.export.load`; `about` is the extra file `METADATA_FILE`, as JSON."""
    axes = (dict.fromkeys(AXES, torch.export.Dim.AUTO),)
    with torch.no_grad():
        program = torch.export.export(module, (_example(),), dynamic_shapes=axes, strict=False)
    file = io.BytesIO()  # torch's own writer ends the process where a disk is full
    torch.export.save(program, file, extra_files={METADATA_FILE: json.dumps(about)})
    path.write_bytes(file.getbuffer())


WRITERS: dict[Format, Callable[[nn.Module, Path, Mapping[str, Any]], None]] = {"onnx": write_onnx, "pt2": write_pt2}


def load_program(kind: Format, path: Path) -> Predict:
    """What a file predicts, run by ONNX Runtime on the CPU or by PyTorch."""
    if kind == "pt2":
        module = torch.export.load(path).module()
        return lambda images: module(images)
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run([OUTPUT], {INPUT: images.numpy()})[0])


def _example() -> Tensor:
    return torch.rand(EXAMPLE, generator=torch.Generator().manual_seed(0))
