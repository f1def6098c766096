"""The demo, run once for everything that looks at it: small, or as it is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from commands import Done, run_sfda
from small_experiments import write_small_experiments
from tiny_runs import NETWORK

DEMO_NETWORK = "smp:DeepLabV3Plus/mobilenet_v2"


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
