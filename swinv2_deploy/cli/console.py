"""What a command prints: results on standard output, everything else on standard error."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.markup import escape

from swinv2_deploy.cli.options import ARTIFACTS
from swinv2_deploy.errors import SwinDeployError

if TYPE_CHECKING:
    from swinv2_deploy.artifacts import ModelArtifact

LEAVES = ("calibration", "reference_model")


@dataclass(frozen=True, slots=True)
class Output:
    """Where a command's words go.

    Attributes:
        json: Whether the result is one JSON object on standard output, and words go to standard error only.
        quiet: Whether words are left out.
        verbose: Whether foreign tracebacks are shown.
    """

    json: bool = False
    quiet: bool = False
    verbose: bool = False

    @property
    def console(self) -> Console:
        """Console for words and progress: standard error with ``--json``, else standard output."""
        return Console(stderr=self.json, quiet=self.quiet, highlight=False, soft_wrap=True)

    def say(self, text: str) -> None:
        """Print a line, with rich's markup."""
        self.console.print(text)

    @contextmanager
    def working(self, text: str) -> Iterator[None]:
        """Show that something is going on: a spinner on a terminal, one line elsewhere."""
        console = self.console
        if not console.is_terminal or self.quiet:
            self.say(f"{text} ...")
            yield
            return
        with console.status(text):
            yield

    def result(self, content: dict[str, Any]) -> None:
        """Print the JSON result when it was asked for, or with ``--quiet`` the one line that a script needs: the artifact."""
        if self.json:
            sys.stdout.write(json.dumps(content, indent=2, ensure_ascii=False, default=str) + "\n")
        elif self.quiet and "artifact" in content:
            sys.stdout.write(f"{content['artifact']}\n")


def warn(text: str) -> None:
    """Print a warning to standard error, always."""
    Console(stderr=True, highlight=False, soft_wrap=True).print(f"[bold yellow]warning:[/] {escape(text)}")


def artifact_to_run(model: Path | None, output: Output) -> ModelArtifact:
    """The artifact that was named, or else the newest one; says which, and warns of weights that were never trained."""
    from swinv2_deploy.artifacts import newest_artifact, read_artifact

    artifact = read_artifact(model) if model else newest_artifact(ARTIFACTS)
    if model is None:
        output.say(f"No model was named: taking the newest artifact, {artifact.path}")
    if not artifact.lineage.weights.trained:
        warn(
            f"{artifact.name} has UNTRAINED weights: speed and size are those of the real model, and its answers mean nothing."
        )
    return artifact


@contextmanager
def reported_errors(output: Output) -> Iterator[None]:
    """End the command with one clear line and the right exit code when a stage or a leaf raises on purpose."""
    logging.basicConfig(level=logging.INFO if output.verbose else logging.ERROR, format="%(message)s")
    try:
        yield
    except KeyboardInterrupt as error:
        message = "stopped; nothing was left half written."
        _fail(message, output, {"error": "Interrupted", "message": message, "exit_code": 130})
        raise typer.Exit(130) from error
    except (SwinDeployError, ValueError) as error:
        if not isinstance(error, SwinDeployError) and type(error).__module__.partition(".")[0] not in LEAVES:
            raise
        usage = type(error).__name__ in ("VariantError", "ConfigError")
        code = error.exit_code if isinstance(error, SwinDeployError) else 2 if usage else 1
        if output.verbose:
            Console(stderr=True).print_exception()
        content = {"error": type(error).__name__, "message": str(error), "exit_code": code}
        findings = getattr(error, "findings", ())  # of a LintError
        lints = {"lints": [finding.to_dict() for finding in findings]} if findings else {}
        _fail(str(error), output, content | lints)
        raise typer.Exit(code) from error
    except OSError as error:
        # What a stage did not expect of the disk, such as a file without permission to read it.
        if error.filename is None:
            raise
        message = f"{error.filename}: {error.strerror}. Check that it is there and may be used."
        _fail(message, output, {"error": type(error).__name__, "message": message, "exit_code": 1})
        raise typer.Exit(1) from error


def _fail(message: str, output: Output, content: dict[str, Any]) -> None:
    Console(stderr=True, highlight=False, soft_wrap=True).print(f"[bold red]error:[/] {escape(message)}")
    output.result(content)
