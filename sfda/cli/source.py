"""The source model that a user brings: a file of weights, a folder of Hugging Face, or a run of `sfda`."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sfda.data.label_spaces import CITYSCAPES19, ClassSet, load_class_set
from sfda.errors import UserError
from sfda.networks.build import build_network
from sfda.networks.import_weights import clear_subnormals, depth, import_weights
from sfda.networks.options import NetworkOptions
from sfda.networks.segmenter import Segmenter
from sfda.networks.weights_file import WeightsFile, describe_tensors, read_weights
from sfda.runs.checkpoints import load_source_network, read_checkpoint, refuse_broken_weights, stored_options
from sfda.runs.run import Run
from sfda.yaml_files import read_mapping


@dataclass(frozen=True)
class Source:
    """A source model, ready to adapt.

    Attributes:
        segmenter: The network with its weights and its preprocessing.
        network: Its name, as ``--model.init_args.network`` takes it.
        options: What is known of it beside its name.
        classes: What it predicts.
        story: What was done, line by line.
    """

    segmenter: Segmenter
    network: str
    options: NetworkOptions | None
    classes: ClassSet
    story: tuple[str, ...] = ()

    def facts(self) -> dict[str, Any]:
        """What its checkpoint says of it."""
        return {"network": self.network, "num_classes": len(self.classes), "network_options": self.options}


def options_of(said: argparse.Namespace) -> NetworkOptions | None:
    """What a user said of the network, in RGB and [0, 1]."""
    further = said.network_options or {}
    known = NetworkOptions.__annotations__
    if not isinstance(further, dict) or (unknown := set(further) - set(known)):
        named = f"{', '.join(sorted(unknown))}: unknown; " if isinstance(further, dict) else ""
        raise UserError(f"--network-options: {named}give a mapping of {', '.join(known)}")
    options: dict[str, Any] = dict(further)
    if said.drop_output:
        options["drop_outputs"] = sorted(set(said.drop_output))
    if said.channel_order:
        options["channel_order"] = said.channel_order
    if said.mean or said.std or said.pixel_range != 1:
        turn = -1 if said.channel_order == "bgr" else 1
        options["mean"] = [value / said.pixel_range for value in (said.mean or [0.0] * 3)][::turn]
        options["std"] = [value / said.pixel_range for value in (said.std or [1.0] * 3)][::turn]
    return options or None  # type: ignore[return-value]


def open_source(path: Path, said: argparse.Namespace) -> Source:
    """The source model at a path, as a file or a folder.

    Raises:
        UserError: it cannot be used, or not without further words.
    """
    if path.is_dir():
        if (path / "config.yaml").is_file():
            _refuse_facts(path, said)
            return _from_run(Run(path))
        if (path / "config.json").is_file():
            return _from_hugging_face(path, said)
        raise UserError(
            f"--source {path}: this folder is neither one of Hugging Face (config.json) nor a run of `sfda` "
            "(config.yaml); give a file of weights in it"
        )
    if not path.is_file():
        raise UserError(f"--source {path}: no such file or folder")
    weights = read_weights(path)
    if not _is_own(weights):
        return _from_file(weights, said)
    _refuse_facts(path, said)
    beside = path.with_suffix(".yaml")
    return _from_imported(path, read_mapping(beside)) if beside.is_file() else _from_own(path, said)


def _refuse_facts(path: Path, said: argparse.Namespace) -> None:
    """Nothing that a user says of a network is passed over."""
    if (facts := options_of(said)) is not None:
        raise UserError(
            f"--source {path} says itself what its network takes and gives: leave away what says {', '.join(facts)}, "
            "or import the weights anew with it"
        )


def _is_own(weights: WeightsFile) -> bool:
    content = weights.content if isinstance(weights.content, Mapping) else {}
    facts = content.get("hyper_parameters")
    state = content.get("state_dict")
    named = isinstance(facts, Mapping) and {"network", "num_classes"} <= set(facts)
    return named and isinstance(state, Mapping) and "network.mean" in state


def _from_run(run: Run) -> Source:
    if not run.selected.is_file():
        raise UserError(f"--source {run.folder}: this run has no selected.ckpt; finish it first")
    model = run.model()
    classes = load_class_set(run.data().get("classes") or CITYSCAPES19.name)
    return _load(run.selected, model["network"], model.get("network_options"), classes)


def _from_imported(path: Path, said: Mapping[str, Any]) -> Source:
    """A checkpoint with the config that `sfda weights import` wrote beside it."""
    model, data = (said.get(part, {}).get("init_args", {}) for part in ("model", "data"))
    if "network" not in model:
        raise UserError(f"{path.with_suffix('.yaml')}: names no network under model.init_args")
    classes = load_class_set(data.get("classes") or CITYSCAPES19.name)
    return _load(path, model["network"], model.get("network_options"), classes)


def _from_own(path: Path, said: argparse.Namespace) -> Source:
    stored = stored_options(read_checkpoint(str(path)), str(path))
    network = said.network or stored["network"]
    if said.network is None and _names_code(network):
        raise UserError(f"{path} was trained with {network}, which is code: say that you trust it, --network {network}")
    return _load(
        path, network, stored.get("network_options"), load_class_set(said.network_classes or CITYSCAPES19.name)
    )


def _names_code(network: str) -> bool:
    return ":" not in network and "." in network


def _load(path: Path, network: str, options: NetworkOptions | None, classes: ClassSet) -> Source:
    segmenter = build_network(network, len(classes), options=options)
    facts = {"network": network, "num_classes": len(classes), "network_options": options}
    scale = load_source_network(segmenter, str(path), facts)
    size = f"; it saw images at {scale:g} times their size, which does not go along" if scale != 1 else ""
    return Source(segmenter, network, options, classes, (f"{path}: a checkpoint of sfda, network {network}{size}",))


def _from_hugging_face(folder: Path, said: argparse.Namespace) -> Source:
    from sfda.networks.hugging_face import hugging_face_classes, hugging_face_weights

    weights = WeightsFile(folder, "a folder of Hugging Face", hugging_face_weights(str(folder)))
    classes = (
        _classes(said.network_classes)
        if said.network_classes
        else classes_named(hugging_face_classes(str(folder)), str(folder))
    )
    return _import(weights, said.network or f"hf:{folder.absolute()}", classes, said)


def _from_file(weights: WeightsFile, said: argparse.Namespace) -> Source:
    if said.network is None:
        raise UserError(
            f"{weights.path} holds weights, not the network that they belong to ({weights.form}, "
            f"{describe_tensors(largest_set(weights))}): name it with --network, for example smp:DeepLabV3Plus/resnet50"
            ", torchvision:deeplabv3_resnet50, hf:FOLDER with its config.json, or your_package.module.factory"
        )
    return _import(weights, said.network, _classes(said.network_classes), said)


def _classes(name: str | None) -> ClassSet:
    return load_class_set(name or CITYSCAPES19.name)


def _import(weights: WeightsFile, network: str, classes: ClassSet, said: argparse.Namespace) -> Source:
    options = options_of(said)
    segmenter = build_network(network, len(classes), options=options)
    place, match = import_weights(segmenter, weights, said.key, said.without)
    refuse_broken_weights(segmenter.network.state_dict(), str(weights.path))
    where = f" under {place!r}" if place else ""
    lines = [f"{weights.path}: {weights.form}; {match.used} tensors{where} fill {network}"]
    lines += [
        f"  {theirs or 'names without prefix'} → {ours or 'names without prefix'}"
        for ours, theirs in match.prefixes().items()
    ]
    if cleared := clear_subnormals(segmenter.network):
        lines.append(f"  {cleared} values below 1.2e-38 are set to 0: they change nothing, and make CPUs slow")
    if weights.left_out:
        lines.append(f"  not read, since they are no tensors: objects of {', '.join(weights.left_out)}")
    return Source(segmenter, network, options, classes, tuple(lines))


def largest_set(weights: WeightsFile) -> Mapping[str, Any]:
    """The tensors of the place that holds most of them, as deep inside as possible."""
    sets = weights.tensor_sets()
    if not sets:
        raise UserError(f"{weights.path} holds no tensors by name, so no weights")
    return sets[max(sets, key=lambda place: (len(sets[place]), depth(place)))]


def classes_named(names: Sequence[str], origin: str) -> ClassSet:
    """The class set of a list of names: the 19 of Cityscapes, by whatever letters, or one with colours of its own."""
    if [name.lower().replace("_", " ") for name in names] == list(CITYSCAPES19.names):
        return CITYSCAPES19
    return ClassSet(origin, tuple(names), _palette(len(names)), {index: index for index in range(len(names))})


def _palette(count: int) -> tuple[tuple[int, int, int], ...]:
    """Colours that differ, the same ones each time."""
    from matplotlib import colormaps

    hues = colormaps["hsv"]([0.98 * index / count for index in range(count)])[:, :3]
    return tuple(
        tuple(round(255 * value * (1 if index % 2 else 0.6)) for value in hue) for index, hue in enumerate(hues)
    )
