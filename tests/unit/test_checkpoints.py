from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from models.errors import BadCheckpoint
from models.weights.checkpoints import load_state_dict

TENSORS = {"neck.weight": torch.arange(6.0).reshape(2, 3), "neck.bias": torch.ones(2)}


class RunsCode:
    def __reduce__(self) -> tuple[object, ...]:
        return (print, ("the checkpoint ran code",))


def test_a_state_dict_comes_back_from_either_format(tmp_path: Path) -> None:
    torch.save(TENSORS, tmp_path / "a.pt")
    save_file(TENSORS, tmp_path / "a.safetensors")
    for name in ("a.pt", "a.safetensors"):
        state = load_state_dict(tmp_path / name)
        assert set(state) == set(TENSORS)
        assert all(torch.equal(state[key], tensor) for key, tensor in TENSORS.items())


@pytest.mark.parametrize("name", ["a.pt", "a.safetensors"])
@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\x03\x04", None])
def test_a_file_that_is_no_checkpoint_is_rejected(tmp_path: Path, name: str, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(BadCheckpoint, match=rf"{name} must be a \.safetensors file"):
        load_state_dict(tmp_path / name)


def test_a_checkpoint_that_would_run_code_is_rejected_and_runs_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"a": RunsCode()}, tmp_path / "a.pt")
    with pytest.raises(BadCheckpoint, match=r"must be a \.safetensors file"):
        load_state_dict(tmp_path / "a.pt")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"model": TENSORS, "epoch": 3}, "'model' must be a tensor, got a dict"),
        ([torch.ones(1)], "must hold a state dict, got a list"),
        ({}, "must hold a state dict, got nothing"),
    ],
)
def test_anything_but_named_tensors_is_rejected_with_what_to_save(tmp_path: Path, content: object, words: str) -> None:
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(BadCheckpoint, match=words) as caught:
        load_state_dict(tmp_path / "a.pt")
    assert "save model.state_dict() alone" in caught.value.detail
