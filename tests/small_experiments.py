"""The project's experiments on the town, small: for whole commands in a working directory of their own."""

from __future__ import annotations

from pathlib import Path

import yaml

from sfda.runs.experiment import configs_folder
from tiny_runs import NETWORK

TINY_DATA = {"crop": [24, 48], "batch_size": 4, "samples_per_epoch": 16, "val_batch_size": 3}


def write_small_experiments(folder: Path, town: Path) -> None:
    """Configs that stand before the project's own in this folder: the tiny town, the tiny network, few steps."""
    (folder / "data").mkdir()
    (folder / "data/streets").symlink_to(town)
    (folder / "tiny_network.py").write_text(Path(__file__).with_name("tiny_network.py").read_text())
    configs = configs_folder()
    for path in configs.glob("experiment/streets/*.yaml"):
        content = yaml.safe_load(path.read_text())
        if path.stem == "base":
            content |= {"data": "data.yaml", "trainer": "trainer.yaml", "model": {"init_args": {"network": NETWORK}}}
        else:
            content.pop("data", None)
        write(folder / "experiment/streets" / path.name, content)
    data = yaml.safe_load((configs / "data/streets.yaml").read_text())
    data["init_args"] |= TINY_DATA
    write(folder / "experiment/streets/data.yaml", data)
    trainer = yaml.safe_load((configs / "trainer/cpu.yaml").read_text())
    write(folder / "experiment/streets/trainer.yaml", {**trainer, "log_every_n_steps": 1})
    comparison = yaml.safe_load((configs / "compare/demo.yaml").read_text())
    del comparison["prepare"], comparison["options"]
    write(folder / "compare/demo.yaml", comparison)


def write(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(content))
