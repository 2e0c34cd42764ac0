"""Drafts of stream files from a look at data files: what each column seems to be, and why."""

from tasks.drafting.document import to_yaml
from tasks.drafting.draft import StreamDraft, TaskDraft, draft_stream

__all__ = ["StreamDraft", "TaskDraft", "draft_stream", "to_yaml"]
