"""Pages to show to others: one HTML file each, which asks nothing of any network and runs no script."""

from continual.page.document import Section, Table, page
from continual.page.strategies import strategies_page
from continual.page.stream import stream_page
from continual.page.written import check_writable, write_page

__all__ = ["Section", "Table", "check_writable", "page", "strategies_page", "stream_page", "write_page"]
