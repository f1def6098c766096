"""Weights from elsewhere, brought into a network: all of them or none."""

from collections.abc import Sequence

import torch
from torch import nn

from sfda.errors import UserError
from sfda.networks.matching import Match, match_names
from sfda.networks.segmenter import Segmenter
from sfda.networks.weights_file import Tensors, WeightsFile

FEW = 0.5
"""Share of a network's weights below which a file is one of another network."""
SHOWN = 5
"""Names that a message lists at most."""


def import_weights(
    segmenter: Segmenter, weights: WeightsFile, key: str | None = None, without: Sequence[str] = ()
) -> tuple[str, Match]:
    """Fill a network from a file of another project.

    Args:
        segmenter: Its network is filled, whole or not at all; its preprocessing is left alone.
        weights: The file.
        key: Where in the file the weights lie, as `WeightsFile.tensor_sets` names it; None: where most of them fit.
        without: Patterns of tensors that are left out, see `match_names`.

    Returns:
        Where the weights lay, and how they fitted.

    Raises:
        UserError: they do not fit as a whole.
    """
    wanted = segmenter.network.state_dict()
    place, found, match = best_match(wanted, weights, key, without)
    if not match.is_whole:
        raise UserError(
            f"{weights.path} does not fit the network: {describe_misfit(match, wanted, found, segmenter.num_outputs)}"
        )
    counters = {name: value for name, value in wanted.items() if name not in match.renamed}
    segmenter.network.load_state_dict({**counters, **{ours: found[name] for ours, name in match.renamed.items()}})
    return place, match


@torch.no_grad()
def clear_subnormals(network: nn.Module) -> int:
    """Set weights to 0 that are below the smallest normal float (1.2e-38), and count them.

    Weight decay leaves them in filters that no image excites. No logit sees them, but CPUs compute with them in
    microcode: a published ESPNet, of whose values 5 % were such, took 15 times as long as without.
    """
    cleared = 0
    for value in network.state_dict().values():
        if value.is_floating_point():
            small = (value != 0) & (value.abs() < torch.finfo(value.dtype).tiny)
            cleared += int(small.sum())
            value[small] = 0
    return cleared


def best_match(
    wanted: Tensors, weights: WeightsFile, key: str | None = None, without: Sequence[str] = ()
) -> tuple[str, Tensors, Match]:
    """The place in a file whose tensors fit a network best: its name, its tensors, how they fit.

    Raises:
        UserError: nothing is there.
    """
    sets = weights.tensor_sets()
    if not sets:
        raise UserError(f"{weights.path} holds no tensors by name, so no weights")
    if key is not None and key not in sets:
        raise UserError(f"--key {key}: {weights.path} holds tensors under {', '.join(filter(None, sets))}")
    tried = {name: match_names(wanted, sets[name], without) for name in (sets if key is None else [key])}
    # Of several that fit equally well the innermost of the first: the whole file has the same tensors, and more.
    place = min(tried, key=lambda name: (-tried[name].used, len(tried[name].left_over), -depth(name)))
    return place, sets[place], tried[place]


def depth(place: str) -> int:
    """How deep inside a file a place lies."""
    return len(place.split(".")) if place else 0


def describe_misfit(match: Match, wanted: Tensors, found: Tensors, num_outputs: int) -> str:
    """What does not fit a network of `num_outputs` outputs, and what to do about it."""
    if match.used < FEW * len(wanted):
        return (
            f"its tensors ({_some(list(found))}) are not those of the network ({_some(list(wanted))}): "
            "name the network that they belong to"
        )
    faults = []
    if match.other_shapes:
        faults.append(_describe_shapes(match, wanted, found, num_outputs))
    if match.missing:
        faults.append(f"{len(match.missing)} weights of the network are not in it: {_some(match.missing)}")
    if match.left_over:
        faults.append(
            f"the network has no place for {len(match.left_over)} of its tensors: {_some(match.left_over)} "
            "(--without PATTERN leaves some out)"
        )
    return "; ".join(faults)


def _describe_shapes(match: Match, wanted: Tensors, found: Tensors, num_outputs: int) -> str:
    name = match.other_shapes[-1]
    ours, theirs = wanted[name].shape, found[match.renamed[name]].shape
    text = (
        f"{len(match.other_shapes)} tensors have other shapes, for example {name}: {_size(theirs)}, not {_size(ours)}"
    )
    # A head that ends the network differs in its outputs alone; other tensors may follow, in a decoder per class.
    differing = {(a, b) for a, b in zip(ours, theirs, strict=False) if a != b}
    if len(ours) == len(theirs) and len(differing) == 1 and (counts := differing.pop())[0] == num_outputs:
        outputs = counts[1]
        text += f". Its network has {outputs} outputs, this one {num_outputs}: "
        if outputs > num_outputs:
            text += "say with --drop-output which of them stand for no class, or "
        text += f"give the class set of all {outputs} with --network-classes"
    return text


def _size(shape: torch.Size) -> str:
    return "x".join(map(str, shape)) or "one value"


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
