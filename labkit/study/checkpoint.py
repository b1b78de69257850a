"""Weights in files: safetensors to write; those and `torch.save`'s state dicts to read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

from labkit.checks import readable
from labkit.errors import in_words


def load_weights(model: nn.Module, path: Path) -> None:
    """Loads a checkpoint into a network, without unpickling objects.

    Args:
        model: The network, changed in place.
        path: A `.safetensors` file; or a file of `torch.save` that holds a state dict, or one
            under the key `state_dict` with names that may begin with `model.`, as Lightning
            writes it.

    Raises:
        LabkitError: There is no such file, it holds something else, or another network.
    """
    readable("load_name", path)
    with in_words(f"load_name: {path} is not a checkpoint of weights"):
        if path.suffix == ".safetensors":
            state: Any = safetensors.torch.load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
        if isinstance(state, dict) and "state_dict" in state:
            state = {name.removeprefix("model."): v for name, v in state["state_dict"].items()}
    with in_words(f"load_name: {path} holds another network"):
        model.load_state_dict(state)
