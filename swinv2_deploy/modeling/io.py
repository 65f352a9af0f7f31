"""Model artifact to module and back."""

from __future__ import annotations

import os
import re
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from reference_model.checkpoint import (
    CheckpointError,
    config_to_huggingface,
    load_weights,
    model_from_weights,
    state_to_huggingface,
)
from reference_model.model import SwinV2
from reference_model.preprocessing import Preprocessing
from swinv2_deploy.artifacts import ModelArtifact, write_json
from swinv2_deploy.errors import ArtifactError

WEIGHTS = "model.safetensors"

LARGEST_INLINE = 1_900_000_000
"""Bytes of weights that still go into ONNX files themselves: one protobuf file ends at 2 GiB."""

SMALLEST_OUTSIDE = 1024
"""Bytes below which a tensor stays in an ONNX file whose weights lie outside: ONNX Runtime refuses constants of shapes there."""


def load_model(artifact: ModelArtifact) -> SwinV2:
    """The reference model with the artifact's weights, in evaluation mode; hashes are checked first.

    Raises:
        ArtifactError: When the weights are missing, changed or do not fit the config.
    """
    path = artifact.file(WEIGHTS)
    try:
        return model_from_weights(load_weights(path), config=artifact.config)
    except CheckpointError as error:
        raise ArtifactError(f"The weights of {artifact.path} do not load: {error}") from error


def write_model_files(folder: Path, model: SwinV2, preprocessing: Preprocessing) -> None:
    """Write config, preprocessing and weights of a model into an artifact that is being made.

    Where transformers can express the model, the files carry its names, so that ``from_pretrained`` reads the folder; else our own.
    """
    config = model.config
    state = {name: value.detach().contiguous() for name, value in model.state_dict().items()}
    try:
        described = config_to_huggingface(config)
        state = {name: value.contiguous() for name, value in state_to_huggingface(state, config).items()}
    except CheckpointError:
        described = {"model_type": "swinv2-deploy"}
    write_json(folder / "config.json", described | {"swinv2_deploy": config.to_dict()})
    write_json(folder / "preprocessor_config.json", preprocessing.to_huggingface())
    save_tensors(state, folder / WEIGHTS, {"format": "pt"})


def save_tensors(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Write a safetensors file.

    Raises:
        OSError: When the disk is full or cannot be written; safetensors has an error of its own for that, with the number in it.
    """
    try:
        save_file(tensors, path, metadata)
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
