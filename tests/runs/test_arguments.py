import copy

import pytest
import yaml

from sfda.errors import UserError
from sfda.runs.arguments import expand
from sfda.runs.experiment import configs_folder, find_fragment, merge, resolve

CONFIGS = configs_folder()


def config_of(*arguments):
    return expand("fit", list(arguments)).config


def test_an_experiment_is_its_methods_fragment_then_the_base_then_its_values():
    job = expand("fit", ["streets/ada_bn+multi_scale", "--seed_everything", "3"])
    options = job.config["model"]["init_args"]
    assert options["forgetting"] == 0.1  # of the fragment
    assert options["network"] == "smp:DeepLabV3Plus/mobilenet_v2"  # of the base
    assert job.config["data"]["init_args"]["samples_per_epoch"] == 160  # of the experiment
    assert options["views"] == "multi_scale"  # of its variant
    assert options["source_checkpoint"] == "runs/streets/source_training/seed1/selected.ckpt"
    assert job.options == ("--out", "runs/streets/ada_bn+multi_scale/seed3", "--seed_everything", "3")
    assert job.words[:2] == ["fit", "--config"]
    assert yaml.safe_load(job.words[2]) == job.config
    assert job.given == ("streets/ada_bn+multi_scale", "--seed_everything", "3")


def test_fragments_are_found_by_name_and_by_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("trainer: {max_epochs: 3}")
    config = config_of("--config=mine.yaml", "--data", "data/streets.yaml")
    assert config == {
        "trainer": {"max_epochs": 3}, "data": yaml.safe_load((CONFIGS / "data/streets.yaml").read_text()),
    }  # fmt: skip


def test_a_class_is_no_fragment():
    assert expand("fit", ["--model", "SourceOnly"]).words == ["fit", "--model", "SourceOnly"]


def test_negative_numbers_and_flags_survive():
    given = ["--trainer.max_steps", "-1", "--print_config", "--trainer.devices=1"]
    assert expand("fit", given).options == ("--trainer.max_steps", "-1", "--print_config", "--trainer.devices", "1")


