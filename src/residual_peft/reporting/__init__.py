"""Results -> tables and a page to show; reads results, never models."""

from .html import report_html, write_report
from .tables import HEADERS, markdown_table, readable_bytes, table_cells

__all__ = [
    "HEADERS",
    "bench",
    "components",
    "contact_sheet",
    "figures",
    "markdown_table",
    "readable_bytes",
    "report_html",
    "run_record",
    "table_cells",
    "write_report",
]
