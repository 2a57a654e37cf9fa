"""Dropout rates compared: the same network trained with several, seed by seed."""

from mcdrop.sweep.sweeping import LEAST_SEEDS, TASKS, Factory, Plan, sweep

__all__ = ["LEAST_SEEDS", "TASKS", "Factory", "Plan", "sweep"]
