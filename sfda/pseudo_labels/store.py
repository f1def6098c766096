"""Pseudo-labels on disk: one file per image, and a manifest that says what they were made by."""

import hashlib
import io
import json
import sys
import zlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from sfda.data.errors import UnreadableFile
from sfda.data.images import read_label_values
from sfda.data.label_spaces import IGNORE
from sfda.errors import UserError
from sfda.files import write_json, write_whole
from sfda.ranks import barrier, rank_and_world_size

Label = npt.NDArray[np.uint8]
Arrays = dict[str, npt.NDArray[Any]]
_CRC_BYTES = 4


class PseudoLabelStore:
    """Pseudo-labels in ``<folder>/labels/<name>.png``, 8 bits, 255 = unlabelled, and ``<folder>/manifest.json``.

    Labels of another identity are never used: `open` removes them. A file is written whole or not at all, so that a
    process may be killed at any time. While labels are being made, ``<folder>/confidences`` holds temporaries.

    All processes share the folder. Each writes the labels of its own images; the manifest is written by rank 0.

    Args:
        folder: Made where it is missing.
        identity: All that the labels depend on: method, weights (`weights_hash`), classes, size, options. Values that
            JSON can hold.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        self.folder = folder
        self.identity: dict[str, Any] = json.loads(json.dumps(identity))  # tuples become lists, as in the manifest
        self._manifest: dict[str, Any] = {"identity": self.identity, "complete": False, "notes": {}, "report": {}}

    @property
    def complete(self) -> bool:
        """Whether every image has its label."""
        return bool(self._manifest["complete"])

    @property
    def report(self) -> dict[str, Any]:
        """What `finish` was given."""
        return dict(self._manifest["report"])

    @property
    def notes(self) -> dict[str, Any]:
        """What `note` was given last; empty before, and once the labels are complete."""
        return dict(self._manifest["notes"])

    def open(self) -> None:
        """Go on where a killed process with the same identity stopped, or start again; to be called by all ranks.

        Raises:
            UserError: the manifest cannot be read, or is missing where there are labels.
        """
        stored = self._read_manifest()
        barrier()  # all have read before rank 0 changes anything
        if stored is not None and stored["identity"] == self.identity:
            self._manifest = stored
        elif rank_and_world_size()[0] == 0:
            if stored is not None:
                self._say_what_differs(stored["identity"] or {})
                # The identity of nobody: killed now, the next process goes on with the removal.
                self._write_manifest({**stored, "identity": None})
                self._remove_files()
            self._write_manifest(self._manifest)
        barrier()

    def note(self, facts: Mapping[str, Any]) -> None:
        """Keep in the manifest what a resumed process must know; to be called by all ranks with the same facts."""
        self._update(notes=json.loads(json.dumps(facts)))

    def finish(self, report: Mapping[str, Any]) -> None:
        """Mark the labels complete; to be called by all ranks, with the same report, after their last label."""
        self._update(complete=True, notes={}, report=json.loads(json.dumps(report)))
        if rank_and_world_size()[0] == 0:
            with suppress(OSError):
                (self.folder / "confidences").rmdir()

    def _update(self, **entries: Any) -> None:
        self._manifest = {**self._manifest, **entries}
        barrier()
        if rank_and_world_size()[0] == 0:
            self._write_manifest(self._manifest)
        barrier()

    def _read_manifest(self) -> dict[str, Any] | None:
        path = self.folder / "manifest.json"
        if not path.exists():
            if label := next(self._files(), None):
                raise UserError(f"{label} is there, and no {path.name} says of what: move {self.folder} away")
            return None
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(f"{path} cannot be read ({error}): {self.advice}") from error
        checksum = stored.pop("checksum", None) if isinstance(stored, dict) else None
        if (
            not isinstance(stored, dict)
            or stored.keys() != self._manifest.keys()
            or not all(isinstance(stored[part], dict) for part in ("notes", "report"))
            or not isinstance(stored["identity"], dict | None)
        ):
            raise UserError(f"{path} is no manifest of pseudo-labels: {self.advice}")
        if checksum != _checksum(stored):
            raise UserError(f"{path} is damaged, its checksum is wrong: {self.advice}")
        return stored

    def _write_manifest(self, content: Mapping[str, Any]) -> None:
        write_json(self.folder / "manifest.json", {**content, "checksum": _checksum(content)})

    def _say_what_differs(self, stored: Mapping[str, Any]) -> None:
        keys = [key for key in {**stored, **self.identity} if stored.get(key) != self.identity.get(key)]
        sys.stdout.write(f"the pseudo-labels in {self.folder} are remade, they are of another {', '.join(keys)}\n")

    @property
    def advice(self) -> str:
        """What to do where something in the folder is damaged."""
        return f"delete {self.folder}, and all pseudo-labels are made again"

    def _label(self, name: str) -> Path:
        return self.folder / "labels" / f"{name}.png"

    def _temporary(self, name: str) -> Path:
        return self.folder / "confidences" / f"{name}.npz"

    def _files(self) -> Iterator[Path]:
        """Every label and temporary, half-written ones too."""
        for folder, ending in (("labels", "png"), ("confidences", "npz")):
            yield from (self.folder / folder).glob(f"*.{ending}")
            yield from (self.folder / folder).glob(f".*.{ending}.tmp")

    def _remove_files(self) -> None:
        for path in list(self._files()):
            path.unlink()

    def labelled(self) -> set[str]:
        """Names of the images that have a label."""
        return {path.stem for path in (self.folder / "labels").glob("*.png")}

    def has(self, name: str) -> bool:
        """Whether an image has a label."""
        return self._label(name).exists()

    def write(self, name: str, label: Label) -> None:
        """Keep the label (H, W) of an image, 255 = unlabelled.

        Raises:
            UserError: it cannot be written.
        """
        write_whole(self._label(name), cv2.imencode(".png", label)[1].tobytes())

    def read(self, name: str) -> Label:
        """The label (H, W) of an image, 255 = unlabelled.

        Raises:
            UserError: it is missing or damaged, or holds other values than classes of the identity, if that has any.
        """
        try:
            label = read_label_values(self._label(name))
        except UnreadableFile as fault:
            raise UserError(f"pseudo-label {fault}; {self.advice}") from fault
        if label.dtype != np.uint8:
            raise UserError(f"pseudo-label {self._label(name)}: has 16 bits, not 8; {self.advice}")
        classes = self.identity.get("classes")
        if classes is not None and ((label >= len(classes)) & (label != IGNORE)).any():
            what = f"holds values that are none of its {len(classes)} classes"
            raise UserError(f"pseudo-label {self._label(name)}: {what}; {self.advice}")
        return label.astype(np.uint8, copy=False)

    def temporaries(self) -> set[str]:
        """Names of the images that have a temporary."""
        return {path.stem for path in (self.folder / "confidences").glob("*.npz")}

    def has_temporary(self, name: str) -> bool:
        """Whether an image has a temporary."""
        return self._temporary(name).exists()

    def write_temporary(self, name: str, arrays: Arrays) -> None:
        """Keep arrays of an image, uncompressed, a checksum behind them, until its label is written.

        Raises:
            UserError: they cannot be written.
        """
        file = io.BytesIO()
        np.savez(file, **arrays)  # type: ignore[arg-type]  # numpy 1 and 2 differ in what they let names be
        data = file.getvalue()
        write_whole(self._temporary(name), data + _crc(data))

    def read_temporary(self, name: str) -> Arrays:
        """What `write_temporary` was given.

        Raises:
            UserError: it is missing or damaged.
        """
        path = self._temporary(name)
        try:
            with path.open("rb") as file:
                data = file.read()
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror}): {self.advice}") from error
        # Those of a zip file's members do not cover its directory.
        if _crc(data[:-_CRC_BYTES]) != data[-_CRC_BYTES:]:
            raise UserError(f"{path} cannot be read (its checksum is wrong): {self.advice}")
        with np.load(io.BytesIO(data[:-_CRC_BYTES])) as arrays:
            return dict(arrays)

    def remove_temporary(self, name: str) -> None:
        """Remove the temporary of an image."""
        self._temporary(name).unlink()


def _crc(data: bytes) -> bytes:
    return zlib.crc32(data).to_bytes(_CRC_BYTES, "big")


def _checksum(content: Mapping[str, Any]) -> int:
    """CRC-32 of values that JSON can hold."""
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())


def weights_hash(*modules: nn.Module) -> str:
    """SHA-256 over names, types, shapes and bytes of all parameters and buffers, in order."""
    digest = hashlib.sha256()
    for number, module in enumerate(modules):
        for name, value in module.state_dict().items():
            digest.update(f"{number} {name} {value.dtype} {tuple(value.shape)} ".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
