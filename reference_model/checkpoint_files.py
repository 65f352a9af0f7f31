"""Read tensors out of checkpoint files that may be damaged or hostile. The kind of a file is told by its content, not its name.

Pickles go through PyTorch's restricted unpickler with two more classes allowed, both replaced by a plain dict: the yacs node in
which Microsoft's training files keep their settings, and argparse's namespace. Nothing else is ever constructed or called.
"""

from __future__ import annotations

import argparse
import json
import mmap
import pickle
import re
import struct
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

WEIGHT_FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
"""What a folder's weights are called, best first."""

MAX_JSON_BYTES = 16 * 2**20
"""Largest JSON file read; the index of the largest published model has less than 0.1 MiB."""

_WRAPPERS = ("model", "state_dict", "model_state_dict")
_FOREIGN_GLOBAL = re.compile(r"GLOBAL ([\w.]+)")
_REFUSED_STEP = re.compile(r"WeightsUnpickler error:\s*(\S.*)")
# What PyTorch's reader and unpickler raise on damaged input. SystemError and Exception are not among them on purpose.
_UNREADABLE = (
    pickle.UnpicklingError,
    RuntimeError,
    EOFError,
    OSError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    AssertionError,
    OverflowError,
    MemoryError,
    struct.error,
)


_REFUSED_CALLS = (b"builtins\nbytearray\n", b"__builtin__\nbytearray\n")
"""Calls that PyTorch's unpickler allows and that can take any amount of memory: ``bytearray(2**40)``."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, or does not fit the model it is loaded into."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RawCheckpoint:
    """Content of a checkpoint before anything is renamed.

    Attributes:
        tensors: Every tensor by its name in the file.
        settings: Other entries of a training checkpoint, such as Microsoft's ``config``.
    """

    tensors: dict[str, Tensor]
    settings: dict[str, Any] = field(default_factory=dict)


class _Inert:
    """Stands in for a class that a pickle names: constructing it gives an empty dict, which the unpickler then fills."""

    def __new__(cls, *_: object) -> OrderedDict[str, Any]:  # type: ignore[misc]  # the point: no instance ever exists
        return OrderedDict()


_STAND_INS = (
    (_Inert, "yacs.config.CfgNode"),
    (_Inert, f"{argparse.Namespace.__module__}.{argparse.Namespace.__name__}"),
)


def read_checkpoint(path: Path) -> RawCheckpoint:
    """Read a weights file, or the weights of a folder. Tensors may share memory with the file: copy what is kept.

    Raises:
        CheckpointError: When there is nothing to read, or it is damaged, hostile or no checkpoint.
    """
    if path.is_dir():
        return _read_folder(path)
    if not path.exists():
        raise CheckpointError(f"{path} does not exist; give a folder or a .safetensors, .pth or .bin file.")
    if not path.is_file():
        raise CheckpointError(f"{path} is neither a file nor a folder; give a folder or a .safetensors, .pth or .bin file.")
    return _read_file(path)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds one object.

    Raises:
        CheckpointError: When it is unreadable, too large, no JSON, or another kind of value.
    """
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise CheckpointError(f"{path} has {path.stat().st_size:,} bytes; a config has at most {MAX_JSON_BYTES:,}.")
        values = json.loads(path.read_text(encoding="utf-8"))
    except CheckpointError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON ({error}); download it again.") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} holds a JSON {type(values).__name__}; expected an object.")
    return values


def listing(names: list[str], limit: int = 8) -> str:
    """Names joined by commas, cut after ``limit``."""
    shown = ", ".join(names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"


def _read_folder(folder: Path) -> RawCheckpoint:
    found = next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), None)
    if found is None:
        others = sorted(path.name for path in folder.iterdir() if path.suffix in (".safetensors", ".pth", ".pt", ".bin"))
        hint = f"It holds {listing(others)}: give that file itself." if others else "Download the weights into it."
        raise CheckpointError(f"{folder} has none of {', '.join(WEIGHT_FILES)}. {hint}")
    if found.suffix != ".json":
        return _read_file(found)
    weight_map = read_json(found).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{found} has no 'weight_map'; download it again.")
    tensors: dict[str, Tensor] = {}
    for shard in dict.fromkeys(weight_map.values()):
        if not isinstance(shard, str) or Path(shard).name != shard:
            raise CheckpointError(f"{found} names the shard {shard!r}; a shard is a file beside the index.")
        if not (folder / shard).is_file():
            raise CheckpointError(f"{found} names the shard {shard}, which is missing; download the folder again.")
        tensors |= _read_file(folder / shard).tensors
    unlisted = sorted(set(weight_map) ^ set(tensors))
    if unlisted:
        raise CheckpointError(f"{found} and its shards disagree on {listing(unlisted)}; download the folder again.")
    return RawCheckpoint(tensors=tensors)


