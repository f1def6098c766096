"""What the predictions for every validation set are scored by."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar, cast

from torch import Tensor, nn
from torchmetrics import Metric

from sfda.data.label_spaces import ClassSet
from sfda.errors import UserError

MakeMetric = Callable[[ClassSet, bool], Metric | None]
"""Classes that are scored, and whether labels may be read → a metric; None: nothing to compute there.

Its `update` takes probabilities (B, C, H, W) and labels (B, H, W), 255 = takes part in nothing, or None; its `compute`
gives scores by name, or one score.
"""
MakeMetrics = Callable[[ClassSet, bool], Sequence[Metric]]
Scores = dict[str, float]
MetricType = TypeVar("MetricType", bound=Metric)


class Scoring(nn.Module):
    """The metrics of every validation set: those of the method, then those that were added.

    Metrics synchronise themselves: every process computes the scores of all processes' images.
    """

    def __init__(self) -> None:
        super().__init__()
        self._added: list[tuple[str, MakeMetric]] = []
        self._of_domains = nn.ModuleDict()
        self._names: dict[str, list[str]] = {}

    @property
    def has_added(self) -> bool:
        """Whether there are metrics beside those of the method."""
        return bool(self._added)

    def add(self, name: str, make: MakeMetric) -> None:
        """Add a metric to every validation set, once, before `open`; `name` is that of a single score it computes.

        One function under one name makes one metric, whoever asks for it.
        """
        if (name, _function(make)) not in [(known, _function(other)) for known, other in self._added]:
            self._added.append((name, make))

    def open(self, classes: ClassSet, with_labels: Mapping[str, bool], make_own: MakeMetrics) -> None:
        """Make new metrics, `make_own` those of the method; `with_labels`: validation set → may labels be read?"""
        made = {domain: self._make(classes, labels, make_own) for domain, labels in with_labels.items()}
        self._of_domains = nn.ModuleDict({domain: nn.ModuleList(metrics.values()) for domain, metrics in made.items()})
        self._names = {domain: list(metrics) for domain, metrics in made.items()}

    def _make(self, classes: ClassSet, with_labels: bool, make_own: MakeMetrics) -> dict[str, Metric]:
        own = {f"{number}": metric for number, metric in enumerate(make_own(classes, with_labels))}
        added = {name: metric for name, make in self._added if (metric := make(classes, with_labels)) is not None}
        return own | added

    def update(self, domain: str, probabilities: Tensor, labels: Tensor | None) -> None:
        """Score a batch of a validation set: probabilities (B, C, H, W), labels (B, H, W) where they may be read."""
        for _, metric in self._metrics(domain):
            metric.update(probabilities, labels)

    def compute(self) -> dict[str, Scores]:
        """Validation set → the scores by name; called on all processes.

        Raises:
            UserError: two metrics compute a score of the same name.
        """
        return {domain: _scores(self._metrics(domain)) for domain in self._of_domains}

    def reset(self) -> None:
        """Forget all images."""
        for domain in self._of_domains:
            for _, metric in self._metrics(domain):
                metric.reset()

    def find(self, kind: type[MetricType]) -> dict[str, MetricType]:
        """The metric of this kind of every validation set that has one."""
        found = ((domain, metric) for domain in self._of_domains for _, metric in self._metrics(domain))
        return {domain: metric for domain, metric in found if isinstance(metric, kind)}

    def _metrics(self, domain: str) -> Iterable[tuple[str, Metric]]:
        return zip(self._names[domain], cast("Iterable[Metric]", self._of_domains[domain]), strict=True)


def score_names(metrics: Iterable[Metric]) -> list[str]:
    """Names of the scores of new metrics, which can be computed before any image; one process may ask alone."""
    # By its class: what torchmetrics makes of `compute` in an object waits for the other processes.
    return [name for metric in metrics for name in type(metric).compute(metric)]


def _function(make: MakeMetric) -> object:
    return getattr(make, "__func__", make)


def _scores(metrics: Iterable[tuple[str, Metric]]) -> Scores:
    scores: Scores = {}
    for name, metric in metrics:
        computed = metric.compute()
        by_name = computed if isinstance(computed, Mapping) else {name: computed}
        if both := sorted(scores.keys() & by_name.keys()):
            names = f"the scores {', '.join(both)} of {type(metric).__name__}"
            raise UserError(f"{names} are computed by another metric too: rename those of your own")
        scores |= {key: float(value) for key, value in by_name.items()}
    return scores
