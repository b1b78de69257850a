"""Find how wide each layer of a small neural network should be."""

import labkit.runtime  # noqa: F401  # isort: skip  # first: it loads torch

from labkit.data.dataset import Dataset, load_data
from labkit.errors import LabkitError
from labkit.show.serving import dashboard
from labkit.study.results import Results, load_best
from labkit.study.search import Search, search
from labkit.transform.models import get_model
from labkit.transform.passes import (
    channel_multiplier_transform_pass,
    linear_multiplier_transform_pass,
)

__all__ = [
    "Dataset",
    "LabkitError",
    "Results",
    "Search",
    "channel_multiplier_transform_pass",
    "dashboard",
    "get_model",
    "linear_multiplier_transform_pass",
    "load_best",
    "load_data",
    "search",
]
