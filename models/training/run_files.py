"""Begin or resume a run folder; write and read its checkpoints, its state and its curves."""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from safetensors.torch import save
from torch import Tensor

from models.training.errors import CannotTrain
from models.weights.run_folder import RunFolder


def open_run(path: Path, record: Mapping[str, object], *, resume: bool) -> RunFolder:
    """Begin a run or resume one.

    Args:
        path: folder of the run, made if it is missing.
        record: everything that decides the outcome, such as options and data hashes; written as JSON.
        resume: whether to continue the run in this folder, if there is one.

    Raises:
        CannotTrain: the folder has a run that is not to be resumed or has another record, or cannot be written.
    """
    folder = RunFolder(path)
    wanted = json.loads(json.dumps(record, default=str))
    try:
        if folder.record.is_file():
            if not resume:
                raise CannotTrain(f"{path}: already has a run; continue it with --resume, or choose another folder.")
            _compare(folder.record, wanted)
        else:
            path.mkdir(parents=True, exist_ok=True)
            folder.record.write_text(json.dumps(wanted, indent=1) + "\n", "utf-8")
    except OSError as error:
        raise CannotTrain(f"{error.filename or path}: {error.strerror or error}.") from error
    return folder


def _compare(file: Path, wanted: Mapping[str, object]) -> None:
    try:
        recorded = json.loads(file.read_text("utf-8"))
    except ValueError as error:
        raise CannotTrain(f"{file}: is not valid JSON; start in another folder.") from error
    before, now = _flat(recorded), _flat(wanted)
    changed = [name for name in sorted(before.keys() | now.keys()) if before.get(name) != now.get(name)]
    if changed:
        shown = "; ".join(f"{name} was {before.get(name)!r}, got {now.get(name)!r}" for name in changed[:5])
        raise CannotTrain(f"{file.parent}: the run must be resumed with the same options and data: {shown}.")


def _flat(value: object, name: str = "") -> dict[str, object]:
    if not isinstance(value, dict) or not value:
        return {name: value}
    return {path: leaf for key, each in value.items() for path, leaf in _flat(each, f"{name}.{key}".strip(".")).items()}


def write_weights(file: Path, tensors: Mapping[str, Tensor], *, half: bool, metadata: Mapping[str, str]) -> None:
    """Write a checkpoint.

    Args:
        file: `.safetensors` file, replaced atomically.
        tensors: tensors by name, on any device.
        half: whether to store floating-point tensors as float16.
        metadata: stored in the header as JSON under the one key "pomona": the library writes several keys in no fixed
            order, and equal weights would not have equal hashes.

    Raises:
        CannotTrain: a weight is not finite, or too large for float16.
        OSError: the file cannot be written.
    """
    stored = {name: _stored(name, tensor, half=half) for name, tensor in tensors.items()}
    part = file.with_name(f"{file.name}.part")
    # Not save_file of the library: its files can only be read by their owner.
    part.write_bytes(save(stored, metadata={"pomona": json.dumps(dict(metadata), sort_keys=True)}))
    part.replace(file)


def write_state(file: Path, state: Mapping[str, Any]) -> None:
    """Write the state of a run atomically: tensors, numbers, texts, and lists and mappings of them.

    Raises:
        OSError: the file cannot be written.
    """
    part = file.with_name(f"{file.name}.part")
    with part.open("wb") as out:
        torch.save(dict(state), out)
        out.flush()
        os.fsync(out.fileno())
    part.replace(file)


def read_state(file: Path) -> dict[str, Any]:
    """Read what `write_state` wrote onto the CPU; code in the file is never run.

    Raises:
        CannotTrain: the file is not a state.
    """
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # unpicklers raise all kinds of exceptions
        raise CannotTrain(
            f"{file}: is not the state of a run ({type(error).__name__}); start in another folder."
        ) from error
    if not isinstance(state, dict):
        raise CannotTrain(f"{file}: is not the state of a run; start in another folder.")
    return state


def _stored(name: str, tensor: Tensor, *, half: bool) -> Tensor:
    kept = tensor.detach().to("cpu", torch.float16 if half and tensor.is_floating_point() else None).contiguous()
    if half and tensor.is_floating_point() and not bool(torch.isfinite(kept).all()):
        raise CannotTrain(f"{name}: its weights must be finite in float16; use the float32 checkpoint.")
    return kept


def write_curves(file: Path, rows: Sequence[Mapping[str, float]]) -> None:
    """Write the numbers of all epochs as CSV, atomically.

    Args:
        file: CSV file.
        rows: one row for each epoch, all with the same names.

    Raises:
        OSError: the file cannot be written.
    """
    part = file.with_suffix(".part")
    with part.open("w", newline="", encoding="utf-8") as out:
        writer = csv.DictWriter(out, fieldnames=list(rows[0]) if rows else [])
        writer.writeheader()
        writer.writerows({name: f"{value:.6g}" for name, value in row.items()} for row in rows)
    part.replace(file)


def read_curves(file: Path) -> list[dict[str, float]]:
    """Read what `write_curves` wrote.

    Raises:
        OSError: the file cannot be read.
        ValueError: a value is not a number.
    """
    with file.open(newline="", encoding="utf-8") as content:
        return [{name: float(text) for name, text in row.items()} for row in csv.DictReader(content)]


def plot_curves(file: Path, rows: Sequence[Mapping[str, float]], panels: Mapping[str, Sequence[str]]) -> None:
    """Plot curves over the epochs.

    Args:
        file: PNG file.
        rows: one row for each epoch, with "epoch" among the names.
        panels: names of the curves of each panel, by title; panels without any number are left out.

    Raises:
        OSError: the file cannot be written.
    """
    shown = {title: [name for name in names if _any_number(rows, name)] for title, names in panels.items()}
    shown = {title: names for title, names in shown.items() if names}
    figure = Figure(figsize=(9, 3.2 * max(1, len(shown))), layout="constrained")
    epochs = [row["epoch"] for row in rows]
    for place, (title, names) in enumerate(shown.items(), start=1):
        axes = figure.add_subplot(len(shown), 1, place)
        for name in names:
            axes.plot(epochs, [row.get(name, math.nan) for row in rows], marker=".", label=name)
        axes.set_title(title)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(visible=True, alpha=0.3)
        axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(file, dpi=110)


def _any_number(rows: Sequence[Mapping[str, float]], name: str) -> bool:
    return any(not math.isnan(row.get(name, math.nan)) for row in rows)
