"""Training speed of our loop relative to PEFT's LoRA under transformers' Trainer.

    python -m tests.benchmarks.speed STREAM.yaml [--task sst2] [--rows 640] [--repeats 7]
    python -m tests.benchmarks.speed STREAM.yaml --backbone smollm2 --task e2e --rows 64 --repeats 3 [--dtype float32]

Both use the same rows, batch size, length, precision and type of weights. One epoch each, in turn, in one process,
after a warm-up round of both; the ratio is the median over rounds. Both train LoRA of rank 8 on query and value. Our
loop sorts rows by length before batching, so they are padded less; the Trainer pads each batch to its longest row, as
its default collator does. Of a generation task both learn the target's tokens alone. `peak_mib` is the most memory of
an epoch, of ours with its validation, over what the process held before, the model's weights among it.
"""

import argparse
import json
import os
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch.utils.data import Dataset
from transformers import (
    AutoModelForCausalLM,
    DataCollatorForSeq2Seq,
    DataCollatorWithPadding,
    PrinterCallback,
    Trainer,
    TrainingArguments,
)
from transformers.utils import logging as transformers_logging

from continual.backbones.backbone import Backbone, load_backbone
from continual.backbones.hub import resolve_source
from continual.deltas import METHODS
from continual.kinds import ForwardContext
from continual.kinds.classification import ClassificationRows
from continual.kinds.generation import GenerationRows
from continual.learning.prepared import PreparedTask, prepare_task
from continual.training.training_run import train
from continual.transfer.warm_start import from_scratch, initial_delta
from tasks import load_task, read_stream
from tests.benchmarks.baselines import RANK, peft_lora
from tests.benchmarks.peak_memory import with_peak

Epoch = Callable[[], tuple[float, float, float]]
"""Trains one epoch; returns seconds, the mean loss, and the peak of memory in MiB."""


class _Rows(Dataset[dict[str, Any]]):
    """A dataset of equal token ids in the format of the Trainer."""

    def __init__(self, rows: ClassificationRows | GenerationRows) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows.tokens)

    def __getitem__(self, index: int) -> dict[str, Any]:
        labels: Any
        if isinstance(self._rows, ClassificationRows):
            ids, labels = list(self._rows.tokens.ids[index]), int(self._rows.classes[index])
        else:
            prompt, target = self._rows.prompts[index], self._rows.targets[index]
            ids, labels = [*prompt, *target], [*[-100] * len(prompt), *target]
        return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels}


def our_epoch(backbone: Backbone, task: PreparedTask) -> Epoch:
    """Return a function that trains one epoch by our loop from the closed-form start."""
    start = task.kind.closed_form_start(
        ForwardContext(backbone, None, task.train), ForwardContext(backbone, None, task.validation)
    )
    settings = METHODS["lora"].model_validate({"rank": RANK, "sites": ("attn.q", "attn.v")})
    delta = initial_delta(backbone, task.kind, from_scratch(start), method="lora", settings=settings, seed=0)
    budget = task.budget.model_copy(update={"epochs": 1})

    def epoch() -> tuple[float, float, float]:
        rows, validation, metric = task.train, task.validation, task.data.spec.metric
        work = partial(train, backbone, delta, budget=budget, rows=rows, validation=validation, metric=metric, seed=0)
        result, peak = with_peak(work)
        return result.seconds, float(result.curve[-1].loss or 0), peak

    return epoch


def trainer(backbone: Backbone, task: PreparedTask) -> Epoch:
    """Return a function that trains one epoch by transformers' Trainer with PEFT's LoRA."""
    assert isinstance(task.train, ClassificationRows | GenerationRows)
    rows = _Rows(task.train)

    def epoch() -> tuple[float, float, float]:
        source, tokenizer = resolve_source(backbone.name), backbone.tokenizer
        if isinstance(task.train, ClassificationRows):
            network: Any = peft_lora(source, len(task.data.labels)).classifier
            collator: Any = DataCollatorWithPadding(tokenizer)
        else:
            plain = AutoModelForCausalLM.from_pretrained(source, dtype=backbone.dtype)
            network = get_peft_model(plain, LoraConfig(r=RANK, target_modules=["q_proj", "v_proj"]))
            collator = DataCollatorForSeq2Seq(tokenizer)
        with tempfile.TemporaryDirectory() as folder:
            arguments = TrainingArguments(
                output_dir=folder,
                per_device_train_batch_size=task.budget.batch_size,
                num_train_epochs=1,
                learning_rate=task.budget.learning_rate,
                bf16=backbone.dtype == torch.bfloat16,
                use_cpu=backbone.device.type == "cpu",
                report_to=[],
                save_strategy="no",
                logging_strategy="no",
                disable_tqdm=True,
                seed=0,
            )
            run = Trainer(model=network, args=arguments, train_dataset=rows, data_collator=collator)
            run.remove_callback(PrinterCallback)  # it would print to where the document goes
            (seconds, loss), peak = with_peak(lambda: _timed(run))
            return seconds, loss, peak

    return epoch


def _timed(run: Trainer) -> tuple[float, float]:
    start = time.perf_counter()
    loss = run.train().training_loss
    return time.perf_counter() - start, loss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stream", type=Path)
    parser.add_argument("--task", default="sst2")
    parser.add_argument("--rows", type=int, default=640)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--backbone")
    parser.add_argument("--dtype", default="auto")
    arguments = parser.parse_args()
    stream = read_stream(arguments.stream)
    spec = next(task for task in stream.resolved() if task.name == arguments.task)
    rows = {"train": arguments.rows, "validation": 4, "test": 4}
    backbone = load_backbone(arguments.backbone or stream.backbone or "minilm", dtype=arguments.dtype)
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")  # PEFT asks for an old name
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    data = load_task(spec.model_copy(update={"rows": rows}), folder=stream.folder, seed=stream.seed)
    task = prepare_task(backbone, data)
    variants = {"ours": our_epoch(backbone, task), "peft_trainer": trainer(backbone, task)}
    rounds = [{name: epoch() for name, epoch in variants.items()} for _ in range(arguments.repeats + 1)][1:]
    document = {
        "task": arguments.task,
        "rows": arguments.rows,
        "batch_size": task.budget.batch_size,
        "max_length": task.budget.max_length,
        "dtype": str(backbone.dtype).removeprefix("torch."),
        "backbone": backbone.name,
        "device": str(backbone.device),
        "threads": torch.get_num_threads(),
        "cpus": os.cpu_count(),
        "examples_per_second": {name: arguments.rows / median(r[name][0] for r in rounds) for name in variants},
        "loss": {name: rounds[0][name][1] for name in variants},
        "peak_mib": {name: median(r[name][2] for r in rounds) for name in variants},
        "weights_mib": sum(weight.nbytes for weight in backbone.base_module.parameters()) / 2**20,
        "ratio": median(r["peft_trainer"][0] / r["ours"][0] for r in rounds),
        "ratios": [r["peft_trainer"][0] / r["ours"][0] for r in rounds],
    }
    print(json.dumps(document, indent=2))


if __name__ == "__main__":
    main()
