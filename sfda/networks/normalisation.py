"""Normalisation layers of any kind: which there are, and their scales and shifts."""

from collections.abc import Iterator

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

_KINDS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
"""BatchNorm and InstanceNorm of every dimension are `_NormBase`."""


def normalisation_layers(module: nn.Module) -> dict[str, nn.Module]:
    """Name → normalisation layer, with scale and shift or without, in the order of definition.

    Those of torch and what is derived from them (timm's `LayerNorm2d`), and layers of other libraries that are called
    so and whose only parameters are a scale and a shift per channel.
    """
    return {name: layer for name, layer in module.named_modules() if is_normalisation(layer)}


def affine_parameters(module: nn.Module) -> Iterator[nn.Parameter]:
    """Scales and shifts of every normalisation layer, each once, layer by layer."""
    for layer in normalisation_layers(module).values():
        yield from layer.parameters(recurse=False)


def is_normalisation(layer: nn.Module) -> bool:
    """Whether a layer normalises features."""
    return isinstance(layer, _KINDS) or ("norm" in type(layer).__name__.lower() and _has_only_vectors(layer))


def _has_only_vectors(layer: nn.Module) -> bool:
    parameters = dict(layer.named_parameters())
    names_fit = parameters.keys() in ({"weight"}, {"weight", "bias"})
    return names_fit and all(parameter.ndim == 1 for parameter in parameters.values())
