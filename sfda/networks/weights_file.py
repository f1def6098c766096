"""Files of weights from anywhere: what they hold, read without running anything that is in them."""

import json
import pickle
import re
import struct
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sfda.archives import UNLOADABLE, is_archive, refuse_damaged_archive
from sfda.errors import UserError

Tensors = dict[str, Tensor]
MOST_KINDS = 64
"""Kinds of objects beside tensors that a file may hold."""
_EMA = re.compile(r"(^|[._])ema", re.IGNORECASE)


class Placeholder:
    """Stands where a file holds an object of another class: keeps its attributes, runs nothing of it."""

    def __new__(cls, *_: Any, **__: Any) -> "Placeholder":
        """Whatever it was made of."""
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.__dict__.update(state)


@dataclass(frozen=True)
class WeightsFile:
    """What a file of weights holds.

    Attributes:
        path: The file.
        form: Its format, in words.
        content: All of it; objects that are neither tensors nor plain values are `Placeholder`.
        left_out: Kinds of those objects.
    """

    path: Path
    form: str
    content: Any
    left_out: list[str] = field(default_factory=list)

    def tensor_sets(self) -> dict[str, Tensors]:
        """Where in the file tensors lie → those below that place by dotted name; "" is the whole file.

        The moving average of weights (EMA) comes after the weights themselves.
        """
        sets = dict(_sets(_as_mapping(self.content)))
        return dict(sorted(sets.items(), key=lambda item: bool(_EMA.search(item[0]))))

    def plain_values(self) -> dict[str, Any]:
        """Numbers and texts that stand beside the weights, such as the epoch."""
        content = self.content if isinstance(self.content, Mapping) else {}
        return {str(key): value for key, value in content.items() if isinstance(value, str | int | float | bool)}


def read_weights(path: Path) -> WeightsFile:
    """Read a file of torch, old or new, or of safetensors, to the CPU; nothing in it is run.

    torch's restricted unpickler (``weights_only=True``) reads it. Objects of classes that it does not know become
    `Placeholder`, so that weights beside an `argparse.Namespace`, or in a whole pickled module, can be had.

    Raises:
        UserError: no such file, or none of weights, or a damaged one, or one that would run commands.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file of weights")
    with path.open("rb") as file:
        start = file.read(16)
    if _is_safetensors(start, path.stat().st_size):
        return WeightsFile(path, "safetensors", _read_safetensors(path))
    if not is_archive(path):
        if start[:1] != b"\x80":  # every pickle of torch begins so
            raise UserError(f"{path} is no file of weights: neither torch's nor safetensors, or it was cut off")
        return _read_torch(path, "torch, before 1.6")
    refuse_damaged_archive(path)
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    if any(name.endswith("constants.pkl") for name in names):
        raise UserError(
            f"{path} is a TorchScript program: where it was made, save its weights, "
            "`torch.save(model.state_dict(), 'weights.pt')`"
        )
    return _read_torch(path, "torch")


def _is_safetensors(start: bytes, size: int) -> bool:
    return len(start) == 16 and start[8:9] == b"{" and struct.unpack("<Q", start[:8])[0] < size


def _read_safetensors(path: Path) -> Tensors:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, json.JSONDecodeError) as error:
        raise UserError(f"{path} is a damaged file of safetensors: {error}") from error


def _read_torch(path: Path, form: str) -> WeightsFile:
    unknown: dict[str, type] = {}
    while (content := _try_torch(path, unknown)) is None:
        if len(unknown) > MOST_KINDS:
            raise UserError(f"{path} holds objects of more than {MOST_KINDS} classes: save its weights alone")
    return WeightsFile(path, form, content, sorted(unknown))


def _try_torch(path: Path, unknown: dict[str, type]) -> Any:
    """The content; None where a class was met that was not in `unknown` and now is."""
    try:
        with torch.serialization.safe_globals([(kind, name) for name, kind in unknown.items()]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if (name := _unknown_class(str(error))) is None or name in unknown:
            raise UserError(f"{path} cannot be read: {_why(str(error))}") from error
        unknown[name] = type(name.rpartition(".")[2], (Placeholder,), {})
        return None
    except UNLOADABLE as error:
        raise UserError(f"{path} is damaged, or was cut off ({_first_line(error)})") from error


def _first_line(error: Exception) -> str:
    """The first line of what a library says, or the kind of its error where it says nothing."""
    return str(error).partition("\n")[0] or type(error).__name__


def _unknown_class(message: str) -> str | None:
    found = re.search(r"Unsupported global: GLOBAL (\S+) was not an allowed global", message)
    if found is None:
        return None
    # torch leaves `builtins.` away in the message, not in the name that it looks up.
    return found[1] if "." in found[1] else f"builtins.{found[1]}"


def _why(message: str) -> str:
    if blocked := re.search(r"GLOBAL (\S+) whose module", message):
        return f"it would call {blocked[1]}; do not use it"
    return (
        "it holds more than weights. Where it was made, save those alone, `torch.save(model.state_dict(), "
        "'weights.pt')`"
    )


def _as_mapping(content: Any) -> Any:
    """Mappings as they are; a pickled module as its weights by name."""
    if isinstance(content, Placeholder) and "_modules" in vars(content):
        return _state_of(content)
    return content


def _state_of(module: Placeholder) -> dict[str, Any]:
    own = vars(module)
    temporary = own.get("_non_persistent_buffers_set") or ()
    buffers = {name: value for name, value in own.get("_buffers", {}).items() if name not in temporary}
    children = {name: _as_mapping(child) for name, child in own["_modules"].items()}
    return {**own.get("_parameters", {}), **buffers, **children}


def _sets(content: Any, place: str = "") -> Iterator[tuple[str, Tensors]]:
    if not isinstance(content, Mapping):
        return
    if tensors := dict(_flat(content)):
        yield place, tensors
    for key, value in content.items():
        yield from _sets(_as_mapping(value), f"{place}.{key}" if place else str(key))


def _flat(content: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    for key, value in content.items():
        value = _as_mapping(value)
        if isinstance(value, Tensor):
            yield f"{prefix}{key}", value
        elif isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")


def describe_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Their number, values and types in words."""
    kinds = Counter(str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values())
    values = sum(tensor.numel() for tensor in tensors.values())
    return f"{len(tensors)} tensors, {values / 1e6:.2f} M values ({', '.join(kinds)})"
