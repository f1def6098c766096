"""``sfda weights``: look into a file of weights, and make a checkpoint of it that every method can start from."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor

from sfda.cli.source import Source, largest_set, open_source, options_of
from sfda.data.label_spaces import NAMED, ClassSet, load_class_set
from sfda.errors import UserError
from sfda.files import write_whole
from sfda.networks.build import build_network
from sfda.networks.import_weights import best_match, describe_misfit
from sfda.networks.matching import COUNTER
from sfda.networks.weights_file import WeightsFile, describe_tensors, read_weights
from sfda.runs.checkpoints import refuse_broken_weights, source_checkpoint, write_checkpoint

ENDS = 4
"""Tensors that are shown from the beginning and from the end of a place."""


# ---------------------------------------------------------------- inspect


def inspect(said: argparse.Namespace) -> None:
    """Print what a file holds.

    Raises:
        UserError: it is no file of weights, or does not fit the network that was named.
    """
    path, console = said.file, Console()
    if path.is_dir():
        _say(console, *open_source(path, said).story)
        return
    weights = read_weights(path)
    _say(console, f"{path}: {weights.form}")
    if facts := weights.plain_values():
        _say(console, "beside the weights: " + ", ".join(f"{key} {value}" for key, value in list(facts.items())[:12]))
    if weights.left_out:
        _say(console, f"not read, since they are no tensors: objects of {', '.join(weights.left_out)}")
    table = Table("under", "tensors", box=None, header_style="bold")
    for place, tensors in weights.tensor_sets().items():
        if place.count(".") == 0:
            table.add_row(place or "(the whole file)", describe_tensors(tensors))
    console.print(table)
    found = largest_set(weights)
    _show_ends(found, console)
    if said.network:
        _show_fit(weights, said, console)


def _show_ends(found: Mapping[str, Tensor], console: Console) -> None:
    names = list(found)
    middle = ["…"] if len(names) > 2 * ENDS else []
    shown = [*names[:ENDS], *middle, *names[max(ENDS, len(names) - ENDS) :]]
    for name in shown:
        _say(console, f"  {name}  {tuple(found[name].shape)}" if name in found else "  …")


def _show_fit(weights: WeightsFile, said: argparse.Namespace, console: Console) -> None:
    classes = load_class_set(said.network_classes or "cityscapes19")
    segmenter = build_network(said.network, len(classes), options=options_of(said))
    wanted = {name: value for name, value in segmenter.network.state_dict().items() if not name.endswith(COUNTER)}
    place, found, match = best_match(wanted, weights, said.key, said.without)
    _say(
        console,
        f"{match.used} of {len(wanted)} tensors of {said.network} are there{f' under {place}' if place else ''}",
    )
    if not match.is_whole:
        misfit = describe_misfit(match, wanted, found, segmenter.num_outputs)
        raise UserError(f"{weights.path} does not fit {said.network}: {misfit}")
    refuse_broken_weights({name: found[theirs] for name, theirs in match.renamed.items()}, str(weights.path))


# ---------------------------------------------------------------- import


def import_file(said: argparse.Namespace) -> None:
    """Write the checkpoint and its config.

    Raises:
        UserError: the file cannot be used, or something stands in the way of the new ones.
    """
    out, console = said.out, Console()
    if out.suffix != ".ckpt":
        raise UserError(f"--out {out}: give a file name that ends in .ckpt")
    for file in written_with(out):
        if file.exists():
            raise UserError(f"--out {out}: {file} is there already; choose another name, or move it away")
    source = open_source(said.file, said)
    _say(console, *source.story)
    config = write_source(source, out)
    _say(console, f"{out} can be adapted: sfda adapt --source {out} --images FOLDER --out DIR")
    _say(console, f"or by any experiment: sfda fit own/ada_bn --config {config} --data mine.yaml")


def written_with(out: Path) -> tuple[Path, Path, Path]:
    """A source checkpoint, its config, and the classes that it predicts."""
    return out, out.with_suffix(".yaml"), out.with_suffix(".classes.yaml")


def write_source(source: Source, out: Path) -> Path:
    """Write a source model as a checkpoint, ``OUT.ckpt``, and what names its network, ``OUT.yaml``; returns that."""
    _, config, class_file = written_with(out)
    classes = source.classes.name
    if classes not in NAMED:
        write_whole(
            class_file, yaml.safe_dump(as_yaml(source.classes), sort_keys=False, default_flow_style=None).encode()
        )
        classes = str(class_file.absolute())
    model: dict[str, Any] = {"network": source.network, "source_checkpoint": str(out.absolute())}
    if source.options:
        model["network_options"] = dict(source.options)
    content = {"model": {"init_args": model}, "data": {"init_args": {"classes": classes}}}
    write_checkpoint(out, source_checkpoint(source.segmenter, source.facts()))
    write_whole(config, yaml.safe_dump(content, sort_keys=False).encode())
    return config


def as_yaml(classes: ClassSet) -> dict[str, Any]:
    """The names and colours of a class set as its YAML file has them."""
    return {"names": list(classes.names), "colours": [list(colour) for colour in classes.colours]}


def _say(console: Console, *lines: str) -> None:
    for line in lines:
        console.print(Text(line), soft_wrap=True, highlight=False)
