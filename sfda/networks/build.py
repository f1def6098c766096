"""From one string to a network."""

import difflib
import importlib
import inspect
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import nn

from sfda.errors import UserError
from sfda.networks.assemble import probed_segmenter, segmenter_as_said
from sfda.networks.options import OPTION, NetworkOptions
from sfda.networks.segmenter import Segmenter

_FORMS = """\
  deeplab_v2_resnet101, deeplab_v2_resnet50 or deeplab_v2_resnet18; with @16 after it: half the resolution and cost
  smp:<architecture>/<encoder> of segmentation-models-pytorch, e.g. smp:DeepLabV3Plus/mobilenet_v2
  torchvision:<name> of torchvision's segmentation networks, e.g. torchvision:deeplabv3_mobilenet_v3_large
  hf:<folder> of Hugging Face, with the config.json of a segmentation network
  your_package.module.factory, any importable function or nn.Module class: factory(num_classes) -> nn.Module"""


def build_network(
    network: str,
    num_classes: int,
    pretrained: Literal["none", "imagenet"] = "none",
    options: NetworkOptions | None = None,
) -> Segmenter:
    """The network of a string, in training mode, on the CPU.

    - ``deeplab_v2_resnet101``, ``_resnet50``, ``_resnet18``: the papers' network, output stride 8 (``@16`` after the
      name: 16). backbone: the ResNet; classifier and head: the four convolutions of the ASPP.
    - ``smp:<architecture>/<encoder>``: any of segmentation-models-pytorch. backbone: the encoder; classifier: decoder
      and segmentation head; head: the segmentation head.
    - ``torchvision:<name>``: one of torchvision's segmentation networks, without auxiliary head.
    - ``hf:<folder>``: the architecture of a local Hugging Face folder, with its preprocessing; see
      `sfda.networks.hugging_face`. The weights come from a checkpoint.
    - ``your_package.module.factory``: called with the number of outputs (`num_classes`, and the dropped ones), gives a
      module from RGB in [0, 1] to logits or probabilities of any size, as a map or in a nest of sequences and mappings.
      A factory may also return a `Segmenter`, which is kept as it is.

    What the last three give, which sizes they take, and which of their modules is the head, `sfda.networks.probe` finds
    out by small passes; `options` goes before what it finds. The segmenter's `description` says it in one line.

    Args:
        network: The string.
        num_classes: C.
        pretrained: ``imagenet`` gives the encoder ImageNet weights, which torchvision or segmentation-models-pytorch
            download unless they are in its cache. ``none`` never touches the network.
        options: What is known of the network beside the string.

    Raises:
        UserError: a string that names no network, a factory that cannot be used, weights that cannot be had.
    """
    if pretrained not in ("none", "imagenet"):
        raise UserError(f"pretrained {pretrained!r}: must be `none` or `imagenet`")
    options = options or {}
    # Channels last trains 1.2 and evaluates 1.8 times faster on a CPU (mobilenet_v2), and is what tensor cores want.
    return _build(network, num_classes, pretrained == "imagenet", options).to(memory_format=torch.channels_last)


def _build(network: str, num_classes: int, imagenet: bool, options: NetworkOptions) -> Segmenter:
    num_outputs = num_classes + len(options.get("drop_outputs", ()))
    if match := re.fullmatch(r"deeplab_v2_(resnet(?:18|50|101))(@16)?", network):
        module = _deeplab_v2(network, match[1], 16 if match[2] else 8, num_outputs, imagenet)
        known: dict[str, Any] = {"backbone": "backbone", "head": "classifier", "align_corners": True}
        return segmenter_as_said(network, module, num_classes, known, options)
    if match := re.fullmatch(r"smp:(\w+)/(\S+)", network):
        module, known = _smp(network, match[1], match[2], num_outputs, imagenet)
        return segmenter_as_said(network, module, num_classes, known, options)
    if match := re.fullmatch(r"torchvision:(\S+)", network):
        return probed_segmenter(network, _torchvision(network, match[1], num_outputs, imagenet), num_classes, options)
    if match := re.fullmatch(r"hf:(.+)", network):
        _refuse_imagenet(network, imagenet, "its weights come from a checkpoint")
        from sfda.networks.hugging_face import hugging_face_network

        found = hugging_face_network(match[1], num_classes, options)
        return probed_segmenter(
            network, found.module, num_classes, found.options, found.backbones, found.multiples, found.notes
        )
    if re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)+", network):
        _refuse_imagenet(network, imagenet, "a factory loads its own weights")
        return _from_factory(network, num_classes, num_outputs, options)
    raise UserError(f"network {network!r} is none of the known forms:\n{_FORMS}")


def _refuse_imagenet(network: str, imagenet: bool, why: str) -> None:
    if imagenet:
        raise UserError(f"network {network!r}: {why}; use `--model.init_args.pretrained none`")


