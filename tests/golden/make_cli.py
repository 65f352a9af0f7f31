"""Write the golden file of the command line: every command with its options, their types and defaults.

Whoever types a command in a script relies on these. To write the file again, and to review what the diff takes away:

    python tests/golden/make_cli.py
"""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from typing import get_args, get_type_hints

HERE = Path(__file__).parent
FILE = HERE / "cli.txt"


def describe() -> str:
    """One line a command, one line an option."""
    from swinv2_deploy.cli.app import app

    lines = []
    for command in sorted(app.registered_commands, key=lambda command: str(command.name)):
        lines.append(f"swinv2-deploy {command.name}")
        hints = get_type_hints(command.callback, include_extras=True)
        parameters = inspect.signature(command.callback).parameters if command.callback else {}
        for name, parameter in sorted(parameters.items()):
            annotation, option = get_args(hints[name])
            kind = annotation.__name__ if isinstance(annotation, type) else str(annotation).replace("pathlib.", "")
            default = "required" if parameter.default is inspect.Parameter.empty else f"default {parameter.default}"
            # An argument has no names but its place.
            names = [text for text in (option.default, *(option.param_decls or ())) if isinstance(text, str)] or [name.upper()]
            lines.append(f"  {', '.join(names)}: {kind}, {default}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.path.insert(0, str(HERE.parents[1]))
    FILE.write_text(describe(), "utf-8")
