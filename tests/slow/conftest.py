"""The demo, run once for everything that looks at it: small, or as it is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from commands import Done, run_sfda
from sfda.runs.experiment import configs_folder
from tiny_runs import NETWORK

DEMO_NETWORK = "smp:DeepLabV3Plus/mobilenet_v2"
TINY_DATA = {"crop": [24, 48], "batch_size": 4, "samples_per_epoch": 16, "val_batch_size": 3}


@dataclass(frozen=True)
class Demo:
    """A working directory in which the demo has run.

    Attributes:
        folder: The directory.
        printed: What the demo printed.
        network: The network of its experiments.
    """

    folder: Path
    printed: str
    network: str

    @property
    def is_small(self) -> bool:
        """Whether it is the demo on the tiny town."""
        return self.network == NETWORK

    def with_its_network(self, text: str) -> str:
        """Words of the README or of a notebook, for this demo."""
        return text.replace(DEMO_NETWORK, self.network)

    def run(self, *words: str) -> Done:
        """A command as the README has it."""
        return run_sfda(self.folder, *map(self.with_its_network, words))


@pytest.fixture(
    scope="session",
    params=[
        pytest.param("small", marks=pytest.mark.xdist_group("small_demo")),
        pytest.param("full", marks=[pytest.mark.release, pytest.mark.xdist_group("full_demo")]),
    ],
)
def demo(request, town, tmp_path_factory) -> Demo:
    """`make demo`, after which commands and notebooks are tried."""
    folder = tmp_path_factory.mktemp("newcomer")
    if request.param == "small":
        write_small_experiments(folder, town)
    done = run_sfda(folder, "compare", "compare/demo.yaml", "--out", "runs/demo")
    assert done.status == 0, done.output
    return Demo(folder, done.output, NETWORK if request.param == "small" else DEMO_NETWORK)


def write_small_experiments(folder: Path, town: Path) -> None:
    """Configs that stand before the project's own in this folder: the tiny town, the tiny network, few steps."""
    (folder / "data").mkdir()
    (folder / "data/streets").symlink_to(town)
    (folder / "tiny_network.py").write_text((Path(__file__).parents[1] / "tiny_network.py").read_text())
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
