"""Data sets, in memory: split once, standardised by the training split, checked on the way in."""

import labkit.runtime  # noqa: F401 — first, since it loads torch
from labkit.data.dataset import Dataset as Dataset
from labkit.data.dataset import Split as Split
from labkit.data.loading import load_data as load_data
