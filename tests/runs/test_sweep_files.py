"""Sweep files, and the trials that come of them."""

import json
from pathlib import Path

import pytest
import yaml

from sfda.errors import UserError
from sfda.runs.arguments import expand
from sfda.runs.experiment import configs_folder, experiments_of
from sfda.runs.sweep import plan, read_sweep

CONFIGS = configs_folder()
FILES = sorted(CONFIGS.glob("sweep/*.yaml"))
LABEL_FREE = {
    f"target/{name}" for name in ("entropy", "confidence", "infomax", "class_coverage", "churn", "estimated_ece")
}
LIKE_ENTROPY = LABEL_FREE - {"target/class_coverage", "target/churn", "target/estimated_ece"}
OPTIMISE_ENTROPY = {"tent", "info_max", "urma", "iapc", "cal_sfda", "self_training", "methods"}
WITHOUT_A_SWEEP = {
    "source_only": "has no fit",
    "temperature_scaling": "has no hyper-parameter",
    "auto": "searches by itself",
    "pseudo_cal": "changes nothing but the confidence, which every label-free score at hand takes at its word",
}


def write(path, **changes):
    content = {
        "method": "random",
        "metric": {"name": "target/infomax", "goal": "maximize"},
        "parameters": {"model.init_args.alpha": {"values": [0.1, 0.2, 0.3]}, "seed_everything": {"values": [1, 2]}},
        "command": ["sfda", "fit", "streets/ada_bn", "${args}"],
        **changes,
    }
    path.write_text(yaml.safe_dump({key: value for key, value in content.items() if value is not None}))
    return str(path)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_file_is_as_wandb_describes_it(path):
    sweeps = pytest.importorskip("sweeps")
    assert sweeps.schema_violations_from_proposed_config(yaml.safe_load(path.read_text())) == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_file_can_be_planned_and_names_options_that_there_are(path):
    sweep = read_sweep(f"sweep/{path.name}")
    assert sweep.name == path.stem == yaml.safe_load(path.read_text())["name"]
    for trial in plan(sweep, Path("out"), 3):
        job = expand("fit", trial.stage.arguments)
        assert job.options[job.options.index("--trainer.logger") + 1].endswith("logger/wandb.yaml")
        known = job.config["model"]["init_args"]
        for name in trial.parameters:
            model, _, option = name.rpartition(".")
            assert name in ("use", "seed_everything") or (model == "model.init_args" and option in known)


@pytest.mark.medium
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_values_of_a_trial_arrive(path, monkeypatch):
    """As numbers, texts and switches, whatever ``${args}`` makes of them."""
    from test_configs import parse

    monkeypatch.setattr("sys.argv", ["sfda"])
    for trial in plan(read_sweep(str(path)), Path("out"), 2):
        config = parse(expand("fit", trial.stage.arguments)).config["fit"]
        for name, value in trial.parameters.items():
            if name != "use":
                arrived = config[name]
                assert (arrived, type(arrived)) == (value, type(value)), name


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_no_objective_needs_target_labels_unless_its_file_says_oracle(path):
    metric = read_sweep(str(path)).metric
    assert metric in LABEL_FREE or metric.startswith("source/") or "oracle" in path.stem
    if path.stem in OPTIMISE_ENTROPY:
        assert metric not in LIKE_ENTROPY


def test_every_method_with_something_to_choose_has_a_file():
    methods = {path.stem for path in CONFIGS.glob("model/*.yaml")}
    assert methods - set(WITHOUT_A_SWEEP) == {path.stem for path in FILES} - {"methods"}


def test_the_sweep_over_methods_has_every_source_free_experiment_of_its_methods():
    trials = plan(read_sweep("sweep/methods.yaml"), Path("out"))
    named = [trial.parameters["use"] for trial in trials]
    assert len(trials) == 3 * len(set(named))
    for name in set(named):
        assert named.count(name) == 3
        assert name in experiments_of("streets")


def test_a_grid_runs_through_all_combinations_in_order(tmp_path):
    sweep = read_sweep(write(tmp_path / "s.yaml", method="grid"))
    trials = plan(sweep, Path("out"))
    expected = [(alpha, seed) for alpha in (0.1, 0.2, 0.3) for seed in (1, 2)]
    assert [tuple(trial.parameters.values()) for trial in trials] == expected
    assert trials == plan(sweep, Path("out"), 100)
    assert trials[:2] == plan(sweep, Path("out"), 2)
    assert trials[1].stage.words() == [
        "streets/ada_bn", "--model.init_args.alpha=0.1", "--seed_everything=2", "--out", "out/trial-2",
    ]  # fmt: skip


def test_random_trials_are_those_of_the_seed_and_none_twice(tmp_path):
    ranges = {"model.init_args.lr": {"distribution": "log_uniform_values", "min": 1.0e-5, "max": 1.0e-2}}
    sweep = read_sweep(write(tmp_path / "s.yaml", parameters=ranges))
    assert plan(sweep, Path("out"), 8)[:5] == plan(sweep, Path("out"), 5)
    assert plan(sweep, Path("out"), 5, seed=1) != plan(sweep, Path("out"), 5)
    few = plan(read_sweep(write(tmp_path / "s.yaml")), Path("out"), 50)
    assert len(few) == 6
    assert len({json.dumps(trial.parameters) for trial in few}) == 6


