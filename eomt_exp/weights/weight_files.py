"""Reads files of weights: ours, published ones, those of the Hugging Face hub; never unpickled.

safetensors files hold tensors and nothing else. PyTorch's own are pickles: they are read with
`weights_only`, which builds tensors and plain containers and refuses whatever asks for more.
"""

from __future__ import annotations

import functools
import json
import re
import warnings
import zipfile
from pathlib import Path, PurePosixPath

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from eomt_exp import files
from eomt_exp.contracts import CheckpointError
from eomt_exp.files import replacing

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"  # of weights in several files
IN_A_FOLDER = (WEIGHTS, INDEX, "pytorch_model.bin")  # looked for in this order
ENDINGS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")  # all but the first are pickles
ON_THE_HUB = ENDINGS[:2]
# The pickle only where the rest is not there: many repositories have both.
_OF_A_RUN = ["config.yaml", "metrics.json"]  # of a run that was published
_FETCHED_TOGETHER = (
    [WEIGHTS, INDEX, "model-*.safetensors", *_OF_A_RUN],
    ["pytorch_model.bin", *_OF_A_RUN],
)
# The whole name is typed: the official notebook makes one from a logger's name, which the configs
# of shorter and longer schedules share, so that the weights of the longer ones are never found.
HUB = "hf://"
_HUB_ID = re.compile(
    r"hf://(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^/@\s]+))?(?:/(?P<file>[^@\s]+))?"
)


def save_weights(model: nn.Module, path: Path) -> None:
    """Write all parameters and buffers as one safetensors file."""
    with replacing(path) as scratch:
        save_file(
            {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}, scratch
        )


def read_weights(where: str | Path) -> dict[str, Tensor]:
    """Read all tensors of a file, a folder, or hf://owner/name[@revision][/file], on the CPU.

    Raises CheckpointError, naming the file, for one that is missing, cut off, no file of weights,
    or holds anything but tensors.
    """
    state: dict[str, Tensor] = {}
    for path in weight_files(where):
        state |= _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickled(path)
    return state


def weight_files(where: str | Path) -> list[Path]:
    """Return the local files that `where` stands for, downloaded if need be, and not read."""
    text = str(where)
    path = _downloaded(text) if text.startswith(HUB) else Path(text)
    if path.is_dir():
        return _in_folder(path)
    if not path.is_file():
        raise CheckpointError(
            f"no weights at {path}; give a run folder, a file "
            f"({', '.join(ENDINGS)}), a folder with {WEIGHTS}, or hf://owner/name."
        )
    if path.suffix not in ENDINGS:
        raise CheckpointError(
            f"{path} is no file of weights by its name, which must end in {', '.join(ENDINGS)}."
        )
    return [path]


def local_path(where: str | Path) -> Path:
    """Return the one local file that `where` stands for."""
    files = weight_files(where)
    if len(files) > 1:
        raise CheckpointError(f"{where} is {len(files)} files; weights in one file are needed.")
    return files[0]


def sha256(where: str | Path) -> str:
    """Hash the content of the files, one after the other."""
    return files.sha256(*weight_files(where))


def _in_folder(folder: Path) -> list[Path]:
    name = next((name for name in IN_A_FOLDER if (folder / name).is_file()), None)
    if name is None:
        raise CheckpointError(f"{folder} holds no weights: none of {', '.join(IN_A_FOLDER)}.")
    if name != INDEX:
        return [folder / name]
    files = [folder / part for part in _parts(folder / INDEX)]
    missing = [path.name for path in files if not path.is_file()]
    if missing:
        raise CheckpointError(f"{folder / INDEX} names {missing[0]}, which is not there.")
    return files


def _parts(index: Path) -> list[str]:
    """Read what files an index lists; their names are plain, so that none can lead elsewhere."""
    try:
        names = sorted({*json.loads(index.read_text())["weight_map"].values()})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index} is no index of weights ({error!r}).") from error
    wrong = [name for name in names if not re.fullmatch(r"[\w.-]+\.safetensors", str(name))]
    if wrong or not names:
        raise CheckpointError(f"{index} must name .safetensors files beside it, not {wrong[:1]}.")
    return names


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is no whole safetensors file ({error}).") from error


def _read_pickled(path: Path) -> dict[str, Tensor]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of strange pickles, which are refused right after
            content = torch.load(
                path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
            )
    except Exception as error:  # whatever a broken file makes torch's reader stumble over
        raise _unreadable(path, error) from error
    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    if not isinstance(content, dict) or not content:
        raise CheckpointError(f"{path} holds no weights by name, but a {type(content).__name__}.")
    foreign = [
        f"{key!r}: {type(value).__name__}"
        for key, value in content.items()
        if not (isinstance(key, str) and isinstance(value, Tensor))
    ]
    if foreign:
        raise CheckpointError(
            f"{path} holds {len(foreign)} entries that are no weights ({', '.join(foreign[:3])}); "
            f"save its weights alone, as a dictionary of tensors or under the key state_dict."
        )
    return content


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    """Say what to do, and not what torch advises: to unpickle the file after all."""
    try:
        wanted = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # no zip file, or not a whole one
        wanted = []
    if wanted:
        return CheckpointError(
            f"{path} holds more than weights: it asks for {', '.join(wanted[:3])}, and no code is "
            "taken from a file. If you trust whoever wrote it, convert it once: "
            f"python -c \"import torch; w = torch.load('{path}', 'cpu', weights_only=False); "
            "w = w.state_dict() if hasattr(w, 'state_dict') else w.get('state_dict', w); "
            f"torch.save(w, '{path.with_suffix('')}-weights.pt')\""
        )
    return CheckpointError(
        f"{path} is no whole file of PyTorch weights ({type(error).__name__}): it was cut off, was "
        "not written by torch.save (TorchScript is not), or asks for code to be run."
    )


@functools.cache
def _downloaded(hub_id: str) -> Path:
    """Return the file, or the folder of files, of a hub id; from the local cache if it is there."""
    from huggingface_hub import hf_hub_download, snapshot_download

    match = _HUB_ID.fullmatch(hub_id)
    name = match["file"] if match else None
    file = PurePosixPath(name or WEIGHTS)
    if match is None or file.suffix not in ON_THE_HUB or ".." in file.parts:
        raise CheckpointError(
            f"{hub_id} must be hf://owner/name, hf://owner/name@revision or hf://owner/name/file, "
            f"the file one of {', '.join(ON_THE_HUB)}."
        )
    repo, revision = match["repo"], match["revision"]
    try:
        if name:
            return Path(hf_hub_download(repo, name, revision=revision))
        for patterns in _FETCHED_TOGETHER:
            folder = Path(snapshot_download(repo, revision=revision, allow_patterns=patterns))
            if any((folder / file).is_file() for file in IN_A_FOLDER):
                return folder
    except Exception as error:  # its HTTP library's errors are none of ours to list
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"{hub_id} could not be downloaded ({reason}). Check the id, or fetch the file with a "
            "browser and type /path/to/file.safetensors instead."
        ) from error
    raise CheckpointError(
        f"{hub_id} has none of {', '.join(IN_A_FOLDER)}; without a connection, the cache has not."
    )
