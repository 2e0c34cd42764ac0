"""The model card of an exported folder, README.md: what is in it, and how it is loaded."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from continual.backbones.backbone import Backbone
from continual.backbones.hub import hub_name
from continual.deltas import Head
from continual.exchange.base_identity import HUB_ID
from continual.exchange.engine_adapter import EngineAdapter
from continual.exchange.peft import base_source
from continual.kinds import Kind
from continual.kinds.generation import Generation
from continual.kinds.pooled_kind import PooledKind
from continual.reports.delta_markdown import delta_markdown, escape_markdown
from registry import Registry
from tasks import Message, messages_of

CARD = "README.md"
CHAT_TEMPLATE = "chat_template.jinja"  # the name that transformers and vLLM know
_AUTO_CLASSES = {
    "encoder": "AutoModelForMaskedLM",
    "causal": "AutoModelForCausalLM",
    "seq2seq": "AutoModelForSeq2SeqLM",
}
_TEMPLATES = Environment(
    loader=PackageLoader("continual.exchange"), undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True
)


@dataclass(frozen=True, kw_only=True)
class Usage:
    """How the folder is loaded.

    Attributes:
        is_adapter: Whether it is a PEFT adapter for the backbone, not a whole model.
        is_pipeline: Whether a pipeline of transformers answers with it.
        layers: Number of the encoder's layers, where a classifier has one more; else None.
        obstacle: Why no pipeline answers with a whole model; None where one does.
        engine: The serving engine that the folder is for, if any.
        command: The command that starts the engine.
        adapter: What was converted for the engine.
    """

    is_adapter: bool = False
    is_pipeline: bool = False
    layers: int | None = None
    obstacle: str | None = None
    engine: str | None = None
    command: str | None = None
    adapter: EngineAdapter | None = None


def write_model_card(
    folder: Path, registry: Registry, name: str, *, backbone: Backbone, kind: Kind[Any], head: Head | None, usage: Usage
) -> None:
    """Write the card of a delta, which holds none of the task's texts.

    Args:
        folder: The exported folder.
        registry: Where the delta is registered.
        name: The delta.
        backbone: Its backbone.
        kind: Its kind.
        head: Its head.
        usage: How the folder is loaded.
    """
    delta = registry.delta(name)
    card = _TEMPLATES.get_template("model_card.md").render(
        front_matter=_front_matter(backbone, usage),
        title=escape_markdown(name),
        facts=delta_markdown(registry, name),
        source=_source(backbone, usage),
        auto_class=_auto_class(backbone, head, usage),
        is_seq2seq=backbone.architecture == "seq2seq",
        is_pooled=isinstance(kind, PooledKind),
        head=head,
        kind=delta.kind,
        max_length=delta.budget["max_length"],
        messages=_example_messages(kind),
        max_new_tokens=kind.longest if isinstance(kind, Generation) else None,
        template=CHAT_TEMPLATE if chat_template(kind) else None,
        **vars(usage),
    )
    (folder / CARD).write_text(card, encoding="utf-8")


def chat_template(kind: Kind[Any]) -> str | None:
    """Return the chat template that a delta's prompts are written in, if any."""
    return kind.prompt.template if isinstance(kind, Generation) and kind.prompt else None


def _example_messages(kind: Kind[Any]) -> tuple[Message, ...]:
    """Return the messages of an example prompt; none where a prompt is the text as it is."""
    prompt = kind.prompt if isinstance(kind, Generation) else None
    if prompt is None or not (prompt.template or prompt.system or prompt.instruction):
        return ()
    return prompt.with_context(messages_of("a text"))


def _source(backbone: Backbone, usage: Usage) -> str:
    """Return what is loaded, before an adapter is put on it."""
    if usage.engine:
        return base_source(backbone)
    return hub_name(backbone.name) if usage.is_adapter else "DIR"


def _auto_class(backbone: Backbone, head: Head | None, usage: Usage) -> str:
    if usage.adapter and usage.adapter.labels:
        return "AutoModelForSequenceClassification"
    return "AutoModel" if head else _AUTO_CLASSES[backbone.architecture]


def _front_matter(backbone: Backbone, usage: Usage) -> dict[str, Any]:
    """Return what the hub reads; the base model where it is one of the hub's."""
    front: dict[str, Any] = {"library_name": "peft" if usage.is_adapter else "transformers"}
    front["tags"] = ["continual-deltas"]
    if usage.is_pipeline:
        front["pipeline_tag"] = "text-classification"
    base = hub_name(backbone.name)
    if HUB_ID.fullmatch(base) and not Path(base).exists():
        front["base_model"] = base
    return front
