"""Write many answers at once: rows join and leave the batch at every token, each through its own delta.

Yu et al. (2022), "Orca: A Distributed Serving System for Transformer-Based Generative Models", OSDI, call it
iteration-level scheduling. A row whose turn has to be taken back, since memory ends, is read again with what it has
written, so that its text does not change.

Shapes: B rows, V vocabulary.
"""

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from continual.backbones.backbone import Backbone
from continual.deltas import Delta, MixedBatch, attached
from continual.errors import GenerationError
from continual.generation.json_grammar import JsonGrammar
from continual.generation.key_values import KeyValues, join
from continual.generation.passes import end_tokens, read_on, read_prompts, write_tokens
from continual.generation.prefix_cache import PrefixCache
from continual.generation.prompts import EngineLimits, Generated, Progress, Prompt
from continual.generation.sampling import Ids, TokenLogProbs, TokenSampler, choose_tokens, token_log_probs
from continual.generation.text_stream import TextStream

BatchBuilder = Callable[[Sequence[str]], tuple[Sequence[int], Delta | MixedBatch | None]]
"""From the deltas' names of a batch's rows to the order of the rows and what to attach for rows in that order.

Rows that the order leaves out are not written.
"""

MAX_READS = 2  # steps in a row that read prompts while answers wait
DEAD_SHARE = 4  # a batch is rid of finished rows when they are more than one in so many


@dataclass(eq=False)
class _Row:
    """A prompt with what is written of its answer."""

    key: Hashable
    prompt: Prompt
    sampler: TokenSampler
    stream: TextStream | None
    written: list[int] = field(default_factory=list)
    log_probs: list[TokenLogProbs] = field(default_factory=list)
    reported: int = 0  # of the log probabilities
    is_done: bool = False
    part: KeyValues | None = None  # the cache of the part of a long prompt that has been read

    @property
    def ids(self) -> Ids:
        """Tokens of the prompt and of the answer so far."""
        return *self.prompt.ids, *self.written

    @property
    def tokens(self) -> int:
        """Columns that the row takes, about: an encoder-decoder's has its prompt in another cache."""
        return self.prompt.soft_tokens + len(self.prompt.ids) + len(self.written)

    @property
    def group(self) -> str:
        """Rows of one group share a batch."""
        return self.prompt.delta if self.prompt.alone else ""

    def append(self, token: int, log_probs: TokenLogProbs | None, *, ends: frozenset[int]) -> Progress | None:
        """Take the next token; return the progress where there is any to tell."""
        self.written.append(token)
        if log_probs is not None:
            self.log_probs.append(log_probs)
        text = self.stream.add(token) if self.stream else ""
        stops = token in ends or token in self.prompt.ends or (self.stream is not None and self.stream.stopped)
        self.is_done = stops or len(self.written) >= self.prompt.sampling.max_new_tokens
        if not (self.is_done or text):
            return None
        recent = tuple(self.log_probs[self.reported :]) if self.prompt.text else ()
        self.reported = len(self.log_probs)
        if not self.is_done:
            return Progress(self.key, text, recent)
        text += self.stream.finish() if self.stream else ""
        generated = Generated(tuple(self.written), "stop" if stops else "length", tuple(self.log_probs))
        return Progress(self.key, text, recent, generated)


@dataclass(eq=False)
class _Batch:
    """Rows that are written together; finished ones stay for a while, since leaving copies the cache."""

    rows: list[_Row]
    key_values: KeyValues
    hooks: ExitStack | None = None

    @property
    def alive(self) -> list[int]:
        """Indices of the rows that are not finished."""
        return [index for index, row in enumerate(self.rows) if not row.is_done]

    @property
    def alive_rows(self) -> list[_Row]:
        """The rows that are not finished."""
        return [row for row in self.rows if not row.is_done]

    @property
    def is_outdated(self) -> bool:
        """Whether its deltas are not attached, or many of its rows are finished."""
        return self.hooks is None or (len(self.rows) - len(self.alive)) * DEAD_SHARE > len(self.rows)

    @property
    def tokens(self) -> int:
        """Columns of the cache, of all rows together."""
        return len(self.rows) * (self.key_values.width + self.key_values.encoded_width)

    def detach(self) -> None:
        """Undo the hooks."""
        if self.hooks is not None:
            self.hooks.close()
            self.hooks = None


