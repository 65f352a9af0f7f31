"""What an exported file says about itself: enough to use it, and to know what it was made from, without anything beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import onnx_ir as ir

from swinv2_deploy.artifacts import ResolutionRange
from swinv2_deploy.modeling.source import Source
from swinv2_deploy.runtime.load import preprocessing_for
from swinv2_deploy.runtime.onnx_file import PREFIX, SCHEMA


def describe(
    model: ir.Model, source: Source, resolutions: ResolutionRange, model_sha256: str, facts: Mapping[str, Any]
) -> None:
    """Put what a user of the file must know into a model's metadata.

    Args:
        model: Model to describe.
        source: Where its weights come from.
        resolutions: Sizes it is right at.
        model_sha256: Hash of the artifact's weights file.
        facts: What else is to be said, such as the precision.
    """
    content = {
        "schema": SCHEMA,
        "config": source.model.config.to_dict(),
        "labels": list(source.model.config.labels),
        "preprocessing": asdict(preprocessing_for(source.preprocessing, resolutions)),
        "resolutions": asdict(resolutions),
        "weights_origin": asdict(source.origin),
        "parent": dict(source.parent),
        "model_sha256": model_sha256,
        **facts,
    }
    for name, value in content.items():
        model.metadata_props[f"{PREFIX}{name}"] = value if isinstance(value, str) else json.dumps(value)