def test_random_needs_a_number(tmp_path):
    with pytest.raises(UserError, match="--trials N"):
        plan(read_sweep(write(tmp_path / "s.yaml")), Path("out"))


def test_arguments_are_written_as_by_wandbs_agents(tmp_path):
    utils = pytest.importorskip("wandb.sdk.launch.sweeps.utils")
    values = {"a.b": [1.0e-5, 0.1, True, "sgd", 3, [1, 2], {"x": 1}]}
    sweep = read_sweep(write(tmp_path / "s.yaml", method="grid", parameters={"a.b": {"values": values["a.b"]}}))
    for trial, value in zip(plan(sweep, Path("out")), values["a.b"], strict=True):
        agents = utils.create_sweep_command_args({"args": {"a.b": {"value": value}}})["args"]
        assert list(trial.stage.arguments[1:]) == agents


@pytest.mark.parametrize("word", ["--use", "--use="])
def test_an_experiment_can_be_a_parameter(word):
    named = ["--use", "streets/ada_bn"] if word == "--use" else ["--use=streets/ada_bn"]
    options = ["--trainer.logger", "logger/wandb.yaml", *named, "--seed_everything=2"]
    plain = ["streets/ada_bn", "--trainer.logger", "logger/wandb.yaml", "--seed_everything", "2"]
    used, named = expand("fit", options), expand("fit", plain)
    assert used.words == named.words


@pytest.mark.parametrize(
    "arguments",
    [["streets/ada_bn", "--use", "streets/tent"], ["--use", "streets/tent", "--use=streets/ada_bn"], ["--use"]],
)
def test_only_one_experiment_can_be_used(arguments):
    with pytest.raises(UserError, match="one experiment"):
        expand("fit", arguments)


def test_settings_are_the_values_and_every_config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    one, other = (trial.stage for trial in plan(read_sweep(write(tmp_path / "s.yaml")), Path("out"), 2))
    assert one.settings() != other.settings()
    assert one.settings() == plan(read_sweep(write(tmp_path / "s.yaml")), Path("elsewhere"), 1)[0].stage.settings()
    before = one.settings()
    (tmp_path / "experiment/streets").mkdir(parents=True)
    (tmp_path / "experiment/streets/ada_bn.yaml").write_text("model: {init_args: {layers: input}}")
    assert one.settings() != before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metric": None}, "has the keys command, method, metric, parameters"),
        ({"methods": "grid"}, "unknown key methods; did you mean method"),
        ({"early_terminate": {"type": "hyperband", "min_iter": 1}}, "early_terminate is carried out by W&B"),
        ({"method": "bayes"}, "method bayes needs W&B's server"),
        ({"metric": "target/infomax"}, "metric has a name"),
        ({"metric": {"name": "target/infomax"}}, "minimize or maximize"),
        ({"metric": {"name": "target/infomax", "goal": "max"}}, "minimize or maximize"),
        ({"parameters": {}}, "parameters names at least one"),
        ({"parameters": {"--lr": {"value": 1}}}, "without hyphens"),
        ({"parameters": {"out": {"values": ["a", "b"]}}}, "not out"),
        ({"parameters": {"lr": {"values": []}}}, "s.yaml: parameter lr"),
        ({"method": "grid", "parameters": {"lr": {"min": 0.0, "max": 1.0}}}, "a grid runs through values"),
        ({"command": "sfda fit ${args}"}, "command is a list"),
        ({"command": ["sfda", "fit", "streets/ada_bn"]}, "command is a list"),
        ({"command": ["sfda", "validate", "streets/ada_bn", "${args}"]}, "command is a list"),
        ({"command": ["python", "train.py", "${args}"]}, "command is a list"),
        ({"command": ["sfda", "fit", "${envvar:X}", "${args}"]}, "filled in by W&B's agents only"),
        ({"command": ["sfda", "fit", "x/y", "--out=z", "${args}"]}, "leave --out away"),
        ({"command": ["sfda", "fit", "x/y", "--out", "z", "${args}"]}, "leave --out away"),
    ],
)
def test_a_mistake_is_a_sentence(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        read_sweep(write(tmp_path / "s.yaml", **changes))


@pytest.mark.parametrize("text", ["", "- a", "a: [", "method: grid"])
def test_what_is_no_sweep_file_is_refused(tmp_path, text):
    (tmp_path / "s.yaml").write_text(text)
    with pytest.raises(UserError, match=r"s\.yaml"):
        read_sweep(str(tmp_path / "s.yaml"))


def test_a_file_that_does_not_exist_is_looked_for():
    with pytest.raises(UserError, match=r"did you mean sweep/tent\.yaml"):
        read_sweep("sweep/tentt.yaml")
