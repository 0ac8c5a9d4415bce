"""The report of a run: one HTML file that shows the verdict, the images behind it and how it was made."""

from .confusion import confusion_matrices, most_confused, per_class_accuracy
from .curves import Point, accuracy_curve, metric_curves
from .figures import ReportImages, png
from .html import render_report
from .record import RunRecord

__all__ = [
    "Point",
    "ReportImages",
    "RunRecord",
    "accuracy_curve",
    "confusion_matrices",
    "metric_curves",
    "most_confused",
    "per_class_accuracy",
    "png",
    "render_report",
]
