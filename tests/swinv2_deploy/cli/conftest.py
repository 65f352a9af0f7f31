"""The command in an empty folder, and small models in the place of large ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from typer.testing import Result

    from reference_model.variants import Variant
    from swinv2_deploy.artifacts import ModelArtifact


@pytest.fixture
def fresh_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Every test that uses it starts in an empty folder, as a new user does."""
    import torch

    folder = tmp_path / "fresh"
    folder.mkdir()
    monkeypatch.chdir(folder)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield folder
    torch.set_num_threads(threads)


@pytest.fixture
def run() -> Callable[..., Result]:
    """Function from arguments to the result of the command."""
    from typer.testing import CliRunner

    from swinv2_deploy.cli.app import app

    return lambda *arguments: CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def bundled(tiny_artifact: ModelArtifact, monkeypatch: pytest.MonkeyPatch) -> ModelArtifact:
    """A small model in the place of the bundled one."""
    from swinv2_deploy.modeling import source

    monkeypatch.setattr(source, "bundled_artifact", lambda: tiny_artifact)
    return tiny_artifact


@pytest.fixture
def mini(tiny_artifact: ModelArtifact, monkeypatch: pytest.MonkeyPatch) -> Variant:
    """A published model of the size of a test, which is on no hub."""
    from reference_model.variants import VARIANTS

    config = replace(tiny_artifact.config, labels=(), num_classes=5)
    variant = replace(
        VARIANTS["nano"], name="swinv2-mini", size="mini", resolution=32, window="4", config=config, resize_shortest=36
    )
    monkeypatch.setitem(VARIANTS, variant.name, variant)
    return variant
