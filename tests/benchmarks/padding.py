"""Shares of padding in the training batches of generation tasks, by the length that rows are sorted by.

    PYTHONPATH=. python -m tests.benchmarks.padding STREAM.yaml --backbone FOLDER [--batch-size 16]

`by_text` sorts by the tokens of the text, `by_row` by those of prompt and target, as training does: packing several
rows into one sequence could save no more than the latter. One JSON document.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch

from continual.backbones.backbone import load_backbone
from continual.features.tokens import shuffled_batches
from continual.learning.prepared import prepare_task
from tasks import load_stream, read_stream


def padded_share(lengths: Sequence[int], sorted_by: Sequence[int], batch_size: int) -> float:
    """Return the share of padding among all tokens of an epoch's batches."""
    batches = shuffled_batches(sorted_by, batch_size, torch.Generator().manual_seed(0))
    padded = sum(len(batch) * max(lengths[i] for i in batch) for batch in batches)
    return round(1 - sum(lengths) / padded, 4)


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("stream", type=Path)
    options.add_argument("--backbone", required=True)
    options.add_argument("--batch-size", type=int, default=16)
    arguments = options.parse_args()
    backbone = load_backbone(arguments.backbone, device="cpu", dtype="float32")
    shares = {}
    for data in load_stream(read_stream(arguments.stream)):
        task = prepare_task(backbone, data)
        lengths = task.kind.row_lengths(task.train)
        shares[data.spec.name] = {
            "rows": len(lengths),
            "mean_tokens": round(sum(lengths) / len(lengths), 1),
            "by_text": padded_share(lengths, task.train.tokens.lengths, arguments.batch_size),
            "by_row": padded_share(lengths, lengths, arguments.batch_size),
        }
    print(json.dumps(shares, indent=2))


if __name__ == "__main__":
    main()