def test_a_later_data_file_undoes_all_of_an_earlier_one(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("class_path: D\ninit_args: {target: {layout: folder, root: here}, batch_size: 3}\n")
    assert config_of("streets/ada_bn", "--data", str(path))["data"] == yaml.safe_load(path.read_text())


def test_a_trainer_file_changes_what_it_names(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("devices: 2")
    trainer = config_of("streets/tent", "--trainer", str(path))["trainer"]
    assert (trainer["devices"], trainer["max_epochs"]) == (2, 2)


def test_a_model_file_stands_on_the_base_of_its_benchmark():
    base = ["--config", "experiment/streets/base.yaml"]
    options = config_of(*base, "--model", "model/tent.yaml")["model"]["init_args"]
    assert (options["network"], options["lr"]) == ("smp:DeepLabV3Plus/mobilenet_v2", 1e-3)


def test_benchmarks_share_experiments_and_change_them():
    epochs = {
        (benchmark, name): resolve(f"{benchmark}_to_cityscapes/{name}").config["trainer"]["max_epochs"]
        for benchmark in ("gta5", "synthia") for name in ("da_cal", "mean_teacher+soft", "self_training")
    }  # fmt: skip
    assert list(epochs.values()) == [20, 20, 20, 50, 50, 20]
    assert resolve("synthia_to_cityscapes/da_cal").source == "source_training"
    roots = [
        resolve(f"{name}_to_cityscapes/tent").config["data"]["init_args"]["source"] for name in ("gta5", "synthia")
    ]
    assert [root["layout"] for root in roots] == ["gta5", "synthia"]


@pytest.mark.parametrize(
    ("below", "above", "expected"),
    [
        ({"a": {"b": 1, "c": 2}}, {"a": {"c": 3}}, {"a": {"b": 1, "c": 3}}),
        ({"a": [1, 2]}, {"a": [3]}, {"a": [3]}),
        ({"a": [1, 2]}, {"a+": [3]}, {"a": [1, 2, 3]}),
        ({"a": None}, {"a+": {"b": 1}}, {"a": [{"b": 1}]}),
        ({"a": {"b": 1}}, {"a": None}, {"a": None}),
        ({"class_path": "A", "init_args": {"x": 1}}, {"init_args": {"y": 2}},
         {"class_path": "A", "init_args": {"x": 1, "y": 2}}),
        ({"class_path": "A", "init_args": {"x": 1}}, {"class_path": "B"}, {"class_path": "B"}),
        ({"layout": "folder", "val_images": "x"}, {"layout": "gta5", "root": "r"}, {"layout": "gta5", "root": "r"}),
        ({"layout": "folder", "val_images": "x"}, {"layout": "folder", "root": "r"},
         {"layout": "folder", "val_images": "x", "root": "r"}),
    ],
)  # fmt: skip
def test_values_are_merged(below, above, expected):
    given = copy.deepcopy((below, above))
    assert merge(below, above) == expected
    assert (below, above) == given


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["streets/ada_bm"], "did you mean"),
        (["ada_bn"], "benchmark/experiment"),
        (["--config", "nowhere.yaml"], "neither a file here"),
        (["--model", "model/tentt.yaml"], "neither a file here"),
        (["streets/ada_bn+multiscale"], "has no variant multiscale; did you mean multi_scale"),
        (["streets/source_onl"], "no such experiment; did you mean streets/source_only"),
        (["--config", "experiment/streets/ada_bn.yaml"], "give its name instead, streets/ada_bn"),
        (["--config", "broken/base.yaml"], "`data` names broken/nowhere.yaml, which is not there"),
        (["--data", "broken/other.yaml"], "begins with class_path"),
        (["streets/ada_bn", "--model.init_args.num_classes", "4"], r"--data.init_args.classes"),
        (["streets/ada_bn", "--model.num_classes=4"], r"--data.init_args.classes"),
        (["--run", "nowhere"], "no config.yaml"),
        (["--run"], "needs a value"),
    ],
)
def test_mistakes_are_answered_before_anything_is_loaded(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/base.yaml").write_text("data: nowhere.yaml")
    (tmp_path / "broken/other.yaml").write_text("target: {}")
    with pytest.raises(UserError, match=message):
        expand("fit", arguments)


def run_folder(tmp_path, *files):
    for name in ("config.yaml", *files):
        (tmp_path / name).write_text("seed_everything: 7")
    return str(tmp_path)


def test_run_resumes_an_unfinished_fit(tmp_path):
    folder = run_folder(tmp_path, "last.ckpt")
    job = expand("fit", ["--run", folder])
    assert (job.config, str(job.run.folder)) == ({"seed_everything": 7}, folder)
    assert job.options == ("--out", folder, "--ckpt_path", f"{folder}/last.ckpt")
    with pytest.raises(UserError, match="not finished"):
        expand("validate", [f"--run={folder}"])
    for option in ("--out", "--ckpt_path"):
        with pytest.raises(UserError, match=f"leave {option} away"):
            expand("fit", ["--run", folder, option, "x"])


def test_run_scores_a_finished_fit_and_never_overwrites_it_with_other_settings(tmp_path):
    folder = run_folder(tmp_path, "result.json", "selected.ckpt")
    job = expand("validate", ["--run", folder])
    assert str(job.run.folder) == folder
    assert job.options == ("--out", folder, "--ckpt_path", f"{folder}/selected.ckpt")
    for option in ("--trainer.devices", "--trainer.logger", "--trainer.logger.init_args.project"):
        assert option in expand("validate", ["--run", folder, option, "2"]).options
    for option in ("--model.init_args.views", "--trainer.limit_val_batches", "--trainer.fast_dev_run", "--ckpt_path"):
        with pytest.raises(UserError, match="--out DIR"):
            expand("validate", ["--run", folder, option, "3"])
    with pytest.raises(UserError, match="--out DIR"):
        expand("validate", ["--run", folder, "--out", folder, "--model.init_args.views", "multi_scale"])
    other = expand("validate", ["--run", folder, "--out", "other", "--ckpt_path", "candidate.ckpt"])
    assert [word for word in other.options if word.endswith(".ckpt")] == ["candidate.ckpt"]
    assert other.run is None
    views = ["--model.init_args.views", "multi_scale"]
    assert "other" in expand("validate", ["--run", folder, *views, "--out", "other"]).options
    with pytest.raises(UserError, match="finished"):
        expand("fit", ["--run", folder])


def test_find_fragment_prefers_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "model/ada_bn.yaml").write_text("{}")
    assert find_fragment("model/ada_bn.yaml").resolve() == tmp_path / "model/ada_bn.yaml"


def test_an_experiment_that_names_the_checkpoint_of_a_run_is_told_to_name_its_source(tmp_path, monkeypatch):
    """As experiments were written before; with several seeds all of them would start from one checkpoint."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "experiment/streets").mkdir(parents=True)
    path = "runs/streets/source_training/seed1/selected.ckpt"
    (tmp_path / "experiment/streets/tent.yaml").write_text(f"model: {{init_args: {{source_checkpoint: {path}}}}}")
    with pytest.raises(UserError, match="say `source: source_training` instead of the path"):
        resolve("streets/tent")
