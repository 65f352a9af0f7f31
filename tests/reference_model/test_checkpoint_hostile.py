"""Damaged and hostile files end in one clear error; nothing in them runs, and they do not take the memory they claim."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from reference_model.checkpoint import CheckpointError, load_weights
from reference_model.config import SwinV2Config
from reference_model.model import SwinV2


@pytest.fixture
def state(tiny_config: SwinV2Config, randomized: Callable[..., SwinV2]) -> dict[str, Tensor]:
    return dict(randomized(tiny_config).state_dict())


class Hostile:
    """Runs a command when a careless loader unpickles it."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


class Terabyte:
    def __reduce__(self) -> tuple[Any, ...]:
        return bytearray, (2**40,)


class Uninitialized:
    def __reduce__(self) -> tuple[Any, ...]:
        return torch.Tensor, (1000, 1000)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("place", ["top", "model", "config"])
def test_hostile_pickle_is_refused_by_name_and_runs_nothing(
    legacy: bool, place: str, state: dict[str, Tensor], tmp_path: Path
) -> None:
    target = tmp_path / "made by the pickle"
    content: Any = Hostile(target) if place == "top" else {"model": state} | {place: Hostile(target)}
    torch.save(content, tmp_path / "weights.pth", _use_new_zipfile_serialization=not legacy)

    with pytest.raises(CheckpointError, match=r"wants to construct or call \w+\.mkdir, .*; nothing was executed"):
        load_weights(tmp_path / "weights.pth")
    assert not target.exists()


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_plain_pickle_is_refused(protocol: int, tmp_path: Path) -> None:
    target = tmp_path / "made by the pickle"
    (tmp_path / "weights.pth").write_bytes(pickle.dumps(Hostile(target), protocol=protocol))

    with pytest.raises(CheckpointError):
        load_weights(tmp_path / "weights.pth")
    assert not target.exists()


def test_yacs_stand_in_cannot_be_called_to_do_anything(tmp_path: Path) -> None:
    """The allowed class ignores its arguments; attributes planted on the dict it makes are not used."""
    stream = (
        b"\x80\x02}X\x05\x00\x00\x00model"  # {"model":
        b"cyacs.config\nCfgNode\n(X\x01\x00\x00\x00atR"  # CfgNode("a"), which is an empty OrderedDict
        b"}X\x05\x00\x00\x00itemsccollections\nCounter\nsb"  # whose 'items' becomes another function
        b"s."
    )
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", stream)
        archive.writestr("archive/version", "3\n")
    (tmp_path / "weights.pth").write_bytes(buffer.getvalue())

    with pytest.raises(CheckpointError, match="holds no state dict: it is empty"):
        load_weights(tmp_path / "weights.pth")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\x00", "is no checkpoint"),
        (b"hello, I am a text file", r"is no checkpoint: it starts with b'hello, I am a te'"),
        (b"<!DOCTYPE html><html>", "if it came from a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS pointer.*run 'git lfs pull'"),
        (b"PK\x03\x04 and no more", "truncated or damaged archive"),
        (b"\x80\x02", "truncated, damaged or no weights file"),
        (struct.pack("<Q", 2**62) + b"{", "damaged safetensors file"),
        (struct.pack("<Q", 2) + b"{}", "holds no state dict: it is empty"),
        (b"\x80" + bytes(range(256)), "truncated, damaged or no weights file"),
    ],
    ids=["empty", "zero", "text", "html", "lfs", "zip", "pickle", "header", "nothing", "noise"],
)
def test_file_that_is_no_checkpoint_is_told_as_such(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)

    with pytest.raises(CheckpointError, match=message):
        load_weights(tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=message):
        load_weights(tmp_path)


@pytest.mark.parametrize("kind", ["safetensors", "pth", "legacy"])
def test_truncated_and_corrupted_files_never_crash(kind: str, state: dict[str, Tensor], tmp_path: Path) -> None:
    """Cut anywhere, a file is refused; with bytes flipped it is refused or, where only numbers changed, loads."""
    path = tmp_path / "weights"
    if kind == "safetensors":
        save_file(state, path)
    else:
        torch.save({"model": state}, path, _use_new_zipfile_serialization=kind == "pth")
    whole = path.read_bytes()
    chance = random.Random(0)
    for share in (0.001, 0.02, 0.3, 0.5, 0.9, 0.999):
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(CheckpointError):
            load_weights(path)
    refused = 0
    for _ in range(60):
        damaged = bytearray(whole)
        for _ in range(4):
            damaged[chance.randrange(min(len(whole), 6000))] = chance.randrange(256)
        path.write_bytes(bytes(damaged))
        try:
            load_weights(path)
        except CheckpointError:
            refused += 1
    assert refused > 10


