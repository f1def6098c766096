"""Every config is one that runs: all fragments, experiments and compare files."""

import functools
from pathlib import Path

import pytest
import yaml

from sfda.arguments import configs_folder, expand
from sfda.compare.plan import plan, read_comparison
from sfda.networks.build import build_network

CONFIGS = configs_folder()
EXPERIMENTS = [
    f"{path.parent.name}/{path.stem}" for path in sorted(CONFIGS.glob("experiment/*/*.yaml")) if path.stem != "base"
]
COMPARISONS = [path.relative_to(CONFIGS).as_posix() for path in sorted(CONFIGS.glob("compare/*.yaml"))]


def parse(arguments):
    """The parsed configuration, nothing instantiated."""
    from sfda.lightning_cli import CommandLine

    class Parsed(CommandLine):
        def before_instantiate_classes(self):
            pass

        def instantiate_classes(self):
            pass

        def _run_subcommand(self, subcommand):
            pass

    return Parsed(["fit", *arguments])


def arrived(written, parsed):
    """Whether what is written stands in what was parsed; of a domain some options may be written, the rest stays."""
    if isinstance(written, dict):
        return all(arrived(value, parsed[key]) for key, value in written.items())
    if isinstance(written, list):
        return len(written) == len(parsed) and all(map(arrived, written, parsed))
    return parsed == written


@pytest.fixture(autouse=True)
def _alone(monkeypatch):
    monkeypatch.setattr("sys.argv", ["sfda"])


build_once = functools.cache(build_network)


@pytest.mark.medium
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_the_values_of_every_experiment_arrive_and_it_can_be_instantiated(experiment, monkeypatch):
    cli = parse(expand("fit", [experiment]))
    config = cli.config["fit"]
    written = yaml.safe_load((CONFIGS / f"experiment/{experiment}.yaml").read_text())
    assert set(written) <= {"model", "data", "trainer"}
    for part, values in written.items():
        assert "class_path" not in values
        given = values if part == "trainer" else values["init_args"]
        parsed = config[part] if part == "trainer" else config[part].init_args
        for key, value in given.items():
            assert key in parsed
            assert arrived(value, parsed[key]), key

    monkeypatch.setattr("sfda.methods.kinds.method.build_network", build_once)  # dozens have the same network
    ready = cli.parser.instantiate_classes(cli.config)["fit"]
    assert ready.model.hparams["num_classes"] == len(ready.data.classes) == ready.model.network.num_classes
    assert all(hasattr(callback, "on_train_epoch_end") for callback in ready.trainer.callbacks or [])


@pytest.mark.medium
@pytest.mark.parametrize("trainer", sorted(CONFIGS.glob("trainer/*.yaml")), ids=lambda path: path.stem)
def test_every_trainer_fragment_parses(trainer):
    config = parse(expand("fit", ["streets/ada_bn", "--trainer", str(trainer)])).config["fit"]
    for key, value in yaml.safe_load(trainer.read_text()).items():
        if not isinstance(value, dict):
            assert config.trainer[key] == value


@pytest.mark.medium
@pytest.mark.parametrize("data", sorted(CONFIGS.glob("data/*.yaml")), ids=lambda path: path.stem)
def test_every_data_fragment_names_every_option(data):
    import inspect

    from sfda.data.datamodule import DomainAdaptationDataModule

    content = yaml.safe_load(data.read_text())
    assert data.read_text().startswith("class_path:")
    assert set(content["init_args"]) == set(inspect.signature(DomainAdaptationDataModule).parameters)


def test_no_base_names_a_model():
    for base in CONFIGS.glob("experiment/*/base.yaml"):
        assert set(yaml.safe_load(base.read_text())) == {"seed_everything", "data", "trainer"}


@pytest.mark.parametrize("comparison", COMPARISONS)
def test_every_comparison_can_be_planned(comparison):
    stages = plan(read_comparison(comparison), Path("out"))
    done = set()
    for stage in stages:
        assert all((needed, stage.seed) in done for needed in stage.needs)
        done.add((stage.experiment, stage.seed))
