"""Weights in files: safetensors to write; those and `torch.save`'s state dicts to read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

from labkit.errors import LabkitError


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
    if not path.is_file():
        raise LabkitError(f"load_name: there is no checkpoint {str(path)!r}")
    try:
        if path.suffix == ".safetensors":
            state: Any = safetensors.torch.load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # safetensors and torch raise their own kinds for a bad file
        raise LabkitError(f"load_name: {path} is not a checkpoint of weights: {error}") from error
    if isinstance(state, dict) and "state_dict" in state:
        state = {name.removeprefix("model."): v for name, v in state["state_dict"].items()}
    try:
        model.load_state_dict(state)
    except (RuntimeError, TypeError) as error:
        raise LabkitError(f"load_name: {path} holds another network: {error}") from error