def test_archive_that_unpacks_to_more_than_it_holds_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "weights.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\x00" * 2**24)

    with pytest.raises(CheckpointError, match=r"unpacks [\d,]+ bytes to 16,777,216; .* Refused\."):
        load_weights(tmp_path / "weights.pth")


def test_archive_with_a_compressed_entry_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "weights.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}.")

    with pytest.raises(CheckpointError, match="are not compressed"):
        load_weights(tmp_path / "weights.pth")


@pytest.mark.parametrize("legacy", [False, True])
def test_call_that_only_takes_memory_is_refused(legacy: bool, tmp_path: Path) -> None:
    """PyTorch's own allow-list holds bytearray, of which a few bytes of pickle make a terabyte."""
    torch.save({"model": Terabyte()}, tmp_path / "weights.pth", _use_new_zipfile_serialization=not legacy)

    with pytest.raises(CheckpointError, match="wants to call bytearray"):
        load_weights(tmp_path / "weights.pth")


def test_tensor_made_without_data_is_refused(tmp_path: Path) -> None:
    """``torch.Tensor(1000, 1000)`` is allowed in a pickle and needs no bytes of the file."""
    torch.save({"model": {"patch_embed.proj.weight": Uninitialized()}}, tmp_path / "weights.pth")

    with pytest.raises(CheckpointError, match=r"claims 4,000,000 bytes of weights\. Refused\."):
        load_weights(tmp_path / "weights.pth")


def test_view_of_one_number_as_a_trillion_is_refused(state: dict[str, Tensor], tmp_path: Path) -> None:
    state["head.weight"] = torch.zeros(1).expand(10**6, 10**6)
    torch.save({"model": state}, tmp_path / "weights.pth")

    with pytest.raises(CheckpointError, match=r"head\.weight claims shape \(1000000, 1000000\), more than the file holds"):
        load_weights(tmp_path / "weights.pth")


def test_sparse_tensor_is_refused(state: dict[str, Tensor], tmp_path: Path) -> None:
    state["head.weight"] = torch.eye(4).to_sparse()
    torch.save(state, tmp_path / "weights.pth")

    with pytest.raises(CheckpointError, match=r"head\.weight is a torch\.sparse_coo tensor"):
        load_weights(tmp_path / "weights.pth")


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, {"model": {"a": "text"}}, {1: torch.zeros(1)}, torch.zeros(2)])
def test_file_of_torch_without_a_state_dict_is_told_as_such(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "weights.pth")

    with pytest.raises(CheckpointError, match=r"expected a dict of tensors|holds no state dict"):
        load_weights(tmp_path / "weights.pth")


def test_torchscript_archive_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "weights.pt", "w") as archive:
        archive.writestr("archive/constants.pkl", b"\x80\x02).")
        archive.writestr("archive/data.pkl", b"\x80\x02}.")
        archive.writestr("archive/version", "3\n")

    with pytest.raises(CheckpointError):
        load_weights(tmp_path / "weights.pt")


def test_missing_path_and_empty_folder_say_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"does not exist; give a folder or a \.safetensors, \.pth or \.bin file"):
        load_weights(tmp_path / "gone")
    with pytest.raises(CheckpointError, match=r"has none of model\.safetensors, .* Download the weights into it"):
        load_weights(tmp_path)
    (tmp_path / "mine.pth").touch()
    with pytest.raises(CheckpointError, match=r"It holds mine\.pth: give that file itself"):
        load_weights(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match="neither a file nor a folder"):
        load_weights(tmp_path / "pipe")


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (
            {"weight_map": {"a": "../outside.safetensors"}},
            r"names the shard '\.\./outside\.safetensors'; a shard is a file beside",
        ),
        ({"weight_map": {"a": 3}}, "names the shard 3"),
        ({"weight_map": {"a": "gone.safetensors"}}, r"gone\.safetensors, which is missing"),
        ({"weight_map": {"b": "here.safetensors"}}, "disagree on a, b"),
        ({"weight_map": []}, "has no 'weight_map'"),
        ([], "holds a JSON list"),
    ],
)
def test_bad_shard_index_is_refused(index: object, message: str, tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "here.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index), "utf-8")

    with pytest.raises(CheckpointError, match=message):
        load_weights(tmp_path)


@pytest.mark.parametrize("text", ["{", "[1]", "\x00", '{"depths": [2]}', "[" * 100_000, '{"model_type": "vit"}'])
def test_bad_config_is_refused(text: str, state: dict[str, Tensor], tmp_path: Path) -> None:
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(text, "utf-8")

    with pytest.raises(CheckpointError, match=r"config\.json"):
        load_weights(tmp_path)
