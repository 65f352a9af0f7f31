"""Who may import whom, and what a light import must not load."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch", "onnx", "onnxruntime", "transformers", "modelopt")
SKELETON = (
    "reference_model",
    "calibration",
    "swinv2_deploy",
    "swinv2_deploy/quantize",
    "swinv2_deploy/export",
    "swinv2_deploy/cli",
)


def run(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run Python code in a fresh interpreter, with a folder first on the path."""
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    """Check the import contracts of the project in a folder."""
    return run("from importlinter.cli import lint_imports_command; lint_imports_command(['--no-cache'])", folder)


def heavy_modules(code: str, root: Path) -> list[str]:
    """Heavy modules that some code loads."""
    result = run(f"import sys\n{code}\nsys.stderr.write(' '.join(m for m in {HEAVY} if m in sys.modules))", root)
    assert result.returncode == 0, result.stderr
    return result.stderr.split()


def test_import_contracts_are_kept(root: Path) -> None:
    """The layers and the forbidden imports of pyproject.toml hold."""
    result = lint(root)

    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("file", "line"),
    [
        pytest.param("swinv2_deploy/errors.py", "", id="nothing-broken"),
        pytest.param("reference_model/model.py", "import swinv2_deploy.errors", id="leaf-to-trunk"),
        pytest.param("reference_model/model.py", "import calibration", id="leaf-to-leaf"),
        pytest.param("calibration/table.py", "import onnx", id="leaf-to-onnx"),
        pytest.param("swinv2_deploy/quantize/spec.py", "import swinv2_deploy.export", id="stage-to-stage"),
        pytest.param("swinv2_deploy/errors.py", "import swinv2_deploy.cli", id="up-the-layers"),
        pytest.param("swinv2_deploy/export/to_onnx.py", "import tensorrt", id="tensorrt-outside-engine"),
        pytest.param("swinv2_deploy/cli/app.py", "import timm", id="timm"),
    ],
)
def test_import_contracts_can_break(file: str, line: str, tmp_path: Path, root: Path) -> None:
    """Each forbidden import is found in an otherwise clean skeleton."""
    shutil.copy(root / "pyproject.toml", tmp_path)
    for package in SKELETON:
        (tmp_path / package).mkdir(parents=True)
        (tmp_path / package / "__init__.py").touch()
    (tmp_path / "swinv2_deploy" / "errors.py").touch()
    (tmp_path / file).write_text(f"{line}\n", "utf-8")

    result = lint(tmp_path)

    assert (result.returncode != 0) == bool(line), result.stdout + result.stderr
    assert not line or "BROKEN" in result.stdout


@pytest.mark.parametrize(
    "module",
    ["swinv2_deploy", "swinv2_deploy.errors", "swinv2_deploy.artifacts", "reference_model.config", "reference_model.variants"],
)
def test_facts_load_without_torch(module: str, root: Path) -> None:
    """What a command needs to answer --help or a usage error imports in a moment."""
    if not (root / f"{module.replace('.', '/')}.py").exists() and not (root / module.replace(".", "/")).is_dir():
        pytest.skip(f"{module} does not exist yet")

    assert [] == heavy_modules(f"import {module}", root)


def test_help_loads_without_torch(root: Path) -> None:
    """The command line shows its help in a moment."""
    if not (root / "swinv2_deploy/cli/app.py").exists():
        pytest.skip("swinv2_deploy.cli.app does not exist yet")
    code = (
        "from swinv2_deploy.cli.app import main\nsys.argv = ['swinv2-deploy', '--help']\ntry: main()\nexcept SystemExit: pass"
    )

    assert [] == heavy_modules(code, root)


def test_a_heavy_import_is_noticed(root: Path) -> None:
    """The two tests above can fail."""
    assert ["onnxruntime"] == [name for name in heavy_modules("import onnxruntime", root) if name == "onnxruntime"]
