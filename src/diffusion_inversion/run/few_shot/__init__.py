"""`dinv few-shot`: learners on the frozen features of a CLIP, with and without synthetic images."""

from .outcome import FewShotResult
from .stage import run_few_shot

__all__ = ["FewShotResult", "run_few_shot"]
