"""Self-contained HTML pages: one file each, without scripts and without requests to any network."""

from continual.reports.html.comparison_page import strategies_page
from continual.reports.html.document import Section, Table, page
from continual.reports.html.stream_page import stream_page
from continual.reports.html.write import check_writable, write_page

__all__ = ["Section", "Table", "check_writable", "page", "strategies_page", "stream_page", "write_page"]
