"""Pareto fronts: what nothing dominates."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Generic, TypeVar

import numpy as np

Member = TypeVar("Member")


class Front(Generic[Member]):
    """The members that no other dominates: none is as good on every axis, and better on one.

    Members with equal values do not dominate each other.

    Args:
        directions: `"maximize"` or `"minimize"` for each value.
    """

    def __init__(self, directions: Iterable[str]):
        self._signs = np.array([-1.0 if way == "maximize" else 1.0 for way in directions])
        self._losses = np.empty((0, len(self._signs)))
        self.members: list[Member] = []

    def admits(self, values: Sequence[float]) -> bool:
        """Returns whether no member dominates these values."""
        loss = self._signs * values
        as_good = self._losses[(self._losses <= loss).all(axis=1)]
        return bool((as_good == loss).all())

    def add(self, member: Member, values: Sequence[float]) -> None:
        """Takes a member in, unless one dominates it; those that it dominates leave."""
        if not self.admits(values):
            return
        loss = self._signs * values
        stays = (self._losses < loss).any(axis=1) | (self._losses == loss).all(axis=1)
        self.members = [m for m, stay in zip(self.members, stays) if stay] + [member]
        self._losses = np.vstack([self._losses[stays], loss])
