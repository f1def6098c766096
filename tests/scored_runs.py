"""Scored runs that no network has made, for reports."""

import json

import numpy as np

from sfda.data.label_spaces import CITYSCAPES19
from sfda.judging.bootstrap import mean_iou
from sfda.runs.image_records import NAME, Records, draw_pictures

CLASSES = dict(zip(CITYSCAPES19.names, CITYSCAPES19.colours, strict=True))
NAMES = [f"street_{number:02d}" for number in range(20)]
TITLE = "A <script>alert(1)</script> title"


def make_run(folder, experiment, quality, seed=1, *, method="Tent", labelled=True, **row):
    """A scored run whose predictions are the truth in a share `quality` of the pixels, and class 0 elsewhere."""
    draw = np.random.default_rng([seed, int(100 * quality)])
    truth = [np.random.default_rng(number).integers(0, 3, (12, 24)).astype(np.uint8) for number in range(len(NAMES))]
    predictions = [np.where(draw.random(each.shape) < quality, each, 0).astype(np.uint8) for each in truth]
    confusion = np.zeros((len(NAMES), 19, 19), np.uint32)
    for number, (label, prediction) in enumerate(zip(truth, predictions, strict=True)):
        np.add.at(confusion[number], (label, prediction), 1)
    bins = np.zeros((3, 3840))
    bins[:, 2000] = (confusion.sum(), 0.52 * confusion.sum(), np.trace(confusion.sum(0)))
    pictures = {}
    for name, label, prediction in zip(NAMES, truth, predictions, strict=True):
        panels = {"image": np.zeros((12, 24, 3), np.uint8), "prediction": prediction}
        panels |= {"confidence": np.full((12, 24), 200, np.uint8), **({"truth": label} if labelled else {})}
        pictures[name] = draw_pictures(panels, CITYSCAPES19)
    run = folder / experiment / f"seed{seed}"
    run.mkdir(parents=True)
    mass, entropy = confusion.sum(1), np.zeros(len(NAMES))
    found = (confusion, bins) if labelled else (None, None)
    Records(CLASSES, NAMES, found[0], mass, entropy, found[1], pictures).write(run / NAME)
    scores = {"target_miou": float(mean_iou(confusion.sum(0).astype(float))), "target_ece": 0.1} if labelled else {}
    facts = {"experiment": experiment, "method": method, "seed": seed, "views": "single", "class_set": "cityscapes19"}
    facts |= {"source": None, "target": "data/mine", "source_free": True, "labels_read": None, "selected_by": "last"}
    facts |= {"target_entropy": 0.3, "adapt_seconds": None if method == "SourceOnly" else 12.0, "verdict": None, **row}
    (run / "result.json").write_text(json.dumps({**facts, **scores, "config": str(run / "config.yaml")}))
    (run / "config.yaml").write_text("data: {init_args: {classes: cityscapes19, source: null}}\n")
    return run
