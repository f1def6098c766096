"""Arguments of runs that take a second: the tiny network on the tiny town."""

from __future__ import annotations

from pathlib import Path

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