def _deeplab_v2(network: str, resnet_name: str, output_stride: int, num_outputs: int, imagenet: bool) -> nn.Module:
    # Imported here, as smp below, since torchvision and smp take seconds.
    from sfda.networks.deeplab_v2 import DeepLabV2, imagenet_weights, resnet

    encoder = resnet(resnet_name)
    if imagenet:
        with _downloading(network, f"place the file in {torch.hub.get_dir()}/checkpoints"):
            weights = imagenet_weights(resnet_name)
        encoder.load_state_dict(weights)
    return DeepLabV2(encoder, num_outputs, output_stride)


def _smp(
    network: str, architecture: str, encoder: str, num_outputs: int, imagenet: bool
) -> tuple[nn.Module, dict[str, Any]]:
    import segmentation_models_pytorch as smp

    _check_smp_names(network, architecture, encoder)
    # timm's weights are named by the encoder itself.
    weights = (True if encoder.startswith("tu-") else "imagenet") if imagenet else None
    # DPT's vision transformers refuse every size but that of their pre-training unless told otherwise, and its decoder
    # halves their last map once more.
    options, halvings = ({"dynamic_img_size": True}, 1) if architecture.lower() == "dpt" else ({}, 0)
    normalisation = {}
    with _downloading(network, "place the files in the Hugging Face cache (HF_HOME)"):
        try:
            module = smp.create_model(
                architecture, encoder_name=encoder, encoder_weights=weights, classes=num_outputs, **options
            )
            if imagenet:  # Not every encoder was trained with the usual mean and standard deviation.
                settings = smp.encoders.get_preprocessing_params(encoder)
                normalisation = {"mean": settings["mean"], "std": settings["std"]}
        except (KeyError, ValueError, RuntimeError) as error:
            raise UserError(f"network {network!r}: segmentation-models-pytorch refuses it: {error}") from error
    multiple = int(module.encoder.output_stride) * 2**halvings
    return module, {"backbone": "encoder", "head": "segmentation_head", "multiple": multiple, **normalisation}


def _check_smp_names(network: str, architecture: str, encoder: str) -> None:
    import segmentation_models_pytorch as smp
    import timm

    architectures = [cls.__name__ for cls in smp.MODEL_ARCHITECTURES_MAPPING.values()]
    encoders = smp.encoders.get_encoder_names()
    if architecture.lower() not in smp.MODEL_ARCHITECTURES_MAPPING:
        raise UserError(f"network {network!r}: {_no_such('architecture', architecture, architectures)}")
    if encoder.startswith("tu-"):
        if not timm.is_model(encoder[3:]):
            raise UserError(f"network {network!r}: {_no_such('timm encoder', encoder[3:], timm.list_models())}")
    elif encoder not in encoders:
        raise UserError(f"network {network!r}: {_no_such('encoder', encoder, encoders)}")


def _torchvision(network: str, name: str, num_outputs: int, imagenet: bool) -> nn.Module:
    import torchvision

    known = torchvision.models.list_models(module=torchvision.models.segmentation)
    if name not in known:
        raise UserError(f"network {network!r}: {_no_such('segmentation network of torchvision', name, known)}")
    with _downloading(network, f"place the file in {torch.hub.get_dir()}/checkpoints"):
        module: nn.Module = torchvision.models.get_model(
            name, weights=None, weights_backbone="DEFAULT" if imagenet else None, num_classes=num_outputs
        )
    return module


def _from_factory(network: str, num_classes: int, num_outputs: int, options: NetworkOptions) -> Segmenter:
    module = _import_factory(network)(num_outputs)
    if isinstance(module, Segmenter):
        if options:
            raise UserError(f"network {network!r} is a Segmenter, which says all about itself: leave out {OPTION}")
        return module
    if not isinstance(module, nn.Module):
        raise UserError(f"network {network!r}: the factory gave a {type(module).__name__}, not a torch.nn.Module")
    as_it_is: NetworkOptions = {"mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0]}
    return probed_segmenter(network, module, num_classes, {**as_it_is, **options})


def _import_factory(network: str) -> Callable[[int], object]:
    module_name, _, name = network.rpartition(".")
    try:
        factory: Any = getattr(importlib.import_module(module_name), name, None)
    except ImportError as error:
        raise UserError(
            f"network {network!r}: importing {module_name} failed ({error}); "
            "install it, or put its folder on PYTHONPATH"
        ) from error
    if not _may_give_a_module(factory):
        raise UserError(
            f"network {network!r}: {module_name} has no Python function or torch.nn.Module class {name!r}, and nothing "
            "else is called"
        )
    return factory  # type: ignore[no-any-return]


def _may_give_a_module(factory: Any) -> bool:
    """Whether it is safe to find out by a call: nothing built in, such as `os.system`, makes a network."""
    if inspect.isclass(factory):
        return issubclass(factory, nn.Module)
    return inspect.isfunction(inspect.unwrap(factory)) or inspect.ismethod(factory)


@contextmanager
def _downloading(network: str, remedy: str) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"network {network!r}: its ImageNet weights could not be downloaded ({error}). Run once with a network "
            f"connection, or {remedy}, or train from random weights with `--model.init_args.pretrained none`"
        ) from error


def _no_such(kind: str, name: str, known: Iterable[str]) -> str:
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=5, cutoff=0.4)
    return f"no {kind} {name!r}; {'close matches' if close else 'known'}: {', '.join(close or known[:20])}"
