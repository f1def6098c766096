"""The plan of ``sfda adapt``."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sfda.errors import UserError
from sfda.runs.adaptation import FEWEST_PIXELS, data_config, make_plan, methods_asked_for, plan_of, stages_of
from sfda.runs.arguments import expand

METHODS = ("source_only", "source_only+multi_scale", "auto", "ada_bn+multi_scale", "tent")


@given(
    images=st.integers(1, 5000),
    labelled=st.integers(0, 300),
    milliseconds=st.floats(1, 5000),
    seconds=st.floats(10, 3600),
)
def test_a_plan_fits_into_the_time_or_is_the_smallest(images, labelled, milliseconds, seconds):
    plan = make_plan(METHODS, (720, 1280), images, min(labelled, images), milliseconds / 1000, seconds)
    height, width = plan.size
    assert 1 <= plan.scored <= images
    assert 1 <= plan.gathered <= images
    assert 1 <= plan.searched <= images
    assert plan.total() <= seconds or height * width < 2 * FEWEST_PIXELS
    assert plan_of(json.loads(json.dumps(plan.as_dict()))) == plan


def test_more_time_never_makes_a_plan_smaller():
    plans = [make_plan(METHODS, (360, 480), 400, 0, 0.1, seconds) for seconds in (60, 120, 300, 600, 3600)]
    sizes = [(plan.size, plan.scored) for plan in plans]
    assert sizes == sorted(sizes)
    assert plans[-1].size == (360, 480)


def test_auto_means_the_source_model_its_views_and_auto():
    assert methods_asked_for(["auto"]) == ["source_only", "source_only+multi_scale", "auto"]
    assert methods_asked_for(["tent", "tent"]) == ["source_only", "tent"]
    with pytest.raises(UserError, match=r"--method tnt: one of ada_bn, auto, .*did you mean tent"):
        methods_asked_for(["tnt"])


def test_every_stage_is_a_command_that_can_be_typed(tmp_path):
    import yaml

    plan = make_plan(METHODS, (36, 48), 40, 0, 0.001, 600)
    source = tmp_path / "source.yaml"
    source.write_text("model: {init_args: {network: a.b, source_checkpoint: s.ckpt}}\n")
    data = tmp_path / "data.yaml"
    data.write_text(yaml.safe_dump(data_config(plan, tmp_path, "cityscapes19", None, None)))
    for stage in stages_of(plan, tmp_path, source, data):
        config = expand("fit", stage.words()).config
        assert config["model"]["init_args"]["source_checkpoint"] == "s.ckpt"
        assert config["model"]["init_args"]["network"] == "a.b"
        assert config["data"]["init_args"]["size"] == [36, 48]


def test_a_share_reaches_what_trains_and_nothing_else(tmp_path):
    plan = make_plan(
        ["source_only", "auto", "ada_bn", "label_calibration", "tent", "cotta"], (36, 48), 40, 0, 0.001, 600
    )
    stages = stages_of(plan, tmp_path, tmp_path / "source.yaml", tmp_path / "data.yaml", "auto")
    have = [stage.name for stage in stages if "--model.init_args.share" in stage.words()]
    assert have == ["tent", "cotta"]
    assert not any(
        "--model.init_args.share" in stage.words() for stage in stages_of(plan, tmp_path, tmp_path, tmp_path)
    )


def test_a_soup_starts_from_what_auto_has_chosen(tmp_path):
    methods = methods_asked_for(["model_soup", "auto"])
    assert methods == ["source_only", "source_only+multi_scale", "auto", "model_soup"]
    plan = make_plan(methods, (36, 48), 40, 0, 0.001, 600)
    last = stages_of(plan, tmp_path, tmp_path / "source.yaml", tmp_path / "data.yaml")[-1].words()
    start = last[last.index("--model.init_args.source_checkpoint") + 1]
    assert start == str(tmp_path / "auto/selected.ckpt")
    alone = make_plan(methods_asked_for(["model_soup"]), (36, 48), 40, 0, 0.001, 600)
    assert "--model.init_args.source_checkpoint" not in stages_of(alone, tmp_path, tmp_path, tmp_path)[-1].words()
    assert alone.seconds("model_soup") < plan.seconds("model_soup")
