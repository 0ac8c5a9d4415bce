"""The report of a run: one HTML file that shows the verdict, the images behind it and how it was made."""

from .figures import ReportImages
from .html import render_report
from .record import RunRecord

__all__ = ["ReportImages", "RunRecord", "render_report"]
