"""The exception tree is what its drawing says."""

from __future__ import annotations

import re

import pytest

from swinv2_deploy import errors
from swinv2_deploy.errors import SwinDeployError

CLASSES = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, SwinDeployError)]


def test_public_list_is_the_tree() -> None:
    """Every exception of the module is public, and nothing else is."""
    assert sorted(cls.__name__ for cls in CLASSES) == errors.__all__


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_drawing_shows_the_exit_code_and_parent(cls: type[SwinDeployError]) -> None:
    """The docstring's tree has one line for each class, with its exit code, under its parent."""
    lines = [line for line in (errors.__doc__ or "").splitlines() if re.search(r"\S {2,}\d+ {2}", line)]
    drawn = {re.sub(r"[^\w].*", "", line.lstrip(" │├└─")): line for line in lines}
    (parent,) = cls.__bases__

    assert sorted(drawn) == errors.__all__
    assert re.search(rf"\b{cls.__name__} +{cls.exit_code}  ", drawn[cls.__name__])
    if parent in CLASSES:
        above = [line for line in lines[: lines.index(drawn[cls.__name__])] if indent(line) < indent(drawn[cls.__name__])]
        assert parent.__name__ in above[-1]


@pytest.mark.parametrize(
    ("name", "code"),
    [("SpecError", 2), ("ToleranceExceeded", 3), ("BackendMissing", 4), ("ArtifactLocked", 75), ("ExportError", 1)],
)
def test_exit_codes_are_a_promise(name: str, code: int) -> None:
    """Scripts rely on these numbers."""
    assert code == getattr(errors, name).exit_code


def indent(line: str) -> int:
    """Columns before the class name of a drawn line."""
    return len(line) - len(line.lstrip(" │├└─"))
