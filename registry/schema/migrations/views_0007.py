"""The views of revision 0007: a stream may be open, without a backbone of its own; not edited after its release."""

from registry.schema.migrations.views_0003 import views as views_0003


def views(dialect: str) -> dict[str, str]:
    """What each view selects, by its name."""
    before = views_0003(dialect)
    progress = before["stream_progress"]
    progress = progress.replace("JOIN backbones b", "LEFT JOIN backbones b", 1)
    progress = progress.replace(
        "AS failed,", "AS failed,\n                COUNT(CASE p.state WHEN 'cancelled' THEN 1 END) AS cancelled,", 1
    )
    return before | {"stream_progress": progress}
