"""Describe a delta in Markdown: how it was learned, its scores and its lineage, without a text of its rows."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from continual.escaping import escape_control_characters
from continual.file_metadata import read_metadata
from registry import Registry, StoredDelta
from registry.errors import BlobError

MARKUP = str.maketrans({character: f"\\{character}" for character in "\\`*_[]<>|#~"} | {"\n": " ", "\t": " "})
MAX_LABELS = 50
STATES = {  # by pooling
    "mean": "the mean of the tokens' states",
    "cls": "the first token's state",
    "last": "the last token's state",
}


def delta_markdown(registry: Registry, name: str) -> str:
    """Return three tables: the facts of a delta, its scores and its parents.

    Raises:
        NotFound: The delta is not registered.
    """
    delta = registry.delta(name)
    parts = [_table(("", ""), _facts(registry, delta))]
    if scores := [score for score in registry.scores(delta=name) if not score.stream and score.mode == "oracle"]:
        rows = [(s.split, s.metric, f"{s.value:.4f}", _interval(s.low, s.high), s.rows) for s in scores]
        parts.append(_section("Scores", _table(("split", "metric", "value", "95 % interval", "rows"), rows)))
    if edges := registry.lineage(name):
        links = [(edge["delta"], edge["parent"], edge["kind"], f"{edge['weight']:.3g}") for edge in edges]
        parts.append(_section("Lineage", _table(("delta", "parent", "kind", "weight"), links)))
    return "\n".join(parts)


def escape_markdown(text: str) -> str:
    r"""Escape what Markdown or a terminal would act on.

    >>> escape_markdown("a|b <i>")
    'a\\|b \\<i\\>'
    """
    return escape_control_characters(text).translate(MARKUP)


def _facts(registry: Registry, delta: StoredDelta) -> Iterable[tuple[str, object]]:
    backbone = registry.backbone(delta.backbone)
    yield "delta", delta.name
    yield "task", delta.task
    yield "kind", delta.kind
    yield "metric", delta.metric
    if delta.labels:
        more = len(delta.labels) - MAX_LABELS
        yield "labels", ", ".join(delta.labels[:MAX_LABELS]) + (f" and {more} more" if more > 0 else "")
    yield "backbone", f"{backbone.name} ({backbone.fingerprint[:12]})"
    yield "method", delta.method
    if readout := _readout(registry, delta):
        yield "head reads", readout
    yield "parameters", f"{delta.parameters:,} ({delta.share:.3%} of the backbone)"
    yield "warm start", delta.warm_start
    yield "status", delta.status
    yield "created", delta.created_at.isoformat(timespec="seconds")
    yield "learned in", f"{delta.seconds:.1f} s, seed {delta.seed}"
    if delta.data:
        for split, digest in delta.data.fingerprints.items():
            yield f"{split} data", f"{delta.data.rows.get(split, 0):,} rows, SHA-256 {digest}"
    yield "digest of the values", delta.digest or "purged"


def _readout(registry: Registry, delta: StoredDelta) -> str | None:
    """Say what a delta's head reads, or why that cannot be read; None without a head, and of a purged delta."""
    if delta.digest is None:
        return None
    try:
        metadata = read_metadata(registry.blobs.get(delta.digest))
    except (BlobError, ValueError) as error:
        return f"unknown: {error}"
    return _describe_readout(metadata) if "pooling" in metadata else None


def _describe_readout(metadata: Mapping[str, Any]) -> str:
    """Describe where a head reads, by the metadata of its delta's file.

    >>> _describe_readout({"pooling": "last", "layers": 15})
    "the last token's state behind 15 layers"
    """
    layers = f"{metadata['layers']} layers" if metadata.get("layers") else "all layers"
    return f"{STATES[metadata['pooling']]} behind {layers}"


def _interval(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"{low:.4f} to {high:.4f}"


def _section(title: str, content: str) -> str:
    return f"## {title}\n\n{content}"


def _table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [header, ["---"] * len(header), *([escape_markdown(str(cell)) for cell in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
