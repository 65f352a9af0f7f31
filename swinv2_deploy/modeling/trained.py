"""A model after quantization-aware training: its weights and the ranges of its sites, in one file, loaded strictly."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from reference_model.config import SwinV2Config
from reference_model.model import SwinV2, build_model
from swinv2_deploy.artifacts import ModelArtifact
from swinv2_deploy.errors import ArtifactError, QuantizeError
from swinv2_deploy.modeling.fake_quant import fake_quantize, unknown_sites
from swinv2_deploy.modeling.io import save_tensors
from swinv2_deploy.modeling.sites import ranges_by_site

TRAINED_WEIGHTS = "qat.safetensors"
SCHEMA = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainedForm:
    """What quantization-aware training leaves behind.

    Attributes:
        model: Reference model with the trained weights, in float.
        ranges: Largest magnitude of every activation that enters a site, by name.
    """

    model: SwinV2
    ranges: Mapping[str, float]

    def fake_quantized(self) -> SwinV2:
        """The model as an INT8 file computes it: a copy with fake quantizers at the sites.

        Raises:
            BackendMissing: When ModelOpt is not installed.
        """
        copy = build_model(self.model.config)
        copy.load_state_dict(self.model.state_dict())
        fake_quantize(copy, self.ranges)
        return copy.eval()

    def save(self, path: Path) -> None:
        """Write weights under their native names, and the ranges beside them in the file's metadata.

        Raises:
            OSError: When the file cannot be written.
        """
        state = {name: value.detach().contiguous().clone() for name, value in self.model.state_dict().items()}
        content = {"schema": SCHEMA, "ranges": dict(self.ranges)}
        save_tensors(state, path, {"swinv2_deploy.qat": json.dumps(content)})


def load_trained(artifact: ModelArtifact) -> TrainedForm:
    """What an artifact's quantization-aware training left behind; its hash is checked first.

    Raises:
        ArtifactError: When there is none, it was changed, or it does not fit the config to the last name.
    """
    return read_trained(artifact.file(TRAINED_WEIGHTS), artifact.config)


def read_trained(path: Path, config: SwinV2Config) -> TrainedForm:
    """The same of a file.

    Raises:
        ArtifactError: When it is damaged or does not fit the config to the last name.
    """
    try:
        with safe_open(path, framework="pt") as file:
            content = json.loads((file.metadata() or {})["swinv2_deploy.qat"])
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dict
        ranges = {str(name): float(value) for name, value in content["ranges"].items()}
        schema = content["schema"]
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise ArtifactError(f"{path} is damaged or of another kind ({error}); quantize again.") from error
    if schema != SCHEMA:
        raise ArtifactError(f"{path} has schema {schema}; this version reads {SCHEMA}. Quantize again.")
    model = build_model(config).eval()
    expected = model.state_dict()
    missing, unexpected = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    shapes = [name for name in expected.keys() & state.keys() if expected[name].shape != state[name].shape]
    if missing or unexpected or shapes:
        raise ArtifactError(
            f"{path} does not fit the model: missing {missing[:5]}, unexpected {unexpected[:5]}, of other shapes "
            f"{sorted(shapes)[:5]}; quantize again."
        )
    model.load_state_dict(state)
    try:
        wrong = unknown_sites(model, ranges_by_site(ranges))
    except QuantizeError as error:
        raise ArtifactError(f"{path} lacks a range: {error}") from error
    wrong += sorted(name for name, amax in ranges.items() if not (math.isfinite(amax) and amax > 0))
    if wrong or not ranges:
        raise ArtifactError(f"{path} has ranges that do not fit the model, at {wrong[:5]}; quantize again.")
    return TrainedForm(model=model, ranges=ranges)
