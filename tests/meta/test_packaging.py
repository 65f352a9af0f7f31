"""The wheel holds what it should, and the declared versions agree with each other."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import swinv2_deploy


@pytest.fixture(scope="module")
def project(root: Path) -> dict[str, Any]:
    """The [project] table."""
    table: dict[str, Any] = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["project"]
    return table


@pytest.fixture(scope="module")
def pins(root: Path) -> dict[str, str]:
    """Pinned version of every distribution in constraints.txt."""
    lines = (root / "constraints.txt").read_text("utf-8").splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pairs}


@pytest.fixture(scope="module")
def wheel(root: Path, tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel, built offline."""
    pytest.importorskip("hatchling", reason="hatchling builds the wheel; it is part of the dev extra")
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    result = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    (path,) = folder.glob("*.whl")
    return zipfile.ZipFile(path)


def test_wheel_holds_the_packages_and_nothing_else(wheel: zipfile.ZipFile, root: Path, packages: tuple[str, ...]) -> None:
    """Every file of the three packages, data included; no tests, no docs, no leftovers."""
    found = {name for name in wheel.namelist() if ".dist-info/" not in name}
    paths = [path for package in packages for path in (root / package).rglob("*")]
    expected = {path.relative_to(root).as_posix() for path in paths if path.is_file() and "__pycache__" not in path.parts}

    assert expected == found


def test_every_package_is_typed(wheel: zipfile.ZipFile, packages: tuple[str, ...]) -> None:
    """Type checkers of users see the annotations."""
    assert {f"{package}/py.typed" for package in packages} <= set(wheel.namelist())


def test_wheel_installs_the_command(wheel: zipfile.ZipFile) -> None:
    """`swinv2-deploy` is on the path after installing."""
    (name,) = (name for name in wheel.namelist() if name.endswith("entry_points.txt"))

    assert "swinv2-deploy = swinv2_deploy.cli.app:main" in wheel.read(name).decode()


def test_wheel_carries_the_license(wheel: zipfile.ZipFile) -> None:
    """The license travels with the code."""
    assert any(name.endswith("licenses/LICENSE") for name in wheel.namelist())


def test_every_direct_dependency_is_pinned(project: dict[str, Any], pins: dict[str, str]) -> None:
    """What the core, the tests and quantization need has one tested version, and it satisfies the declared floor."""
    extras = project["optional-dependencies"]
    requirements = [Requirement(line) for line in (*project["dependencies"], *extras["qat"], *extras["report"], *extras["dev"])]
    wrong = {
        requirement.name: pins.get(canonicalize_name(requirement.name), "not pinned")
        for requirement in requirements
        if requirement.name != project["name"]
        and pins.get(canonicalize_name(requirement.name), "0") not in requirement.specifier
    }

    assert {} == wrong


def test_constraints_name_no_host(root: Path) -> None:
    """Pins are names and versions only: where they come from is the user's choice."""
    lines = (root / "constraints.txt").read_text("utf-8").splitlines()

    assert [] == [line for line in lines if not re.fullmatch(r"#.*|[\w.-]+==[\w.]+", line) or "://" in line]


def test_newest_changelog_entry_is_this_version(root: Path) -> None:
    """Nobody releases a version without saying what changed."""
    versions = re.findall(r"^## \[?(\d+\.\d+\.\d+)", (root / "CHANGELOG.md").read_text("utf-8"), flags=re.MULTILINE)

    assert versions[0] == swinv2_deploy.__version__
