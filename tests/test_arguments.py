import pytest

from sfda.arguments import configs_folder, expand, find_fragment
from sfda.errors import UserError

CONFIGS = configs_folder()


def test_an_experiment_is_base_then_model_then_its_values():
    expanded = expand("fit", ["streets/ada_bn+multi_scale", "--seed_everything", "3"])
    assert expanded == [
        "--config", str(CONFIGS / "experiment/streets/base.yaml"),
        "--model", str(CONFIGS / "model/ada_bn.yaml"),
        "--config", str(CONFIGS / "experiment/streets/ada_bn+multi_scale.yaml"),
        "--seed_everything", "3",
    ]  # fmt: skip


def test_fragments_are_found_by_name_and_by_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("{}")
    assert expand("fit", ["--config=mine.yaml", "--data", "data/streets.yaml"]) == [
        "--config", "mine.yaml", "--data", str(CONFIGS / "data/streets.yaml"),
    ]  # fmt: skip


def test_a_class_is_no_fragment():
    assert expand("fit", ["--model", "SourceOnly"]) == ["--model", "SourceOnly"]


def test_negative_numbers_and_flags_survive():
    given = ["--trainer.max_steps", "-1", "--print_config", "--trainer.devices=1"]
    assert expand("fit", given) == ["--trainer.max_steps", "-1", "--print_config", "--trainer.devices", "1"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["streets/ada_bm"], "did you mean"),
        (["ada_bn"], "benchmark/experiment"),
        (["--config", "nowhere.yaml"], "neither a file here"),
        (["--model", "model/tentt.yaml"], "neither a file here"),
        (["streets/ada_bn", "--model.init_args.alpha", "1", "--config", "data/streets.yaml"], "would undo it"),
        (["streets/ada_bn", "--model.init_args.num_classes", "4"], r"--data.init_args.classes"),
        (["streets/ada_bn", "--model.num_classes=4"], r"--data.init_args.classes"),
        (["--run", "nowhere"], "no config.yaml"),
        (["--run"], "needs a value"),
    ],
)
def test_mistakes_are_answered_before_anything_is_loaded(arguments, message):
    with pytest.raises(UserError, match=message):
        expand("fit", arguments)


def run_folder(tmp_path, *files):
    for name in ("config.yaml", *files):
        (tmp_path / name).write_text("{}")
    return str(tmp_path)


def test_run_resumes_an_unfinished_fit(tmp_path):
    folder = run_folder(tmp_path, "last.ckpt")
    expected = ["--config", f"{folder}/config.yaml", "--out", folder, "--ckpt_path", f"{folder}/last.ckpt"]
    assert expand("fit", ["--run", folder]) == expected
    with pytest.raises(UserError, match="not finished"):
        expand("validate", [f"--run={folder}"])
    for option in ("--out", "--ckpt_path"):
        with pytest.raises(UserError, match=f"leave {option} away"):
            expand("fit", ["--run", folder, option, "x"])


def test_run_scores_a_finished_fit_and_never_overwrites_it_with_other_settings(tmp_path):
    folder = run_folder(tmp_path, "result.json", "selected.ckpt")
    expected = ["--config", f"{folder}/config.yaml", "--out", folder, "--ckpt_path", f"{folder}/selected.ckpt"]
    assert expand("validate", ["--run", folder]) == expected
    for option in ("--trainer.devices", "--trainer.logger", "--trainer.logger.init_args.project"):
        assert option in expand("validate", ["--run", folder, option, "2"])
    for option in ("--model.init_args.views", "--trainer.limit_val_batches", "--trainer.fast_dev_run", "--ckpt_path"):
        with pytest.raises(UserError, match="--out DIR"):
            expand("validate", ["--run", folder, option, "3"])
    with pytest.raises(UserError, match="--out DIR"):
        expand("validate", ["--run", folder, "--out", folder, "--model.init_args.views", "multi_scale"])
    other = expand("validate", ["--run", folder, "--out", "other", "--ckpt_path", "candidate.ckpt"])
    assert [word for word in other if word.endswith(".ckpt")] == ["candidate.ckpt"]
    assert "other" in expand("validate", ["--run", folder, "--model.init_args.views", "multi_scale", "--out", "other"])
    with pytest.raises(UserError, match="finished"):
        expand("fit", ["--run", folder])


def test_find_fragment_prefers_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "model/ada_bn.yaml").write_text("{}")
    assert find_fragment("model/ada_bn.yaml").resolve() == tmp_path / "model/ada_bn.yaml"
