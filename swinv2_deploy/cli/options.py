"""Options that mean the same in every command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ARTIFACTS = Path("artifacts")
"""Folder that artifacts go to and are looked for in."""

Model = Annotated[
    str | None,
    typer.Option("--model", help="Artifact folder, Hugging Face folder or hub id, instead of --size or --weights."),
]
Artifact = Annotated[
    Path | None, typer.Option("--model", help="Artifact folder. Default: the newest in ./artifacts.", show_default=False)
]
Out = Annotated[Path | None, typer.Option("--out", help="Folder to write. Default: ./artifacts/<name>.", show_default=False)]
Data = Annotated[
    Path | None, typer.Option("--data", help="Image folder, one sub-folder a class. Default: the bundled photographs.")
]
Classes = Annotated[
    int | None,
    typer.Option("--classes", min=1, help="Classes that --weights were fine-tuned for, where not those of --size."),
]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of everything random.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object; words go to standard error.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print the result in a line, warnings and errors only.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Print details and tracebacks.")]
Force = Annotated[bool, typer.Option("--force", help="Replace an artifact that is already there.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print what would be done, and do nothing.")]
AllowUntrained = Annotated[
    bool, typer.Option("--allow-untrained", help="Accept weights that were never trained; their accuracy means nothing.")
]
