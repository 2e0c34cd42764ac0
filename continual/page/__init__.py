"""Pages to show to others: one HTML file each, which asks nothing of any network and runs no script."""

from continual.page.document import Section, Table, page

__all__ = ["Section", "Table", "page"]
