"""The images that a report shows, chosen by rule, and their pictures."""

import base64
import io
from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from sfda.data.label_spaces import IGNORE
from sfda.report.entries import Entry, Findings
from sfda.runs.image_records import KINDS, Pictures, label_map

SHOWN = 12
"""Images of a report: half the worst, half those that adaptation changes most."""
ERROR_COLOURS = ((0, 158, 115), (213, 94, 0), (150, 150, 150))
"""Right, wrong, ignored: green, red and grey that colour-blind people tell apart (Okabe and Ito)."""
BOUNDARY = 0.02
"""Half width of a boundary as a share of the picture's diagonal (Cheng et al., arXiv 2103.16562)."""

Map = npt.NDArray[np.uint8]


def pictures_of(entry: Entry) -> dict[str, Pictures]:
    """Those of its first seed, by image."""
    return entry.records[0].pictures if entry.records else {}


def choose_images(findings: Findings) -> dict[str, str]:
    """Image → why it is shown, the worst first; of the images that every entry has kept pictures of."""
    known = [pictures_of(entry) for entry in findings.entries if pictures_of(entry)]
    if not known:
        return {}
    names = [name for name in known[0] if all(name in pictures for pictures in known)]
    chosen: dict[str, str] = {}
    adapted = [entry for entry in findings.entries if entry is not findings.source and pictures_of(entry)]
    scored = [entry for entry in adapted or findings.entries if entry.confusion]
    if scored:
        quality = {name: float(np.mean([entry.image_iou(name) for entry in scored])) for name in names}
        for name in sorted(names, key=lambda name: quality[name])[: SHOWN // 2]:
            chosen[name] = f"worst: mIoU {100 * quality[name]:.1f} %"
    if findings.source is not None and adapted and pictures_of(findings.source):
        changed = {name: _changed(name, findings.source, adapted) for name in names if name not in chosen}
        for name in sorted(changed, key=lambda name: -changed[name])[: SHOWN - len(chosen)]:
            chosen[name] = f"most changed: {100 * changed[name]:.0f} % of the pixels"
    return chosen or dict.fromkeys(names[:SHOWN], "")


def _changed(name: str, source: Entry, adapted: Sequence[Entry]) -> float:
    before = label_map(pictures_of(source)[name]["prediction"])
    return float(np.mean([(label_map(pictures_of(each)[name]["prediction"]) != before).mean() for each in adapted]))


def as_uri(content: bytes, kind: str) -> str:
    """A picture as the page holds it."""
    return f"data:image/{'jpeg' if kind == 'jpg' else kind};base64,{base64.b64encode(content).decode()}"


def views_of(pictures: Pictures) -> dict[str, str]:
    """Prediction, confidence and, with a label, errors of one image, as the page holds them."""
    found = {kind: as_uri(pictures[kind], KINDS[kind]) for kind in ("prediction", "confidence")}
    if "truth" in pictures:
        found["errors"] = as_uri(draw_errors(*(label_map(pictures[kind]) for kind in ("prediction", "truth"))), "png")
    return found


def draw_errors(prediction: Map, truth: Map) -> bytes:
    """A picture of where a prediction is right, wrong, or ignored."""
    state = np.where(truth == IGNORE, 2, prediction != truth).astype(np.uint8)
    picture = Image.fromarray(state)
    picture.putpalette([value for colour in ERROR_COLOURS for value in colour])
    file = io.BytesIO()
    picture.save(file, "png", optimize=True)
    return file.getvalue()


def boundary_iou(entry: Entry) -> float | None:
    """Mean boundary IoU of the kept pictures over the classes that occur; None without labels.

    Of a class, the pixels of prediction and truth that lie within 2 % of the diagonal of its own contour are compared
    (Cheng et al., arXiv 2103.16562, equation 2); ignored pixels are left out.
    """
    pairs = [
        (label_map(each["prediction"]), label_map(each["truth"]))
        for each in pictures_of(entry).values()
        if "truth" in each
    ]
    if not pairs:
        return None
    classes = sorted(set(np.unique(np.concatenate([truth.ravel() for _, truth in pairs]))) - {IGNORE})
    scores = []
    for number in classes:
        counts = np.sum([_boundary_counts(*pair, int(number)) for pair in pairs], axis=0)
        scores.append(counts[0] / max(counts[1], 1))
    return float(np.mean(scores)) if scores else None


def _boundary_counts(prediction: Map, truth: Map, number: int) -> tuple[int, int]:
    real = truth != IGNORE
    ours, theirs = (_boundary((labels == number) & real) for labels in (prediction, truth))
    return int((ours & theirs).sum()), int((ours | theirs).sum())


def _boundary(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    width = max(1, round(BOUNDARY * float(np.hypot(*mask.shape))))
    padded = cv2.copyMakeBorder(mask.astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    inner = cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=width)[1:-1, 1:-1]
    return np.asarray(mask & (inner == 0), dtype=np.bool_)
