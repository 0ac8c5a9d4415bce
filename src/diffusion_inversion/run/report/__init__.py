"""The report of a run: one HTML file that shows the verdict, the images behind it and how it was made."""

from .confusion import most_confused
from .curves import Point, accuracy_curve, metric_curves
from .figures import png
from .html import render_report
from .pictures import Nearest, ReportImages
from .record import RunRecord

__all__ = [
    "Nearest",
    "Point",
    "ReportImages",
    "RunRecord",
    "accuracy_curve",
    "metric_curves",
    "most_confused",
    "png",
    "render_report",
]
