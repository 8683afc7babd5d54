"""A run's report: before and after, in numbers, curves and pictures, on one page."""

from deploy.report.write import write_report

__all__ = ["write_report"]
