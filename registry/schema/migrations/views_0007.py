"""The views of revision 0007, where a stream may lack a backbone; not edited after release."""

from registry.schema.migrations.views_0003 import views as views_0003


def views(dialect: str) -> dict[str, str]:
    """Return each view's SELECT by its name."""
    previous = views_0003(dialect)
    progress = previous["stream_progress"]
    progress = progress.replace("JOIN backbones b", "LEFT JOIN backbones b", 1)
    progress = progress.replace(
        "AS failed,", "AS failed,\n                COUNT(CASE p.state WHEN 'cancelled' THEN 1 END) AS cancelled,", 1
    )
    return previous | {"stream_progress": progress}
