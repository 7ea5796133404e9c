"""What people read: read-only questions to the manifest, as text, JSON, CSV and HTML."""

from migrate.reports.completeness import report, write_report
from migrate.reports.coverage import coverage, coverage_text
from migrate.reports.dossier import write_dossier
from migrate.reports.status import one_moment, status, status_text, what_is_open

__all__ = ["coverage", "coverage_text", "one_moment", "report", "status", "status_text", "what_is_open", "write_dossier", "write_report"]
