"""The page of ``sfda judge``: what its models predict on the images that it looked at, as a report needs it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from sfda.data.label_spaces import ClassSet
from sfda.judging.bootstrap import mean_iou
from sfda.judging.evidence import Evidence
from sfda.judging.verdict import Verdict
from sfda.methods import Method
from sfda.metrics.image_rows import ImageRow, image_pictures, image_row, records_of
from sfda.metrics.segmentation import SegmentationMetrics
from sfda.report.entries import Entry, Findings
from sfda.runs.run import Run


class Album:
    """Scores and pictures of all models, image by image.

    Args:
        models: Names of the models, that of the source model first.
        classes: The scored classes.
        with_labels: Whether the images have labels.
    """

    def __init__(self, models: Sequence[str], classes: ClassSet, *, with_labels: bool) -> None:
        self.classes = classes
        self.with_labels = with_labels
        self._rows: dict[str, list[ImageRow]] = {name: [] for name in models}
        self._metrics = {
            name: SegmentationMetrics(classes.names, with_labels=with_labels, subsets=classes.subsets)
            for name in models
        }

    def add(
        self, model: str, name: str, image: npt.NDArray[np.uint8], probabilities: Tensor, label: Tensor | None
    ) -> None:
        """Add what a model predicts for an image.

        Args:
            model: Its name.
            name: Of the image.
            image: (H, W, 3) uint8 RGB.
            probabilities: (1, C, h, w) over the scored classes.
            label: (1, h, w), 255 = takes part in nothing; None without labels.
        """
        self._metrics[model].update(probabilities, label)
        truth = None if label is None else label[0]
        pictures = image_pictures(image, probabilities[0], truth, self.classes)
        self._rows[model].append(image_row(name, probabilities[0], truth, pictures))

    def findings(
        self,
        runs: Mapping[str, Run],
        methods: Mapping[str, Method],
        verdicts: Mapping[str, Verdict],
        evidence: Mapping[str, Evidence],
        target: Path,
        command: str,
    ) -> Findings:
        """What a report is made of.

        Args:
            runs: Model → its run; the source model may have none.
            methods: Model → what predicts.
            verdicts: Model → verdict; the source model has none.
            evidence: Model → evidence without labels; empty with labels.
            target: The folder of images.
            command: What was typed.
        """
        entries = []
        for model, rows in self._rows.items():
            facts = self._facts(model, methods[model], evidence.get(model))
            facts |= {"target": str(target), "seed": None}
            if not self.with_labels and model in verdicts:
                facts["verdict"] = verdicts[model].word
            run = (runs[model],) if model in runs else ()
            metrics = self._metrics[model]
            bins = metrics.confidence_bins() if self.with_labels else None
            records = records_of(rows, bins, self.classes)
            entries.append(Entry(model, run, (facts,), (records,), verdicts.get(model)))
        colours = dict(zip(self.classes.names, self.classes.colours, strict=True))
        return Findings(tuple(entries), entries[0], colours, command)

    def _facts(self, model: str, method: Method, evidence: Evidence | None) -> dict[str, Any]:
        scores = {f"target_{name}": float(value) for name, value in self._metrics[model].compute().items()}
        if evidence is not None:
            scores |= {
                "target_judge_miou": float(mean_iou(evidence.against.sum(0))),
                "target_judge_agreement": evidence.judged,
                "target_infomax": evidence.infomax,
                "target_class_coverage": evidence.coverage,
                "target_class_drift": evidence.drift,
            }
        return {
            "experiment": model,
            "method": type(method).__name__,
            "views": method.views,
            "class_set": self.classes.name,
            "source": None,
            "source_free": method.has_read.source_free,
            "labels_read": method.has_read.labels_read,
            **scores,
        }
