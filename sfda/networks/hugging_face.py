"""Networks from local Hugging Face folders, built by `transformers`, which is an optional extra of this package.

Nothing is downloaded and no code of a folder is run. A folder's ``do_reduce_labels`` speaks of its label files (0 is
void there, and all others move down by one), not of the network, and is for whoever reads such labels.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sfda.archives import is_archive, refuse_damaged_archive
from sfda.errors import UserError, last_line
from sfda.networks.hugging_face_modules import PerPixel, Universal, Windowed
from sfda.networks.options import NetworkOptions
from sfda.networks.probe_passes import refuse_other_outputs
from sfda.networks.probe_sizes import MULTIPLES
from sfda.networks.segmenter import IMAGENET_MEAN, IMAGENET_STD

HUGGING_FACE_PREFIX = "model."
"""Before the keys of `hugging_face_weights` in the state dict of `Segmenter.network`."""
UNIVERSAL = ("mask2former", "maskformer", "eomt", "eomt_dinov3")
"""Kinds that give masks of queries, from which semantic scores are made."""
SQUARE = ("eomt", "dpt")
"""Kinds that take square images alone."""


class HuggingFaceNetwork(NamedTuple):
    """A network with random weights, and what its folder says of it."""

    module: nn.Module
    options: NetworkOptions
    backbones: tuple[str, ...]
    multiples: tuple[int, ...]
    notes: tuple[str, ...]


def hugging_face_network(folder: str, num_classes: int, options: NetworkOptions) -> HuggingFaceNetwork:
    """The architecture of ``config.json``, with random weights, and the preprocessing of ``preprocessor_config.json``.

    Semantic networks give their own logits. Of universal ones (Mask2Former, MaskFormer, EoMT) the semantic scores are
    taken for probabilities, without the class "nothing"; see `Universal`. EoMT and DPT take squares alone, of
    ``image_size``, and see larger images in windows; see `Windowed`.

    Args:
        folder: Path of a local folder.
        num_classes: C; the network's labels are these and those that `options` drops.
        options: What a user has said, which goes before what the folder says.

    Raises:
        UserError: `transformers` is not installed, the folder holds no segmentation network, or one of other labels.
    """
    config = _config(folder)
    refuse_other_outputs(f"network 'hf:{folder}'", config.num_labels, num_classes, options.get("drop_outputs", ()))
    with _by_itself(f"hf:{folder}"):
        model = _auto_class(config).from_config(config, trust_remote_code=False, dtype=torch.float32)
    preprocessing, notes = _preprocessing(folder)
    size = getattr(config, "image_size", None)
    multiples = (*MULTIPLES, size) if isinstance(size, int) else MULTIPLES
    backbones: tuple[str, ...] = (f"model.{model.base_model_prefix}", "model.backbone")
    said: NetworkOptions = {**preprocessing, **options}
    wrapper: type[Windowed] = PerPixel
    if config.model_type in UNIVERSAL:
        backbones, wrapper = ("model.model.pixel_level_module.encoder",), Universal
        said = {"output_kind": "probabilities", **said}
    if config.model_type not in SQUARE:
        return HuggingFaceNetwork(wrapper(model), said, backbones, multiples, notes)
    window = size or config.backbone_config.image_size
    notes = (*notes, f"images are passed in windows of {window}x{window}")
    return HuggingFaceNetwork(wrapper(model, window), said, (), MULTIPLES, notes)


def hugging_face_classes(folder: str) -> list[str]:
    """The names of the network's outputs, in their order, from ``id2label``.

    Raises:
        UserError: as `hugging_face_network`.
    """
    labels = _config(folder).id2label
    return [str(labels[output]) for output in range(len(labels))]


def hugging_face_weights(folder: str) -> dict[str, Tensor]:
    """The tensors of ``model.safetensors`` or ``pytorch_model.bin``, in one file or several, on the CPU.

    Older files name some tensors otherwise than today's models; `transformers` renames them. Keys are those of the
    Hugging Face model; `HUGGING_FACE_PREFIX` before them gives those of `Segmenter.network`. Tensors that the file
    lacks are lacking here, and those that the model has no place for are here under their own names.

    Raises:
        UserError: there is no such file, it cannot be loaded, or a tensor has another shape than the model's.
    """
    config = _config(folder)
    if not (files := _weight_files(Path(folder))):
        raise UserError(f"{folder}: it holds neither model.safetensors nor pytorch_model.bin")
    for file in filter(is_archive, files):
        refuse_damaged_archive(file)
    with _by_itself(f"hf:{folder}"):
        model, report = _auto_class(config).from_pretrained(
            folder,
            config=config,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
            dtype=torch.float32,
        )
        unused = set(report["unexpected_keys"])
        left_over = {key: value for file in files for key, value in _tensors(file).items() if key in unused}
    lacking = set(report["missing_keys"])
    return {key: value for key, value in model.state_dict().items() if key not in lacking} | left_over


def _weight_files(folder: Path) -> list[Path]:
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (index := folder / f"{name}.index.json").is_file():
            return [folder / part for part in sorted(set(_json(index)["weight_map"].values()))]
        if (folder / name).is_file():
            return [folder / name]
    return []


def _tensors(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    if path.suffix == ".safetensors":
        return load_file(path)
    tensors: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return tensors


def _config(folder: str) -> Any:
    """The `transformers` configuration of a folder with a segmentation network."""
    try:
        from transformers import AutoConfig
        from transformers.models.auto import modeling_auto
    except ImportError as error:
        raise UserError(f"network 'hf:{folder}' needs the package transformers: `pip install transformers`") from error
    if not Path(folder, "config.json").is_file():
        what = (
            "there is no config.json in it" if Path(folder).is_dir() else "there is no such folder; none is downloaded"
        )
        raise UserError(f"network 'hf:{folder}': {what}")
    kind = str(_json(Path(folder, "config.json")).get("model_type"))
    known = [*modeling_auto.MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES, *UNIVERSAL]
    if kind not in known:
        raise UserError(
            f"network 'hf:{folder}': no segmentation network is of model_type {kind!r}, but {', '.join(known)}"
        )
    with _by_itself(f"hf:{folder}"):
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def _auto_class(config: Any) -> Any:
    from transformers import AutoModelForSemanticSegmentation, AutoModelForUniversalSegmentation

    if getattr(config, "use_pretrained_backbone", False):
        config.use_pretrained_backbone = False
    return AutoModelForUniversalSegmentation if config.model_type in UNIVERSAL else AutoModelForSemanticSegmentation


@contextmanager
def _by_itself(network: str) -> Iterator[None]:
    """Inside, `transformers` downloads nothing, whatever a configuration names, and shows no bars or warnings.

    Raises:
        UserError: it fails.
    """
    from huggingface_hub import constants
    from transformers.utils import logging

    offline, verbosity, bars = constants.HF_HUB_OFFLINE, logging.get_verbosity(), logging.is_progress_bar_enabled()
    constants.HF_HUB_OFFLINE = True
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    except Exception as error:
        raise UserError(f"network {network!r}: transformers refuses it: {last_line(error)}") from error
    finally:
        constants.HF_HUB_OFFLINE = offline
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _preprocessing(folder: str) -> tuple[NetworkOptions, tuple[str, ...]]:
    """Mean, deviation and channel order for images in [0, 1], and notes for a user."""
    path = Path(folder, "preprocessor_config.json")
    if not path.is_file():
        imagenet: NetworkOptions = {"mean": list(IMAGENET_MEAN), "std": list(IMAGENET_STD)}
        return imagenet, ("no preprocessor_config.json: ImageNet's mean and deviation are taken",)
    said = _json(path)
    # What the network gets is (255 · x · factor − mean) / std of an image x in [0, 1].
    scale = 255 * float(said.get("rescale_factor", 1 / 255)) if said.get("do_rescale", True) else 255.0
    normalises = said.get("do_normalize", True)
    mean = said.get("image_mean", IMAGENET_MEAN) if normalises else (0.0, 0.0, 0.0)
    std = said.get("image_std", IMAGENET_STD) if normalises else (1.0, 1.0, 1.0)
    flips = bool(said.get("do_flip_channel_order", False))
    if flips:  # they are given in the network's order
        mean, std = mean[::-1], std[::-1]
    return {
        "mean": [value / scale for value in mean],
        "std": [value / scale for value in std],
        "channel_order": "bgr" if flips else "rgb",
    }, ()


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: values by name are expected, not a {type(content).__name__}")
    return content
