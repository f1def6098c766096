"""Domains as a YAML file describes them."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from sfda.data.layouts import Domain
from sfda.errors import UserError


def domains_of(options: Mapping[str, Any]) -> dict[str, Domain]:
    """The configured domains by name, `source` (where there is one) before `target`.

    Raises:
        UserError: a domain has unknown options, or lacks one.
    """
    return {name: _domain(name, options[name]) for name in ("source", "target") if options.get(name)}


def _domain(name: str, given: Any) -> Domain:
    known = [field.name for field in fields(Domain)]
    if not isinstance(given, dict):
        raise UserError(f"`{name}` must be a mapping with `layout` and `root`, not {given!r}")
    if unknown := [key for key in given if key not in known]:
        raise UserError(f"`{name}` has unknown options {unknown}; known are {', '.join(known)}")
    if missing := [key for key in ("layout", "root") if given.get(key) is None]:
        raise UserError(f"`{name}` lacks {' and '.join(missing)}")
    if not isinstance(given.get("max_pixels", 1), int):
        raise UserError(f"`{name}` has a `max_pixels` that is no whole number: {given['max_pixels']!r}")
    if wrong := [key for key, value in given.items() if key != "max_pixels" and not isinstance(value, str | None)]:
        raise UserError(f"`{name}` has options that are no text: {', '.join(wrong)}")
    return Domain(**given)
