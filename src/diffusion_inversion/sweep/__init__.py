"""Sweeps: one experiment file, many settings, every stage done once for all that share it (`dinv sweep`)."""

from .plan import SweepPlan, read_plan
from .runner import run_sweep

__all__ = ["SweepPlan", "read_plan", "run_sweep"]