def _read_file(path: Path) -> RawCheckpoint:
    try:
        with path.open("rb") as stream:
            head = stream.read(64)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be opened ({error.strerror}).") from error
    if not head:
        raise CheckpointError(f"{path} is empty; download it again.")
    if head.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path} is a Git LFS pointer, not the weights; run 'git lfs pull' where it came from.")
    if head.startswith(b"PK\x03\x04"):
        _check_archive(path)
        content = _unpickle(path)
    # Before the pickle: the length of a safetensors header may begin with the byte that every pickle begins with.
    elif head[8:9] == b"{" and (head[:1] != b"\x80" or int.from_bytes(head[:8], "little") < path.stat().st_size):
        content = _read_safetensors(path)
    elif head[:1] == b"\x80":
        content = _unpickle(path)
    else:
        raise CheckpointError(
            f"{path} is no checkpoint: it starts with {head[:16]!r}. Expected a safetensors file or one written by torch.save; "
            "if it came from a web page, download it again."
        )
    return _unwrap(content, path)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, *_UNREADABLE) as error:
        raise CheckpointError(f"{path} is a damaged safetensors file ({error}); download it again.") from error


def _check_archive(path: Path) -> None:
    """Refuse an archive that unpacks to more than it holds: torch.save stores, it never compresses."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, *_UNREADABLE) as error:
        raise CheckpointError(f"{path} is a truncated or damaged archive ({error}); download it again.") from error
    unpacked = sum(entry.file_size for entry in entries)
    if unpacked > path.stat().st_size or any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise CheckpointError(
            f"{path} unpacks {path.stat().st_size:,} bytes to {unpacked:,}; files of torch.save are not compressed. Refused."
        )


def _unpickle(path: Path) -> object:
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if any(content.find(call) >= 0 for call in _REFUSED_CALLS):
            raise CheckpointError(
                f"{path} wants to call bytearray, which no weights need and which can take any amount of memory."
            )
    try:
        # A stream, not the path: torch.load takes a path that ends in .safetensors for such a file whatever it holds.
        with path.open("rb") as stream, warnings.catch_warnings(), torch.serialization.safe_globals(list(_STAND_INS)):
            warnings.simplefilter("ignore")  # about pickle protocols; whatever does not load raises below
            return torch.load(stream, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        foreign = _FOREIGN_GLOBAL.search(str(error))
        if foreign:
            raise CheckpointError(
                f"{path} wants to construct or call {foreign[1]}, which no weights need; nothing was executed. "
                "If you trust the file, save only its tensors, best as safetensors."
            ) from error
        refused = _REFUSED_STEP.search(str(error))
        if refused:  # PyTorch's message goes on to recommend loading the file without the restriction
            raise CheckpointError(
                f"{path} is truncated, damaged or no weights file of torch.save ({refused[1].strip()[:200]}); nothing was "
                "executed. Download it again, or save only its tensors, best as safetensors."
            ) from error
        reason = str(error).strip().split("\n")[0][:200] or type(error).__name__
        raise CheckpointError(f"{path} is truncated, damaged or no weights file ({reason}); download it again.") from error


def _unwrap(content: object, path: Path) -> RawCheckpoint:
    """Find the state dict in a training checkpoint, and check every tensor."""
    size = path.stat().st_size
    settings: dict[str, Any] = {}
    for _ in range(3):
        if not isinstance(content, Mapping):
            raise CheckpointError(f"{path} holds a {type(content).__name__}; expected a dict of tensors or one with 'model'.")
        # Through dict itself: a pickle can plant attributes such as 'items' on an OrderedDict.
        values = dict(dict.items(cast(dict[Any, Any], content)))
        wrapper = next((name for name in _WRAPPERS if isinstance(values.get(name), Mapping)), None)
        if wrapper is None:
            break
        settings |= {str(key): value for key, value in values.items() if key != wrapper}
        content = values[wrapper]
    strangers = sorted(str(key) for key, value in values.items() if not (isinstance(key, str) and isinstance(value, Tensor)))
    if strangers or not values:
        raise CheckpointError(
            f"{path} holds no state dict: {listing(strangers) or 'it is empty'}. Expected names with tensors, at the top or "
            f"under one of {', '.join(_WRAPPERS)}."
        )
    for name, tensor in values.items():
        _check_tensor(name, tensor, path)
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in values.values()}
    if sum(storages.values()) > size:
        raise CheckpointError(f"{path} has {size:,} bytes and claims {sum(storages.values()):,} bytes of weights. Refused.")
    return RawCheckpoint(tensors=values, settings=settings)


def _check_tensor(name: str, tensor: Tensor, path: Path) -> None:
    if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
        raise CheckpointError(f"{path}: {name} is a {tensor.layout} tensor on {tensor.device}; expected plain dense numbers.")
    # A view can repeat one number a trillion times; the first copy of it would take all memory.
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise CheckpointError(f"{path}: {name} claims shape {tuple(tensor.shape)}, more than the file holds. Refused.")
