"""Whether the learned tasks of a home write the same text however it is asked for.

    python -m tests.benchmarks.same_text STREAM.yaml HOME [--backbone smollm2] [--rows 50] [--dtype float32]

The first test rows of all generation tasks of the stream, which `continual run` has learned in HOME, are written:

- `alone`: one row after the other; the others are compared with it · `batch`: rows of all tasks in one batch
- `streamed`: over HTTP, eight clients at once, the parts joined
- `exported`: by PEFT, from the folder that `continual export` writes, one row after the other
- `merged`: by transformers, from the folder with the delta merged into the weights, one row after the other

Given is the number of rows with the same text. The last two compute in float32 and are left out with another type, in
which `batch` shows how often the rows that share a batch change a text.
"""

import argparse
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import peft
import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from continual import Learner, read_stream
from continual.backbones.backbone import Backbone
from continual.generation.sampling import Ids
from continual.kinds.generation import Generation, GenerationRows
from continual.learning.prepared import PreparedTask, prepare_task
from continual.serve import ChampionServer, create_app
from tasks import load_task
from tests.benchmarks.run_log import quieten, say
from tests.helpers.live_server import running_app

CLIENTS = 8


def generation_tasks(backbone: Backbone, path: Path) -> list[PreparedTask]:
    """Return the generation tasks of a stream file with their rows."""
    stream = read_stream(path)
    specs = [spec for spec in stream.resolved() if spec.kind == "generation"]
    return [prepare_task(backbone, load_task(spec, folder=stream.folder, seed=stream.seed)) for spec in specs]


def streamed(learner: Learner, rows: Sequence[tuple[str, str]]) -> list[str]:
    """Return the texts of (task, text) as clients get them in streams."""

    def text_of(row: tuple[str, str]) -> str:
        task, text = row
        body = {"model": task, "messages": [{"role": "user", "content": text}], "stream": True}
        with client.stream("POST", "/v1/chat/completions", json=body) as response:
            lines = [line.removeprefix("data: ") for line in response.iter_lines() if line]
        events = [json.loads(line) for line in lines if line != "[DONE]"]
        return "".join(choice["delta"].get("content") or "" for event in events for choice in event["choices"])

    app = create_app(ChampionServer(learner.backbone, learner.registry))
    with (
        running_app(app) as url,
        httpx.Client(base_url=url, timeout=600) as client,
        ThreadPoolExecutor(CLIENTS) as threads,
    ):
        return [*threads.map(text_of, rows)]


def generated(backbone: Backbone, model: Any, task: PreparedTask, prompts: Sequence[Ids]) -> list[str]:
    """Return the texts that a model of transformers writes behind prompts, one after the other."""
    assert isinstance(task.kind, Generation)
    end = task.kind.end_token(backbone)
    config = GenerationConfig(
        max_new_tokens=task.kind.longest, do_sample=False, eos_token_id=end, pad_token_id=end, num_beams=1
    )
    texts = []
    with torch.inference_mode():
        for prompt in prompts:
            ids = torch.tensor([prompt])
            written = model.eval().generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=config
            )
            texts.append(backbone.tokenizer.decode(written[0, len(prompt) :], skip_special_tokens=True).strip())
    return texts


def agreement(texts: Sequence[str], alone: Sequence[str]) -> int:
    return sum(text == other for text, other in zip(texts, alone, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stream", type=Path)
    parser.add_argument("home", type=Path)
    parser.add_argument("--backbone", default="smollm2")
    parser.add_argument("--rows", type=int, default=50, help="rows of all tasks together")
    parser.add_argument("--dtype", default="float32")
    arguments = parser.parse_args()
    quieten()
    with Learner.open(arguments.backbone, arguments.home, device="cpu", dtype=arguments.dtype) as learner:
        print(json.dumps(compare(learner, arguments.stream, arguments.rows), indent=2))


def compare(learner: Learner, path: Path, count: int) -> dict[str, Any]:
    """Write the rows in every way; return the numbers of the same texts."""
    backbone, tasks = learner.backbone, generation_tasks(learner.backbone, path)
    shares = [len(range(number, count, len(tasks))) for number in range(len(tasks))]
    names = [task.data.spec.name for task in tasks]
    texts = [list(task.data.test.texts[:share]) for task, share in zip(tasks, shares, strict=True)]
    rows = [(name, str(text)) for name, task_texts in zip(names, texts, strict=True) for text in task_texts]
    alone = [str(learner.predict([text], task=name)[0].label) for name, text in rows]
    say("alone: done")
    mixed = sorted(range(len(rows)), key=lambda row: (row * 7919) % len(rows))  # tasks alternate
    answers = learner.predict([rows[row][1] for row in mixed], task=[rows[row][0] for row in mixed])
    batch = {row: str(answer.label) for row, answer in zip(mixed, answers, strict=True)}
    ways = {"batch": [batch[row] for row in range(len(rows))], "streamed": streamed(learner, rows)}
    say("batch and streamed: done")
    if backbone.dtype == torch.float32:
        ways |= {"exported": [], "merged": []}
        champions = {champion.task: champion.delta for champion in learner.registry.champions(backbone.fingerprint)}
        for task, share in zip(tasks, shares, strict=True):
            assert isinstance(task.test, GenerationRows)
            delta, prompts = champions[task.data.spec.name], task.test.prompts[:share]
            with TemporaryDirectory() as folder:
                learner.export(delta, Path(folder) / "peft")
                learner.export(delta, Path(folder) / "merged", form="transformers")
                adapted = peft.PeftModel.from_pretrained(deepcopy(backbone.language_model), f"{folder}/peft")
                ways["exported"] += generated(backbone, adapted, task, prompts)
                merged = AutoModelForCausalLM.from_pretrained(f"{folder}/merged", dtype=torch.float32)
                ways["merged"] += generated(backbone, merged, task, prompts)
            say(f"{delta}: exported and merged")
    same = {way: agreement(written, alone) for way, written in ways.items()}
    return {"backbone": backbone.name, "dtype": str(backbone.dtype), "tasks": names, "rows": len(rows), "same": same}


if __name__ == "__main__":
    main()
