"""Weights from files: which are read, and what is said of the others."""

import os
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from labkit.errors import LabkitError
from labkit.study.checkpoint import load_weights


@pytest.mark.parametrize("kind", ["safetensors", "pt", "lightning"])
def test_weights_are_read_as_they_were_written(tmp_path: Path, kind: str) -> None:
    written, read = nn.Linear(3, 2), nn.Linear(3, 2)
    path = tmp_path / f"weights.{kind}"
    state = written.state_dict()
    if kind == "safetensors":
        safetensors.torch.save_file(state, path)
    elif kind == "lightning":
        torch.save({"state_dict": {f"model.{k}": v for k, v in state.items()}}, path)
    else:
        torch.save(state, path)
    load_weights(read, path)
    assert torch.equal(read.weight, written.weight)
    assert torch.equal(read.bias, written.bias)


def test_other_files_are_refused(tmp_path: Path) -> None:
    model = nn.Linear(3, 2)
    with pytest.raises(LabkitError, match=r"load_name: there is no file '.*none\.pt'"):
        load_weights(model, tmp_path / "none.pt")
    with pytest.raises(LabkitError, match="there is no file"):
        load_weights(model, tmp_path)
    for name in ("bad.pt", "bad.safetensors"):
        (tmp_path / name).write_bytes(b"no weights")
        with pytest.raises(LabkitError, match="is not a checkpoint of weights: "):
            load_weights(model, tmp_path / name)
    for other in (nn.Linear(3, 4).state_dict(), torch.zeros(3)):
        torch.save(other, tmp_path / "other.pt")
        with pytest.raises(LabkitError, match=r"other\.pt holds another network: "):
            load_weights(model, tmp_path / "other.pt")


def test_what_a_checkpoint_may_not_be(tmp_path: Path) -> None:
    model = nn.Linear(3, 2)
    for strange in ({"state_dict": "x" * 10_000}, {"state_dict": {1: 2}}, {1: 2}, None):
        torch.save(strange, tmp_path / "strange.pt")
        with pytest.raises(LabkitError, match="load_name: "):
            load_weights(model, tmp_path / "strange.pt")
    os.truncate(tmp_path / "strange.pt", 12 * 10**12)
    with pytest.raises(LabkitError, match=r"strange\.pt' takes 12,000\.0 GB"):
        load_weights(model, tmp_path / "strange.pt")
