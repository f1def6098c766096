"""What a config names of Python's own library is neither called nor imported."""

from pathlib import Path

import pytest
import yaml

from sfda.errors import UserError
from sfda.runs.arguments import expand
from sfda.runs.own_library import is_callable_of_python, refuse_functions_of_python
from tiny_runs import tiny_arguments

LAMBDA = "lightning.pytorch.callbacks.LambdaCallback"
CALLBACKS = {
    "a function of a callback": {"class_path": LAMBDA, "init_args": {"setup": "os.system"}},
    "another one": {"class_path": LAMBDA, "init_args": {"on_fit_start": "subprocess.call"}},
    "a class": {"class_path": "subprocess.Popen", "init_args": {"args": "touch canary"}},
    "a builtin": {"class_path": "builtins.exec"},
}


@pytest.mark.parametrize("callback", CALLBACKS)
@pytest.mark.parametrize("door", ["fit --config", "fit --run", "validate --config", "fit --trainer"])
def test_nothing_of_pythons_own_library_is_named_by_a_config(
    door: str, callback: str, town: Path, sfda, tmp_path: Path, capsys
) -> None:
    trainer = {"callbacks": [CALLBACKS[callback]]}
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.yaml").write_text(yaml.safe_dump({"trainer": trainer}))
    (tmp_path / "trainer.yaml").write_text(yaml.safe_dump(trainer))
    command, option = door.split()
    file = {"--config": "run/config.yaml", "--run": "run", "--trainer": "trainer.yaml"}[option]
    rest = tiny_arguments("source_training", town) if option != "--run" else []
    assert sfda(command, *([option, file, *rest] if option == "--run" else [*rest, option, file])) == 2
    error = capsys.readouterr().err
    assert "of Python's own library, as trainer.callbacks[0]." in error
    assert "Read a config that you have not written before you use it" in error
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("text", ["os.system", "os.path.join", "subprocess.Popen", "builtins.eval", "shutil.rmtree"])
def test_functions_of_python(text: str) -> None:
    assert is_callable_of_python(text)
    with pytest.raises(UserError, match=rf"names {text}, of Python's own library, as a\.b\[1\]\.c: no part of a run"):
        refuse_functions_of_python({"a": {"b": [1, {"c": text}]}})


@pytest.mark.parametrize(
    "text", ["os", "os.path", "os.absent", "trace.json", "code.v1", "system", "a.b", "/os.system", "os.system.yaml", ""]
)
def test_what_only_looks_like_it(text: str) -> None:
    assert not is_callable_of_python(text)


def test_the_projects_own_configs_name_nothing_of_it() -> None:
    for method in ("source_training", "self_training", "cal_sfda", "iapc"):
        expand("fit", [f"streets/{method}"])
