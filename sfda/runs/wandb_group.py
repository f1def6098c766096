"""Weights & Biases: what all runs of a comparison say together, as one more W&B run of their group."""

import os
import re
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sfda.files import write_whole
from sfda.runs.experiment import find_fragment
from sfda.runs.run import Row
from sfda.yaml_files import read_mapping

ID_FILE = "wandb_id.txt"


def log_comparison(logger: str, out: Path, rows: Sequence[Row], files: Sequence[Path]) -> bool:
    """Log the table and the files of a comparison, where the fragment `logger` is one of a ``WandbLogger``.

    The W&B run stands in the group of the others; the same folder goes on in the same one. It has the rows as the
    table ``results``, the files as an artifact, and the verdict on every run as summary. Without ``WANDB_MODE`` in the
    environment W&B stays offline.

    Args:
        logger: The fragment that every run of the comparison was given.
        out: Folder of the comparison.
        rows: Its rows.
        files: Its report and its tables.

    Returns:
        Whether anything was logged.
    """
    fragment = read_mapping(find_fragment(logger))
    if not str(fragment.get("class_path")).endswith("WandbLogger"):
        return False
    os.environ.setdefault("WANDB_MODE", "offline")
    import wandb

    options: Mapping[str, Any] = fragment.get("init_args") or {}
    with wandb.init(
        project=options.get("project"),
        entity=options.get("entity"),
        dir=str(out),
        id=_id(out),
        resume="allow",
        name=f"{out.name}/comparison",
        group=os.environ.get("WANDB_RUN_GROUP", out.name),
        job_type="comparison",
    ) as run:
        columns: list[str | int] = list(dict.fromkeys(name for row in rows for name in row))
        cells = [[row.get(str(name)) for name in columns] for row in rows]
        run.log({"results": wandb.Table(columns=columns, data=cells)})
        artifact = wandb.Artifact(re.sub(r"[^\w.-]", "-", f"{out.name}-comparison"), type="comparison")
        for file in files:
            artifact.add_file(str(file))
        run.log_artifact(artifact)
        run.summary.update(_summary(rows))
    return True


def _summary(rows: Sequence[Row]) -> dict[str, Any]:
    named = ("target_miou", "target_ece", "verdict", "selected_by")
    return {
        f"{row['experiment']}/seed{row['seed']}/{name}": row[name]
        for row in rows
        for name in named
        if row.get(name) is not None
    }


def _id(out: Path) -> str:
    """Of the folder's W&B run; made once."""
    path = out / ID_FILE
    if not path.is_file():
        write_whole(path, f"c{uuid.uuid4().hex[:8]}\n".encode())
    return path.read_text(encoding="utf-8").strip()
