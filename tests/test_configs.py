"""Every config is one that runs: all fragments, experiments and compare files."""

import functools
from pathlib import Path

import pytest
import yaml

from sfda.data.label_spaces import CITYSCAPES19
from sfda.networks.build import build_network
from sfda.runs.arguments import expand
from sfda.runs.comparison import plan, read_comparison
from sfda.runs.experiment import configs_folder, experiments_of, resolve

CONFIGS = configs_folder()
BENCHMARKS = [path.parent.name for path in sorted(CONFIGS.glob("experiment/*/base.yaml"))]
EXPERIMENTS = [name for benchmark in BENCHMARKS for name in experiments_of(benchmark)]
COMPARISONS = [path.relative_to(CONFIGS).as_posix() for path in sorted(CONFIGS.glob("compare/*.yaml"))]


def parse(job):
    """The parsed configuration of a job, nothing instantiated."""
    from sfda.cli.lightning_cli import CommandLine

    class Parsed(CommandLine):
        def before_instantiate_classes(self):
            pass

        def instantiate_classes(self):
            pass

        def _run_subcommand(self, subcommand):
            pass

    return Parsed(job)


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


ONE = f"{{anything: {list(CITYSCAPES19.names)}}}"
MINE = f"names: [anything, nothing]\ncolours: [[0, 0, 0], [1, 1, 1]]\ngroups_of_cityscapes19: {ONE}\n"
build_once = functools.cache(build_network)


@pytest.mark.medium
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_the_values_of_every_experiment_arrive_and_it_can_be_instantiated(experiment, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/mine.yaml").write_text(MINE)  # what `own` expects of a user
    cli = parse(expand("fit", [experiment]))
    config = cli.config["fit"]
    written = resolve(experiment).config
    assert set(written) <= {"seed_everything", "experiment", "model", "data", "trainer"}
    for part in ("model", "data", "trainer"):
        given = written[part] if part == "trainer" else written[part]["init_args"]
        parsed = config[part] if part == "trainer" else config[part].init_args
        for key, value in given.items():
            assert key in parsed
            assert arrived(value, parsed[key]), key
    assert config.model.class_path == written["model"]["class_path"]

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


def test_no_base_names_a_method():
    for base in CONFIGS.glob("experiment/*/base.yaml"):
        content = yaml.safe_load(base.read_text())
        assert set(content) <= {"experiments", "seed_everything", "data", "trainer", "model"}
        assert "class_path" not in content.get("model", {})


def test_experiments_name_each_other_and_no_checkpoint():
    files = sorted(CONFIGS.glob("experiment/*/*.yaml"))
    assert len(files) <= 65
    assert not [path for path in files if "ckpt" in path.read_text()]
    for name in EXPERIMENTS:
        source = resolve(name).source
        assert (source is None) == ("/source_training" in name or name.startswith("own/"))
        assert source is None or f"{name.split('/')[0]}/{source}" in EXPERIMENTS


@pytest.mark.parametrize("comparison", COMPARISONS)
def test_every_comparison_can_be_planned(comparison):
    stages = plan(read_comparison(comparison), Path("out"))
    done = set()
    for (name, seed), stage in stages.items():
        source = resolve(stage.arguments[0]).source
        assert source is None or (source, seed) in done
        done.add((name, seed))
