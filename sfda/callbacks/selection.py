"""Choosing the checkpoint that a fit is represented by, and saying why."""

import difflib
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint
from typing_extensions import override

from sfda.callbacks.method_callback import MethodCallback
from sfda.data.needs import DomainName
from sfda.errors import UserError
from sfda.files import write_json
from sfda.methods.kinds.gathered import GatheredMethod
from sfda.metrics.scoring import score_names


class Selector(MethodCallback, ModelCheckpoint):
    """Keeps the checkpoint with the best value of one score among those of the last part of a fit.

    A candidate is what stands at the end of an epoch that was validated. ``selection.json`` in the run folder says
    what was chosen, every candidate's value with the scores that stand beside it, and why. Several may be at work in
    one fit: each keeps its candidates, the first chooses what represents the run, and the others' choices stand under
    ``others``. A method without steps makes one model: nothing is chosen, and a warning says so.

    Class attributes:
        score: Name of the score: any that a validation logs as ``<domain>/<score>``, by the method's metrics, by
            `sfda.callbacks.extra_scores.ExtraScores` or by a callback that logs it itself (``churn``).
        mode_of_score: Whether a small (``min``) or a large (``max``) value is good.
        beside: Scores that are written down, never looked at.
        signals: What the score is a form of, as in `Method.optimises`: it says little of a method that optimises it.
        passes: Passes of the network per image; 1: those of the validation itself.

    Args:
        start_after: Share of the epochs that pass before the first candidate.
        keep: How many of the best candidates stay in ``candidates/<score>/``; -1: all, to be scored afterwards.
    """

    score: ClassVar[str]
    mode_of_score: ClassVar[Literal["min", "max"]] = "min"
    beside: ClassVar[tuple[str, ...]] = ("miou", "ece", "entropy", "infomax", "class_coverage")
    signals: ClassVar[tuple[str, ...]] = ()
    passes: ClassVar[int] = 1

    def __init__(self, start_after: float = 0.0, keep: int = 1) -> None:
        if not 0 <= start_after < 1:
            raise UserError(f"{type(self).__name__}: start_after is a share of the epochs, 0 <= share < 1")
        if keep == 0:
            raise UserError(f"{type(self).__name__}: keep is at least 1, or -1 for all candidates")
        self.start_after = start_after
        self.candidates: list[dict[str, Any]] = []
        super().__init__(
            filename="{epoch}-{step}",
            monitor=self.score,
            mode=self.mode_of_score,
            save_top_k=keep,
            save_weights_only=True,
            save_on_train_epoch_end=True,
            enable_version_counter=False,
        )

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Find what is monitored.

        Raises:
            UserError: the fit validates nothing, or the score needs labels that may not be read or is misspelt.
        """
        MethodCallback.setup(self, trainer, pl_module, stage)
        if stage != "fit":
            return
        name = type(self).__name__
        self.domain: DomainName = next(iter(self.method.datamodule.validation_sets))
        self._check_score()
        if isinstance(self.method, GatheredMethod):
            warnings.warn(f"{name}: {type(self.method).__name__} makes one model, nothing is selected", stacklevel=1)
            return
        if not trainer.max_epochs or trainer.max_epochs < 1:
            raise UserError(f"{name} chooses among the last epochs of a fit: give their number, --trainer.max_epochs")
        if trainer.limit_val_batches == 0 or trainer.max_epochs < (trainer.check_val_every_n_epoch or 1):
            raise UserError(f"{name} chooses by the validation scores of a fit, and this fit validates nothing")
        self.monitor = f"{self.domain}/{self.score}"
        self.dirpath = str(self.method.run_folder / "candidates" / self.score)
        if self.trained_on:
            warnings.warn(
                f"{name}: {type(self.method).__name__} trains on {' and '.join(self.trained_on)}, so that its "
                f"{self.score} improves by itself and says little; `sfda judge` looks at more",
                stacklevel=1,
            )
        ModelCheckpoint.setup(self, trainer, pl_module, stage)

    @property
    def scores(self) -> tuple[str, ...]:
        """What has to be logged."""
        return (self.score,)

    @property
    def trained_on(self) -> list[str]:
        """What of the `signals` the method optimises."""
        return [signal for signal in self.signals if signal in self.method.optimises]

    def _check_score(self) -> None:
        """What can be known before a validation: a score that only a callback logs has a name of its own."""
        data, name = self.method.datamodule, type(self).__name__
        of_all_sets, of_this_set = (
            score_names(self.method.make_metrics(data.score_classes, with_labels))
            for with_labels in (True, data.validation_sets[self.domain].with_labels)
        )
        for score in self.scores:
            if score in of_this_set:
                continue
            if score in of_all_sets:
                raise UserError(
                    f"{name} needs labels of the {self.domain} validation images, which {type(self.method).__name__} "
                    "does not read: use SelectByEntropy, which needs none"
                )
            close = difflib.get_close_matches(score, of_this_set, n=1)
            if close and not self.method.scoring.has_added:
                monitored = f"{name} monitors {score!r}"
                raise UserError(f"{monitored}, which is not among the scores: did you mean {close[0]!r}?")

    def _refuse_missing_score(self, logged: Mapping[str, Any]) -> None:
        """After the first validation it is certain; a score that was computed and not logged is NaN."""
        scores = sorted(key.removeprefix(f"{self.domain}/") for key in logged if key.startswith(f"{self.domain}/"))
        for score in self.scores:
            if scores and score not in (*scores, *self.method.results[self.domain]):
                monitored = f"{type(self).__name__} monitors {score!r}"
                raise UserError(f"{monitored}, which is not among the scores of a validation: {', '.join(scores)}")

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note the candidate, and let ModelCheckpoint keep the best.

        Raises:
            UserError: no validation computes the score.
        """
        if isinstance(self.method, GatheredMethod):
            return
        if (trainer.current_epoch + 1) % (trainer.check_val_every_n_epoch or 1):
            return
        self._refuse_missing_score(trainer.callback_metrics)
        candidate = self._candidate(trainer)
        self.candidates.append(candidate)
        if candidate["eligible"]:
            self._keep(trainer, pl_module)
        if trainer.is_global_zero:
            at_work = selectors_of(trainer)
            others = {"others": [other.report() for other in at_work[1:]]} if at_work[1:] else {}
            write_json(self.method.run_folder / "selection.json", at_work[0].report() | others)

    def _candidate(self, trainer: L.Trainer) -> dict[str, Any]:
        logged = {key: float(value) for key, value in trainer.callback_metrics.items()}
        # A score that is NaN is not logged.
        values = [logged.get(f"{self.domain}/{score}", math.nan) for score in self.scores]
        late = trainer.current_epoch >= math.floor(self.start_after * (trainer.max_epochs or 1))
        eligible = late and not any(math.isnan(value) for value in values)
        own = {"value": values[0]} if len(values) == 1 else {"value": None, "values": values}
        beside = [f"{self.domain}/{score}" for score in self.beside if score not in self.scores]
        return {
            "epoch": trainer.current_epoch,
            "step": trainer.global_step,
            **own,
            "eligible": eligible,
            **{key: logged[key] for key in beside if key in logged},
        }

    def _keep(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keep the candidate that was noted last, if it is among the best."""
        ModelCheckpoint.on_train_epoch_end(self, trainer, pl_module)

    @property
    def selected(self) -> dict[str, Any] | None:
        """The best eligible candidate so far."""
        pick = min if self.mode_of_score == "min" else max
        eligible = [candidate for candidate in self.candidates if candidate["eligible"]]
        return pick(eligible, key=lambda candidate: candidate["value"]) if eligible else None

    def report(self) -> dict[str, Any]:
        """What was chosen among which candidates, and why."""
        word = "smallest" if self.mode_of_score == "min" else "largest"
        eligible = sum(candidate["eligible"] for candidate in self.candidates)
        return {
            "selected_by": self.score,
            "monitor": self.monitor,
            "mode": self.mode_of_score,
            "start_after": self.start_after,
            "why": f"the {word} {self.monitor} of the {eligible} candidates after the first "
            f"{100 * self.start_after:.0f} % of the epochs ({len(self.candidates)} seen)",
            "trained_on": self.trained_on,
            "passes_per_image": self.passes,
            "selected": self.selected,
            "candidates": self.candidates,
        }

    @override
    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "candidates": self.candidates}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Candidates and best checkpoint of the fit that goes on, in its run folder of now."""
        self.candidates = list(state_dict["candidates"])

        def here(path: str) -> str:
            return str(Path(str(self.dirpath), Path(path).name)) if path else path

        moved = {key: here(state_dict[key]) for key in ("best_model_path", "kth_best_model_path", "last_model_path")}
        best = {here(path): value for path, value in state_dict["best_k_models"].items()}
        super().load_state_dict({**state_dict, **moved, "best_k_models": best, "dirpath": self.dirpath})


def selectors_of(trainer: L.Trainer) -> list[Selector]:
    """Those at work, in the order in which they were given: the first one chooses."""
    return [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, Selector)]
