"""YAML files that a user writes, and what is wrong with them as a sentence. Imports no torch."""

from pathlib import Path
from typing import Any

import yaml

from sfda.errors import UserError


def read_yaml(path: Path) -> Any:
    """The content of a YAML (or JSON) file; a `UserError` with file, line and column where it cannot be parsed."""
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:  # ValueError: no UTF-8, or a date like 2026-13-01
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
