"""What a user may have to say about a source model. Imports no torch."""

import argparse

import yaml


def add_arguments(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """What a user may have to say about a source model."""
    parser.add_argument("--network", help="smp:DeepLabV3Plus/resnet50, torchvision:…, hf:FOLDER, your.module.factory")
    classes = "class set of the network's outputs: a name or a YAML file (default: cityscapes19, or what FOLDER says)"
    parser.add_argument("--network-classes", metavar="FILE", help=classes)
    drop = "an output that stands for no class, counted from 0; may be given several times"
    parser.add_argument("--drop-output", type=int, action="append", metavar="N", help=drop)
    parser.add_argument("--channel-order", choices=("rgb", "bgr"), help="of the images that the network takes")
    parser.add_argument("--pixel-range", type=int, choices=(1, 255), default=1, help="largest value of these images")
    for name, what in (("mean", "mean"), ("std", "standard deviation")):
        text = f"{what} per channel, in the order and range that the network takes"
        text += "; what divides the input once more is a factor of the deviation" if name == "std" else ""
        parser.add_argument(f"--{name}", type=float, nargs=3, metavar="X", help=text)
    more = "further facts, as YAML: {head: decoder.conv, multiple: 32, align_corners: true, output: aux, backbone: net}"
    parser.add_argument("--network-options", type=yaml.safe_load, metavar="YAML", help=more)
    parser.add_argument("--key", help="where in the file the weights lie, for example ema (default: where they fit)")
    without = "leave tensors out that the network has no place for, for example 'criterion.*'"
    parser.add_argument("--without", action="append", default=[], metavar="PATTERN", help=without)