class Engine:
    """Writes the answers to prompts, one token of every row at each step.

    Between two steps the backbone may be used for other passes after `pause`. One thread at a time may use an engine.

    Args:
        backbone: A backbone that writes text.
        build_batch: Returns what to attach for the rows of a batch. What it returned is used until it is called again,
            or until `pause`.
        limits: Bounds on what the engine holds.
    """

    def __init__(self, backbone: Backbone, build_batch: BatchBuilder, *, limits: EngineLimits | None = None) -> None:
        self._backbone, self._build_batch = replace(backbone, generates=True), build_batch
        self._limits = limits or EngineLimits()
        self._max_rows = self._limits.rows  # fewer after memory ended
        self._ends = end_tokens(backbone)
        self._waiting: deque[_Row] = deque()
        self._batches: dict[str, _Batch] = {}
        self._progress: list[Progress] = []
        self._prefixes = PrefixCache()
        self._reads = 0  # steps that read, since the last one that wrote

    def __len__(self) -> int:
        """Return the number of rows that wait or are written."""
        return len(self._waiting) + self.active

    @property
    def active(self) -> int:
        """Number of rows that are written."""
        return sum(len(batch.alive) for batch in self._batches.values())

    @property
    def has_room(self) -> bool:
        """Whether a row that were added now would be read in the next step, as far as the number of rows goes."""
        return len(self) < self._max_rows

    def add(self, key: Hashable, prompt: Prompt) -> None:
        """Let a prompt wait for its turn.

        Args:
            key: Names the row in `Progress` and for `cancel`.
            prompt: The prompt.

        Raises:
            InputError: Its JSON schema cannot be followed.
        """
        sampling = prompt.sampling
        needs_text = prompt.text or sampling.stop
        stream = TextStream(self._backbone.tokenizer, stop=sampling.stop, strip=prompt.strip)
        schema = sampling.json_schema
        allow = None if schema is None else JsonGrammar(self._backbone, schema).allow
        sampler = TokenSampler(sampling, prompt.ids, allow)
        self._waiting.append(_Row(key, prompt, sampler, stream if needs_text else None))

    def cancel(self, keys: Iterable[Hashable]) -> None:
        """Drop rows; unknown keys are ignored."""
        cancelled = {*keys}
        if not cancelled:
            return
        self._waiting = deque(row for row in self._waiting if row.key not in cancelled)
        for batch in self._batches.values():
            for row in batch.rows:
                row.is_done = row.is_done or row.key in cancelled

    def pause(self) -> None:
        """Undo all changes of the backbone until the next step."""
        for batch in self._batches.values():
            batch.detach()

    @torch.inference_mode()
    def step(self) -> list[Progress]:
        """Read prompts that can join, or else write one token of every row.

        Prompts come first, so that first tokens do not wait, but in no more than MAX_READS steps in a row.
        """
        self._progress = []
        if self._reads < MAX_READS and self._read_waiting():
            self._reads += 1
        else:
            self._reads = 0
            for group in [*self._batches]:
                self._write(group)
        for group, batch in [*self._batches.items()]:
            if not batch.alive:
                batch.detach()
                del self._batches[group]
        if not len(self):
            self._max_rows = self._limits.rows
        return self._progress

    def _read_waiting(self) -> bool:
        """Read the prompts that can join; return whether there are any."""
        rows = self._next_rows()
        if rows:
            try:
                self._read(rows)
            except torch.OutOfMemoryError as error:
                self._retreat(rows, error)
        return bool(rows)

    def _next_rows(self) -> list[_Row]:
        """Take the waiting rows that are read in this step: of one group, within the limits."""
        if not self._waiting or self._max_rows - self.active < min(self._limits.min_joining, len(self._waiting)):
            return []
        group, is_cached = self._waiting[0].group, self._cached_length(self._waiting[0]) > 0
        rows, skipped = list[_Row](), 0
        for row in self._waiting:
            if row.group != group or (self._cached_length(row) > 0) != is_cached:
                skipped += 1
            elif self._fits([*rows, row]):
                rows.append(row)
            else:
                break
            if skipped == self._limits.rows:
                break
        self._waiting = deque(row for row in self._waiting if row not in rows)
        return rows

    def _fits(self, joining: Sequence[_Row]) -> bool:
        """Return whether rows of one group can be read together and join their batch now."""
        width = max(row.tokens for row in joining) + max(row.prompt.soft_tokens for row in joining)
        positions = self._backbone.longest_input + self._backbone.reserved_tokens
        if len(joining) > 1 and (len(joining) * width > self._limits.read_tokens or width > positions):
            return False
        batch = self._batches.get(joining[0].group)
        rows = [*joining, *(batch.alive_rows if batch else ())]
        tokens = len(rows) * (max(row.tokens for row in rows) + 1)
        other_tokens = self._tokens_beside(batch, joining)
        return self.active + len(joining) <= 1 or (
            self.active + len(joining) <= self._max_rows
            and tokens + other_tokens <= self._limits.tokens
            and len({row.prompt.delta for row in rows}) <= self._limits.deltas
        )

    def _read(self, rows: list[_Row]) -> None:
        """Read the prompts of rows, choose their first tokens, and let them join the batch of their group.

        Of a prompt that is longer than what is read in one step, which comes alone, only the next part is read.
        """
        self.pause()  # deltas that join may take the place of others on the device
        order, edits = self._build_batch([row.prompt.delta for row in rows])
        self._leave_out(rows, order)
        rows = [rows[index] for index in order]
        if not rows:
            return
        cached = [self._cached_length(row) for row in rows]
        with attached(self._backbone, edits, continued=any(cached)):
            logits, key_values = self._read_on(rows, cached) if any(cached) else self._read_beginnings(rows)
        is_part = self._is_causal and cached[0] + self._limits.read_tokens < len(rows[0].ids)
        for index, row in enumerate(rows):
            row.part, prompt = key_values if is_part else None, row.prompt
            if self._is_causal and not is_part:
                self._prefixes.update(prompt.delta, prompt.ids, key_values, index, soft_tokens=prompt.soft_tokens)
        if is_part:
            self._waiting.insert(1, rows[0])  # the next one's first token does not wait for all parts
            return
        self._append(rows, logits)
        group, new = rows[0].group, _Batch(rows, key_values)
        self._arrange(group, [self._batches[group], new] if group in self._batches else [new])

    @property
    def _is_causal(self) -> bool:
        return self._backbone.architecture == "causal"

    def _cached_length(self, row: _Row) -> int:
        """Return how many tokens of a row have been read: of itself, or of a prompt with the same beginning."""
        if row.part is not None:
            return row.part.width - row.prompt.soft_tokens
        return self._prefixes.shared_length(row.prompt.delta, row.prompt.ids) if self._is_causal else 0

    def _read_beginnings(self, rows: Sequence[_Row]) -> tuple[Tensor, KeyValues]:
        soft_tokens = [row.prompt.soft_tokens for row in rows]
        if self._is_causal:
            texts = [row.ids[: self._limits.read_tokens] for row in rows]
            return read_prompts(self._backbone, texts, [()] * len(rows), soft_tokens)
        prompts, written = [row.prompt.ids for row in rows], [tuple(row.written) for row in rows]
        return read_prompts(self._backbone, prompts, written, soft_tokens)

    def _read_on(self, rows: Sequence[_Row], cached: Sequence[int]) -> tuple[Tensor, KeyValues]:
        """Read on where so many tokens of each row have been read."""
        ends = [length + self._limits.read_tokens for length in cached]
        texts = [row.ids[length:end] for row, length, end in zip(rows, cached, ends, strict=True)]
        parts = [
            row.part or self._prefixes.take(row.prompt.delta, length) for row, length in zip(rows, cached, strict=True)
        ]
        return read_on(self._backbone, texts, join([(part, [0]) for part in parts], range(len(rows))))

    def _arrange(self, group: str, parts: Sequence[_Batch]) -> None:
        """Make the unfinished rows of some batches the one batch of their group, with their deltas attached."""
        self.pause()  # one batch at a time has its deltas attached
        rows = [row for part in parts for row in part.alive_rows]
        order, edits = self._build_batch([row.prompt.delta for row in rows]) if rows else ([], None)
        self._leave_out(rows, order)
        if not order:
            self._batches.pop(group, None)
            return
        if len(parts) == 1 and [*order] == [*range(len(parts[0].rows))]:
            batch = parts[0]
        else:
            batch = _Batch(
                [rows[index] for index in order], join([(part.key_values, part.alive) for part in parts], order)
            )
        self._batches[group] = batch
        batch.hooks = ExitStack()
        batch.hooks.enter_context(attached(self._backbone, edits, continued=True))

    def _write(self, group: str) -> None:
        """Write one token of every row of a batch."""
        batch = self._batches[group]
        try:
            if batch.is_outdated or self._take_back(batch):
                self._arrange(group, [batch])
            if group in self._batches:
                batch = self._batches[group]
                batch.key_values.forget(index for index, row in enumerate(batch.rows) if row.is_done)
                tokens = [row.written[-1] for row in batch.rows]
                self._append(batch.rows, write_tokens(self._backbone, tokens, batch.key_values))
        except torch.OutOfMemoryError as error:
            batch.detach()
            self._batches.pop(group, None)
            self._retreat(batch.alive_rows, error)

    def _take_back(self, batch: _Batch) -> bool:
        """Let the last rows wait again where one more token of each would exceed the limit; return whether any do."""
        alive = batch.alive_rows
        column = batch.tokens // len(batch.rows) + 1
        count = max((self._limits.tokens - self._tokens_beside(batch)) // column, 1)
        leaving = alive[count:]
        self._waiting.extendleft(reversed(leaving))
        batch.rows = [replace(row, is_done=True) if row in leaving else row for row in batch.rows]
        return bool(leaving)

    def _tokens_beside(self, batch: _Batch | None, joining: Sequence[_Row] = ()) -> int:
        """Return the columns of the batches but one, and of what has been read of prompts that do not join now."""
        batches = sum(candidate.tokens for candidate in self._batches.values() if candidate is not batch)
        return batches + sum(row.part.width for row in self._waiting if row.part is not None and row not in joining)

    def _append(self, rows: Sequence[_Row], logits: Tensor) -> None:
        """Append the next token to the rows that are not finished."""
        alive = [index for index, row in enumerate(rows) if not row.is_done]
        logits, rows = (logits[alive], [rows[index] for index in alive]) if len(alive) < len(rows) else (logits, rows)
        tokens = choose_tokens(logits, [row.sampler for row in rows], [row.written for row in rows])
        log_probs = token_log_probs(logits, tokens, [row.prompt.sampling.log_probs for row in rows])
        for row, token, log_prob in zip(rows, tokens, log_probs, strict=True):
            if progress := row.append(token, log_prob, ends=self._ends):
                self._progress.append(progress)

    def _leave_out(self, rows: Sequence[_Row], order: Sequence[int]) -> None:
        """Report the rows that an order leaves out."""
        error = GenerationError("the delta of the row cannot be used")
        for index in sorted({*range(len(rows))} - {*order}):
            self._progress.append(Progress(rows[index].key, error=error, is_left_out=True))

    def _retreat(self, rows: Sequence[_Row], error: Exception) -> None:
        """Let unfinished rows wait again after memory ended, and write fewer at once; a row alone fails."""
        self._prefixes = PrefixCache()
        rows = [row for row in rows if not row.is_done]
        for row in (*rows, *self._waiting):
            row.part = None
        active = self.active + len(rows)
        if active == len(rows) == 1:
            reason = f"memory ends with one row of {rows[0].tokens} tokens ({str(error).splitlines()[0]})"
            failure = GenerationError(f"{reason}; send a shorter one, or allow fewer tokens")
            self._progress.append(Progress(rows[0].key, error=failure))
            return
        self._max_rows = max(min(self._max_rows, active) // 2, 1)
        self._waiting.extendleft(reversed(rows))
