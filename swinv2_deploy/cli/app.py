"""The command line's root. ``swinv2-deploy --help`` must not import torch, so commands import their stage when they run."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Annotated

import typer

from swinv2_deploy import __version__
from swinv2_deploy.cli.compare import compare_command
from swinv2_deploy.cli.compile import compile_command
from swinv2_deploy.cli.export import export_command
from swinv2_deploy.cli.list import list_command
from swinv2_deploy.cli.pin import pin_command
from swinv2_deploy.cli.prune import prune_command
from swinv2_deploy.cli.quantize import quantize_command
from swinv2_deploy.cli.train import train_command
from swinv2_deploy.cli.verify import verify_command

app = typer.Typer(
    name="swinv2-deploy",
    help="Take a Swin Transformer V2 from a checkpoint to a verified INT8 model.",
    rich_markup_mode=None,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"swinv2-deploy {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Take a Swin Transformer V2 from a checkpoint to a verified INT8 model."""


app.command("export")(export_command)
app.command("train")(train_command)
app.command("prune")(prune_command)
app.command("quantize")(quantize_command)
app.command("compile")(compile_command)
app.command("pin")(pin_command)
app.command("verify")(verify_command)
app.command("compare")(compare_command)
app.command("list")(list_command)


def main() -> None:
    """Entry point of the ``swinv2-deploy`` script."""
    signal.signal(signal.SIGTERM, _terminated)
    app()


def _terminated(number: int, _: FrameType | None) -> None:
    """End as on Ctrl-C, so that what is being written is cleaned up."""
    raise SystemExit(128 + number)
