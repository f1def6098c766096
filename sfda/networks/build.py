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
from sfda.networks.options import NetworkOptions
from sfda.networks.segmenter import Segmenter

_FORMS = """\
  deeplab_v2_resnet101, deeplab_v2_resnet50 or deeplab_v2_resnet18; with @16 after it: half the resolution and cost
  smp:<architecture>/<encoder> of segmentation-models-pytorch, e.g. smp:DeepLabV3Plus/mobilenet_v2
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
    - ``your_package.module.factory``: called with `num_classes`, gives a module from RGB in [0, 1] to logits of any
      size. If it has both ``.backbone`` and ``.classifier`` (as torchvision's have), its encoder is ``.backbone``,
      everything else is classifier, and the head is the last `Conv2d` of ``.classifier``. Otherwise the last
      `Conv2d`, in the order of definition, is classifier and head, and everything else is backbone. An attribute
      ``align_corners`` is respected (False without). A factory may also return a `Segmenter`, which is kept as it is.

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
    # Channels last trains 1.2 and evaluates 1.8 times faster on a CPU (mobilenet_v2), and is what tensor cores want.
    return _build(network, num_classes, pretrained == "imagenet").to(memory_format=torch.channels_last)


def _build(network: str, num_classes: int, imagenet: bool) -> Segmenter:
    if match := re.fullmatch(r"deeplab_v2_(resnet(?:18|50|101))(@16)?", network):
        return _deeplab_v2(network, match[1], 16 if match[2] else 8, num_classes, imagenet)
    if match := re.fullmatch(r"smp:(\w+)/(\S+)", network):
        return _smp(network, match[1], match[2], num_classes, imagenet)
    if re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)+", network):
        return _from_factory(network, num_classes, imagenet)
    raise UserError(f"network {network!r} is none of the known forms:\n{_FORMS}")


def _deeplab_v2(network: str, resnet_name: str, output_stride: int, num_classes: int, imagenet: bool) -> Segmenter:
    # Imported here, as smp below, since torchvision and smp take seconds.
    from sfda.networks.deeplab_v2 import DeepLabV2, imagenet_weights, resnet

    encoder = resnet(resnet_name)
    if imagenet:
        with _downloading(network, f"place the file in {torch.hub.get_dir()}/checkpoints"):
            weights = imagenet_weights(resnet_name)
        encoder.load_state_dict(weights)
    module = DeepLabV2(encoder, num_classes, output_stride)
    return Segmenter(module, num_classes, backbone="backbone", head="classifier", align_corners=True)


def _smp(network: str, architecture: str, encoder: str, num_classes: int, imagenet: bool) -> Segmenter:
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
                architecture, encoder_name=encoder, encoder_weights=weights, classes=num_classes, **options
            )
            if imagenet:  # Not every encoder was trained with the usual mean and standard deviation.
                settings = smp.encoders.get_preprocessing_params(encoder)
                normalisation = {"mean": settings["mean"], "std": settings["std"]}
        except (KeyError, ValueError, RuntimeError) as error:
            raise UserError(f"network {network!r}: segmentation-models-pytorch refuses it: {error}") from error
    multiple = int(module.encoder.output_stride) * 2**halvings
    return Segmenter(
        module, num_classes, backbone="encoder", head="segmentation_head", multiple=multiple, **normalisation
    )


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


def _from_factory(network: str, num_classes: int, imagenet: bool) -> Segmenter:
    if imagenet:
        raise UserError(
            f"network {network!r}: a factory loads its own weights; use `--model.init_args.pretrained none`"
        )
    module = _import_factory(network)(num_classes)
    if isinstance(module, Segmenter):
        return module
    if not isinstance(module, nn.Module):
        raise UserError(f"network {network!r}: the factory gave a {type(module).__name__}, not a torch.nn.Module")
    split = all(isinstance(getattr(module, part, None), nn.Module) for part in ("backbone", "classifier"))
    convolutions = [
        name
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Conv2d) and (not split or f"{name}.".startswith("classifier."))
    ]
    if not convolutions:
        raise UserError(f"network {network!r}: no Conv2d in it that could be its head; let it return a Segmenter")
    return Segmenter(
        module,
        num_classes,
        backbone="backbone" if split else None,
        head=convolutions[-1],
        align_corners=bool(getattr(module, "align_corners", False)),
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
    )


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
