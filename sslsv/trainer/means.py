"""Means of what the steps of an epoch give."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sslsv import distributed

Value = Tensor | float


class EpochMeans:
    """Sums so far, of this process; without waiting for the device."""

    def __init__(self) -> None:
        self.steps = 0
        self.sums: dict[str, Value] = {}
        self.counts: dict[str, int] = {}  # of steps that gave a metric
        self.found: dict[str, float] = {}  # what the epoch's start gave

    def add(self, metrics: Mapping[str, Value]) -> None:
        self.steps += 1
        for name, value in metrics.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
            self.counts[name] = self.counts.get(name, 0) + 1

    def own(self, name: str) -> float:
        """Mean of a metric over this process's steps. Waits for the device."""
        return float(self.sums[name]) / self.counts[name]

    def over_processes(self, device: torch.device) -> dict[str, float]:
        """Means over steps and processes, and what the epoch's start gave."""
        means = {
            name: torch.as_tensor(total, dtype=torch.float64, device=device) / self.counts[name]
            for name, total in self.sums.items()
        }
        return {name: float(distributed.reduce_mean(x)) for name, x in means.items()} | self.found

    def state_dict(self) -> dict[str, Any]:
        sums = {k: v.cpu() if isinstance(v, Tensor) else v for k, v in self.sums.items()}
        return {"steps": self.steps, "sums": sums, "counts": self.counts, "found": self.found}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        self.steps, self.counts, self.found = state["steps"], state["counts"], state["found"]
        self.sums = {
            k: v.to(device) if isinstance(v, Tensor) else v for k, v in state["sums"].items()
        }

    @staticmethod
    def mean(states: list[dict[str, Any]]) -> dict[str, Any]:
        """Of the states of several processes, one for each of another number of them."""
        names = states[0]["sums"]
        sums = {name: sum(state["sums"][name] for state in states) / len(states) for name in names}
        return {**states[0], "sums": sums}
