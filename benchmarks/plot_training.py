"""Draw the curve of a training run from the history.json that an artifact of 'train' holds.

python benchmarks/plot_training.py swinv2_deploy/default_model/history.json docs/methods/bundled-model.svg
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from swinv2_deploy.training.plot import NOT_DRAWN, draw_history


def main() -> None:
    """Loss and watched accuracy over epochs; a shade for each resolution."""
    source, target = (Path(argument) for argument in sys.argv[1:3])
    if not draw_history(json.loads(source.read_text(encoding="utf-8")), target):
        raise SystemExit(NOT_DRAWN)


if __name__ == "__main__":
    main()
