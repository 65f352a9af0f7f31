"""Commands and options are a promise, and the real command ends with the right code and leaves nothing behind."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

ROOT = Path(__file__).parents[3]
COMMANDS = ("export", "list", "quantize", "train", "verify")
Run = Callable[..., Result]
pytestmark = pytest.mark.usefixtures("fresh_folder")


# --- help --------------------------------------------------------------------------------------------------------------


def golden() -> tuple[str, str]:
    """What the file says and what the code says."""
    spec = importlib.util.spec_from_file_location("make_cli", ROOT / "tests/golden/make_cli.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return (ROOT / "tests/golden/cli.txt").read_text("utf-8"), module.describe()


def test_commands_and_options_are_a_promise() -> None:
    """A changed name or default is seen in a diff of tests/golden/cli.txt (written by make_cli.py beside it)."""
    stored, found = golden()
    assert found == stored


@pytest.mark.parametrize("command", COMMANDS)
def test_help_lists_every_option(command: str, run: Run) -> None:
    """With a sentence each, and the command's own."""
    text = run(command, "--help").stdout
    section = golden()[0].split(f"swinv2-deploy {command}\n")[1].split("swinv2-deploy ")[0]
    for line in section.splitlines():
        assert line.strip().split(":")[0].split(",")[0] in text
    assert text.split("\n\n")[1].strip().endswith(".")


def test_help_of_every_command_is_quick() -> None:
    """It imports neither torch nor onnx."""
    code = (
        "import sys\nfrom typer.testing import CliRunner\nfrom swinv2_deploy.cli.app import app\n"
        f"for name in {COMMANDS!r}:\n    assert CliRunner().invoke(app, [name, '--help']).exit_code == 0\n"
        "print([name for name in ('torch', 'onnx', 'onnxruntime', 'onnx_ir') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"


def test_an_unknown_option_is_a_usage_error(run: Run, fresh_folder: Path) -> None:
    """As are values out of bounds and commands that do not exist."""
    for arguments in (("export", "--sise", "tiny"), ("quantize", "--images", "0"), ("exprot",), ("train",)):
        result = run(*arguments)
        assert result.exit_code == 2
        assert result.stdout == ""
        assert "Traceback" not in result.stderr
    assert list(fresh_folder.rglob("*")) == []


def script(*arguments: str, folder: Path, **others: Any) -> subprocess.Popen[str]:
    """The command in a process of its own."""
    code = "import sys; sys.argv[0] = 'swinv2-deploy'; from swinv2_deploy.cli.app import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A runner in the background ignores Ctrl-C, and its children would inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        **others,
    )


# --- real processes ----------------------------------------------------------------------------------------------------


def test_the_version_and_a_usage_error_of_the_real_command(fresh_folder: Path) -> None:
    """Exit codes reach the shell."""
    from swinv2_deploy import __version__

    process = script("--version", folder=fresh_folder)
    assert process.communicate()[0] == f"swinv2-deploy {__version__}\n"
    process = script("export", "--size", "enormous", "--json", folder=fresh_folder)
    out, err = process.communicate()
    assert process.returncode == 2
    assert json.loads(out)["error"] == "VariantError"
    assert err.startswith("error: There is no size 'enormous'")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["ctrl-c", "terminated"])
def test_an_interrupted_run_leaves_nothing(number: signal.Signals, code: int, fresh_folder: Path) -> None:
    """Interrupted in the middle of an export: the exit code of the signal, one line, an empty folder."""
    process = script("export", "--size", "tiny", "--window", "8", folder=fresh_folder)
    end = time.monotonic() + 60
    while not list(fresh_folder.glob("artifacts/.*.tmp/*")) and time.monotonic() < end and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)

    assert process.returncode == code, err
    assert "Traceback" not in err
    assert ("stopped; nothing was left half written" in err) == (number == signal.SIGINT)
    assert list(fresh_folder.rglob("*")) == []
