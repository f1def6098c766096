"""Arguments of runs that take a second: the tiny network on the tiny town."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from sfda.callbacks.skipped_files import SkippedFiles
from sfda.cli.main import main

NETWORK = "tiny_network.build"


def tiny_arguments(model: str, town: Path, source_checkpoint: Path | None = None) -> list[str]:
    """What follows ``sfda fit`` or ``sfda validate`` for ``configs/model/<model>.yaml``."""
    arguments = ["--config", "experiment/streets/base.yaml", "--model", f"model/{model}.yaml"]
    arguments += [
        "--trainer",
        "trainer/cpu.yaml",
        "--trainer.enable_progress_bar",
        "false",
        "--trainer.max_epochs",
        "1",
    ]
    arguments += ["--model.init_args.network", NETWORK]
    for domain, layout in (("source", "gta5"), ("target", "cityscapes")):
        arguments += [f"--data.init_args.{domain}.root", str(town / layout)]
    for option, value in (
        ("crop", "[24, 48]"),
        ("batch_size", "4"),
        ("samples_per_epoch", "8"),
        ("val_batch_size", "4"),
        ("num_workers", "0"),
    ):
        arguments += [f"--data.init_args.{option}", value]
    if source_checkpoint is not None:
        arguments += ["--model.init_args.source_checkpoint", str(source_checkpoint)]
    return arguments


class Death(RuntimeError):
    """What kills a run."""


@contextmanager
def watched(hook: str, function: Callable[..., None]) -> Iterator[None]:
    """Every run calls ``function(trainer, method)`` at a hook of Lightning's callbacks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SkippedFiles, hook, lambda self, trainer, method, *_: function(trainer, method))
        yield


def die(arguments: Sequence[object], folder: Path, epoch: int = 1) -> None:
    """A fit that gets no further than the start of an epoch: by default, than the end of its first."""

    def kill(trainer, _):
        if trainer.current_epoch == epoch:
            raise Death

    with watched("on_train_batch_start", kill), pytest.raises(Death):
        main(["fit", *map(str, arguments), "--out", str(folder)])
