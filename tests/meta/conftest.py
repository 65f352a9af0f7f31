"""What the guards of the project look at."""

from __future__ import annotations

from pathlib import Path

import pytest

PACKAGES = ("reference_model", "calibration", "swinv2_deploy")
TEXT = {".py", ".md", ".toml", ".txt", ".json", ".yaml", ".yml", ".html", ".css", ".js", ".sh", ""}


@pytest.fixture(scope="session")
def root() -> Path:
    """Folder of the project."""
    return Path(__file__).parents[2]


@pytest.fixture(scope="session")
def packages() -> tuple[str, ...]:
    """Names of the top-level packages."""
    return PACKAGES


@pytest.fixture(scope="session")
def package_files(root: Path) -> list[Path]:
    """Every Python file of the packages."""
    return sorted(path for package in PACKAGES for path in (root / package).rglob("*.py"))


@pytest.fixture(scope="session")
def text_files(root: Path) -> list[Path]:
    """Every text file of the project."""
    folders = [root / name for name in (*PACKAGES, "tests", "docs", "benchmarks", ".ci")]
    paths = [path for folder in folders for path in folder.rglob("*")] + list(root.glob("*"))
    return sorted(path for path in paths if path.is_file() and path.suffix in TEXT and path.name != ".DS_Store")
