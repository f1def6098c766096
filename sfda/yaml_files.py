"""YAML files that a user writes, and what is wrong with them as a sentence. Imports no torch."""

from pathlib import Path
from typing import Any

import yaml
from typing_extensions import override

from sfda.errors import UserError


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice in one mapping, of which PyYAML keeps the last without a word."""

    @override
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if (name := self.construct_object(key)) in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {name!r} stands here a second time", key.start_mark
                    )
                seen.add(name)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> Any:
    """The content of a YAML (or JSON) file; a `UserError` with file, line and column where it cannot be parsed."""
    try:
        return yaml.load(path.read_text(encoding="utf-8"), _Loader)
    # ValueError: no UTF-8, or a date like 2026-13-01; RecursionError: 1000 brackets and more
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise UserError(f"{path}: cannot be read as YAML: {_reason(error)}") from error


def read_mapping(path: Path) -> dict[str, Any]:
    """As `read_yaml`, of a file of keys and values, as every config is; an empty one has none, others are refused."""
    content = read_yaml(path)
    if not isinstance(content, dict | None):
        raise UserError(f"{path}: not a config, it holds no mapping")
    return content or {}


def _reason(error: Exception) -> str:
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return str(error)
    mark = error.problem_mark
    reason = f"line {mark.line + 1}, column {mark.column + 1}: {error.problem}"
    if "escape" in reason:
        reason += r"; in double quotes a \ begins an escape: write / or \\, or put the text into single quotes"
    return reason
