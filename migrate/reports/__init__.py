"""What people read: read-only questions to the manifest, as text, JSON, CSV and HTML."""

from migrate.reports.completeness import report, write_report
from migrate.reports.status import status, status_text

__all__ = ["report", "status", "status_text", "write_report"]
