"""Which tensor of a file belongs to which weight of a network."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import Tensor

AUXILIARY = ("*aux*",)
"""Tensors of heads that serve the training alone."""
COUNTER = "num_batches_tracked"
"""Buffer that files from before torch 0.4.1 lack; nothing here reads it."""
DEEPEST = 5
"""Parts of a name that a prefix has at most."""


@dataclass(frozen=True)
class Match:
    """How the tensors of a file fit a network.

    Attributes:
        renamed: Name in the network → name in the file.
        missing: Names in the network that the file has nothing for.
        left_over: Names in the file that the network has no place for.
        other_shapes: Names in the network whose tensor in the file has another shape.
    """

    renamed: dict[str, str]
    missing: list[str]
    left_over: list[str]
    other_shapes: list[str]

    @property
    def is_whole(self) -> bool:
        """Whether each weight of the network has its tensor, and each tensor its place."""
        return not (self.missing or self.left_over or self.other_shapes)

    @property
    def used(self) -> int:
        """Tensors that fit."""
        return len(self.renamed) - len(self.other_shapes)

    def prefixes(self) -> dict[str, str]:
        """What the names of the file begin with where those of the network begin with something else."""
        pairs = Counter(_unlike(ours, theirs) for ours, theirs in self.renamed.items())
        return {ours: theirs for ours, theirs in pairs if ours != theirs}


def match_names(network: Mapping[str, Tensor], file: Mapping[str, Tensor], without: Iterable[str] = ()) -> Match:
    """Match names but for what stands in front of them, for the whole network or for each of its parts.

    Args:
        network: The weights of the network by name.
        file: The tensors of the file by name.
        without: Patterns (``criterion.*``) of tensors that are left out of the file; those of auxiliary heads are
            left out anyhow where the network has no place for them.
    """
    file = {name: tensor for name, tensor in file.items() if not _fits(name, without)}
    renamed = _by_prefix(network, file)
    if len(renamed) < len(network):
        by_part: dict[str, str] = {}
        for part in _parts(network):
            by_part |= _by_prefix(part, file)
        if len(set(by_part.values())) > len(renamed):
            renamed = by_part
    used = set(renamed.values())
    return Match(
        renamed,
        [name for name in network if name not in renamed and not name.endswith(COUNTER)],
        [name for name in file if name not in used and not name.endswith(COUNTER) and not _fits(name, AUXILIARY)],
        [ours for ours, theirs in renamed.items() if network[ours].shape != file[theirs].shape],
    )


def _fits(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _by_prefix(network: Mapping[str, Tensor], file: Mapping[str, Tensor]) -> dict[str, str]:
    """The weights whose names are in the file when what all begin with is replaced by one other beginning.

    Of several beginnings the one counts with which most tensors have their weight's shape.
    """
    best: dict[str, str] = {}
    best_score = (0, 0)
    theirs = sorted({prefix for name in file for prefix in _beginnings(name)}, key=len)
    for ours in _common_beginnings(list(network)):
        cut = [(name, name[len(ours) :]) for name in network]
        for prefix in theirs:
            found = {name: prefix + rest for name, rest in cut if prefix + rest in file}
            same_shape = sum(network[name].shape == file[other].shape for name, other in found.items())
            if (same_shape, len(found)) > best_score:
                best, best_score = found, (same_shape, len(found))
    return best


def _beginnings(name: str) -> Iterator[str]:
    parts = name.split(".")
    for count in range(min(len(parts), DEEPEST)):
        yield "".join(f"{part}." for part in parts[:count])


def _common_beginnings(names: list[str]) -> list[str]:
    return [prefix for prefix in _beginnings(names[0]) if all(name.startswith(prefix) for name in names)]


def _parts(network: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """The weights of each child of the first module that has several."""
    depth = max(len(prefix) for prefix in _common_beginnings(list(network)))
    parts: dict[str, dict[str, Tensor]] = {}
    for name, weight in network.items():
        parts.setdefault(name[depth:].partition(".")[0], {})[name] = weight
    return list(parts.values())


def _unlike(ours: str, theirs: str) -> tuple[str, str]:
    """What is left of two names without their common end, whole parts only."""
    first, second = ours.split("."), theirs.split(".")
    while first and second and first[-1] == second[-1]:
        first.pop()
        second.pop()
    return "".join(f"{part}." for part in first), "".join(f"{part}." for part in second)
