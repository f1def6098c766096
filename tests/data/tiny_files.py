"""Writes tiny data sets in exactly the encodings of GTA5, SYNTHIA and Cityscapes, and a plain folder.

Knows nothing of `sfda`: the tables are typed from the data sets' own documentation. Every function returns the true
label maps by name, in the 19 train ids of Cityscapes (255 = ignored); `write_folder` in the classes of its YAML file.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = (24, 48)
CITYSCAPES_LABEL_IDS = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]
"""Label id of each train id."""
CITYSCAPES_IGNORED = [0, 1, 2, 3, 4, 5, 6, 9, 10, 14, 15, 16, 18, 29, 30]
SYNTHIA_LABEL_IDS = {
    0: 3, 1: 4, 2: 2, 3: 21, 4: 5, 5: 7, 6: 15, 7: 9, 8: 6, 10: 1, 11: 10, 12: 17, 13: 8, 15: 19, 17: 12, 18: 11,
}  # fmt: skip
SYNTHIA_IGNORED = [0, 13, 14, 16, 18, 20, 22]
FOLDER_CLASSES = """\
names: [road, building, sky, car]
colours: [[128, 64, 128], [70, 70, 70], [70, 130, 180], [0, 0, 142]]
ids: {10: road, 20: building, 30: sky, 40: car, 41: car}
ignore: [0]
"""
FOLDER_VALUES = {10: 0, 20: 1, 30: 2, 40: 3, 41: 3, 0: 255, 255: 255}


def write_gta5(root: Path, n: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """`images/00001.png`, `labels/00001.png`: palette PNGs whose index is the Cityscapes id."""
    truth = {}
    for number in range(1, n + 1):
        name = f"{number:05d}"
        values, truth[name] = _cityscapes_label(rng)
        save(_picture(rng), root / "images" / f"{name}.png")
        label = Image.fromarray(values)
        label.putpalette(np.random.default_rng(0).integers(0, 256, 768, dtype=np.uint8).tobytes())
        save(label, root / "labels" / f"{name}.png")
    return truth


def write_synthia(root: Path, n: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """`RGB/0000000.png`, `GT/LABELS/0000000.png`: 16-bit RGB PNGs, class in red, instance in green."""
    truth = {}
    values_of = np.full(256, 255)
    values_of[list(SYNTHIA_LABEL_IDS)] = list(SYNTHIA_LABEL_IDS.values())
    for number in range(n):
        name = f"{number:07d}"
        truth[name] = rng.choice([*SYNTHIA_LABEL_IDS, 255], SIZE).astype(np.uint8)
        values = np.where(truth[name] == 255, rng.choice(SYNTHIA_IGNORED, SIZE), values_of[truth[name]])
        instances = rng.integers(0, 3000, SIZE)
        save(_picture(rng), root / "RGB" / f"{name}.png")
        path = root / "GT" / "LABELS" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png16(np.stack([values, instances, np.zeros(SIZE, int)], axis=-1)))
    return truth


def write_cityscapes(root: Path, n_train: int, n_val: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """`leftImg8bit/<split>/<city>/…` and `gtFine/<split>/<city>/…_gtFine_labelIds.png` (8-bit ids)."""
    truth = {}
    cities = {"train": ["aachen", "bremen"], "val": ["lindau"]}
    for split, n in (("train", n_train), ("val", n_val)):
        for number in range(n):
            city = cities[split][number % len(cities[split])]
            name = f"{city}_{number:06d}_000019"
            values, truth[name] = _cityscapes_label(rng)
            save(_picture(rng), root / "leftImg8bit" / split / city / f"{name}_leftImg8bit.png")
            save(values, root / "gtFine" / split / city / f"{name}_gtFine_labelIds.png")
            # The archive holds these too.
            save(truth[name], root / "gtFine" / split / city / f"{name}_gtFine_labelTrainIds.png")
    return truth


def write_acdc(root: Path, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """`rgb_anon/<condition>/<split>/<sequence>/…_rgb_anon.png`, `gt/…_gt_labelIds.png`: 3 to train on, 2 val."""
    truth = {}
    for place, name in (
        ("fog/train/GOPR0475", "GOPR0475_frame_000041"),
        ("fog/train/GOPR0475", "GOPR0475_frame_000247"),
        ("night/train/GOPR0351", "GOPR0351_frame_000159"),
        ("fog/val/GOPR0476", "GOPR0476_frame_000854"),
        ("snow/val/GOPR0606", "GOPR0606_frame_000046"),
    ):
        values, truth[name] = _cityscapes_label(rng)
        save(_picture(rng), root / "rgb_anon" / place / f"{name}_rgb_anon.png")
        save(values, root / "gt" / place / f"{name}_gt_labelIds.png")
        save(truth[name], root / "gt" / place / f"{name}_gt_labelTrainIds.png")
    # The same street in good weather, which is no part of the split.
    save(_picture(rng), root / "rgb_anon/fog/train_ref/GOPR0475/GOPR0475_frame_000041_rgb_ref_anon.png")
    return truth


def write_bdd100k(root: Path, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """`images/10k/<split>/….jpg`, `labels/sem_seg/masks/<split>/….png` (train ids): 3 to train on, 2 val."""
    truth = {}
    for number in range(5):
        split, name = "train" if number < 3 else "val", f"{number:08x}-d4dff0ad"
        truth[name] = _cityscapes_label(rng)[1]
        save(_picture(rng), root / "images/10k" / split / f"{name}.jpg")
        save(truth[name], root / "labels/sem_seg/masks" / split / f"{name}.png")
    save(_picture(rng), root / "images/10k/test/ff55861e-a06b953c.jpg")
    return truth


def write_folder(root: Path, n: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """`{train,val}/{images,labels}`: n of each, of mixed sizes, every second image a JPEG; `classes.yaml`."""
    truth = {}
    root.mkdir(parents=True, exist_ok=True)
    (root / "classes.yaml").write_text(FOLDER_CLASSES, encoding="utf-8")
    index_of = np.full(256, 99, np.uint8)
    index_of[list(FOLDER_VALUES)] = list(FOLDER_VALUES.values())
    for split in ("train", "val"):
        for number in range(n):
            name, size = f"{split}_{number}", (SIZE[0] + 2 * number, SIZE[1] - 3 * (number % 5))
            values = rng.choice(list(FOLDER_VALUES), size).astype(np.uint8)
            truth[name] = index_of[values]
            save(_picture(rng, size), root / split / "images" / f"{name}{'.jpg' if number % 2 else '.png'}")
            save(values, root / split / "labels" / f"{name}.png")
    return truth


def png16(channels: np.ndarray) -> bytes:
    """(H, W, 3) as a 16-bit RGB PNG, byte by byte as the PNG specification says; Pillow cannot write one."""
    height, width, _ = channels.shape
    rows = channels.astype(">u2").reshape(height, -1)
    return png(height, width, 2, b"".join(b"\0" + row.tobytes() for row in rows), bits=16)


def png(height: int, width: int, colour_type: int, rows: bytes, bits: int = 8) -> bytes:
    """A PNG that declares what it is told to, whatever `rows` (filter byte and pixels of each) hold."""
    chunks = {
        b"IHDR": struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0),
        **({b"PLTE": bytes(range(256)) * 3} if colour_type == 3 else {}),
        b"IDAT": zlib.compress(rows),
        b"IEND": b"",
    }
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(kind, data) for kind, data in chunks.items())


def chunk(kind: bytes, data: bytes) -> bytes:
    """One part of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _cityscapes_label(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    train_ids = rng.choice([*range(19), 255], SIZE).astype(np.uint8)
    label_ids = np.array(CITYSCAPES_LABEL_IDS + [0] * 237)[train_ids]
    return np.where(train_ids == 255, rng.choice(CITYSCAPES_IGNORED, SIZE), label_ids).astype(np.uint8), train_ids


def _picture(rng: np.random.Generator, size: tuple[int, int] = SIZE) -> Image.Image:
    return Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8))


def save(image: Image.Image | np.ndarray, path: Path) -> None:
    """Write an image, as the ending of `path` says, in a folder made for it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(path)
