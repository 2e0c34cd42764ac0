"""Speed, memory and waiting times of writing text, beside the plain model and PEFT.

    python -m tests.benchmarks.writing BACKBONE [--rows 16] [--tokens 48] [--rounds 3] [--threads 2]
        [--dtype float32] [--sites attn.q attn.v] > writing.json

BACKBONE is a name, hub id or folder of a causal language model; its weights are read once per process. Every variant
writes the same number of tokens behind each of the same prompts, the end token left out:

- `plain`: transformers' `generate` on the model without deltas, one static batch
- `one`: the engine, all rows through one LoRA · `tasks`: the engine, each row through its own LoRA
- `none`: the engine without deltas · `adapter_names`: PEFT's mixed batch, each row through its own LoRA

LoRA has rank 8. Variants are timed in turn, in one process; given are tokens per second and per CPU
second (medians), the share of `plain`'s speed in the same round (median), and the peak of memory over the loaded model
in a process of its own. `waiting`: a server of the plain backbone over HTTP, in streams: seconds to the first token of
one client and, the mean and the worst, of four at once; seconds of an embedding alone, and behind 16 prompts; seconds
to the first token of a prompt of a thousand tokens alone, and the longest pause that it causes in another answer.
"""

import argparse
import json
import multiprocessing
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from copy import deepcopy
from dataclasses import replace
from itertools import pairwise
from statistics import fmean, median
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import torch
from transformers import GenerationConfig

from continual.backbones.backbone import Backbone, load_backbone
from continual.deltas import Bank, Delta, init_values, method_settings
from continual.exchange import to_peft
from continual.generation.engine import Engine
from continual.generation.passes import end_tokens
from continual.generation.prompts import EngineLimits
from continual.generation.sampling import Ids, SamplingSettings
from continual.kinds.writing import make_prompts
from continual.serve import ChampionServer, create_app
from registry import Registry
from tasks import Method
from tests.benchmarks.peak_memory import with_peak
from tests.benchmarks.run_log import quieten, say
from tests.helpers.live_server import running_app

TEXTS = (
    "Write one sentence about the sea.",
    "Explain in simple words why the sky is blue, and why it turns red in the evening.",
    "List three things that a cat does before it sleeps.",
    "The council voted on Monday to close the old bridge for a year, since its piers are no longer safe. Summarise it.",
)
LONG_TEXT = " ".join(TEXTS * 13)  # a thousand tokens
RANK = 8
Variant = Callable[[], Any]


def lora(backbone: Backbone, seed: int, sites: Sequence[str]) -> Delta:
    """Return a LoRA with random values of the size of trained ones; on every projection without `sites`."""
    settings = method_settings(
        Method.model_validate({"name": "lora", "rank": RANK, **({"sites": sites} if sites else {})})
    )
    draw = torch.Generator().manual_seed(seed)
    values = init_values(backbone, settings, seed=seed)
    values = {key: value + 0.01 * torch.randn(value.shape, generator=draw) for key, value in values.items()}
    return Delta("lora", settings, backbone.fingerprint, values, None)


class WritingVariants:
    """Every way to write the same number of tokens behind the same prompts."""

    def __init__(self, backbone: Backbone, *, rows: int, tokens: int, sites: Sequence[str] = ()) -> None:
        self._backbone, self._tokens, self._sites = replace(backbone, generates=True), tokens, sites
        self._prompts: list[Ids] = [
            tuple(backbone.tokenizer(TEXTS[row % len(TEXTS)])["input_ids"]) for row in range(rows)
        ]
        self._ends = self._backbone.tokenizer.eos_token_id

    def plain(self) -> Variant:
        """Return the static batch of the model without deltas."""
        model = self._backbone.language_model
        return lambda: self._generate(model)

    def adapter_names(self) -> Variant:
        """Return PEFT's mixed batch."""
        import peft

        model: Any = None
        for number in range(len(self._prompts)):
            adapter, name = to_peft(self._backbone, lora(self._backbone, number, self._sites)), str(number)
            keys = ("r", "lora_alpha", "target_modules")
            config = peft.LoraConfig(**{key: adapter.config[key] for key in keys})
            if model is None:
                model = peft.get_peft_model(deepcopy(self._backbone.language_model), config, adapter_name=name)
            else:
                model.add_adapter(name, config)
            peft.set_peft_model_state_dict(model, adapter.tensors, adapter_name=name)
        model.eval()
        return lambda: self._generate(model, adapter_names=[str(number) for number in range(len(self._prompts))])

    def none(self) -> Variant:
        """Return the engine without deltas."""
        return lambda: self._write(lambda names: (range(len(names)), None), [""] * len(self._prompts))

    def one(self) -> Variant:
        """Return the engine with one delta for all rows."""
        delta = lora(self._backbone, 0, self._sites)
        return lambda: self._write(lambda names: (range(len(names)), delta), [""] * len(self._prompts))

    def tasks(self) -> Variant:
        """Return the engine with a delta for each row."""
        bank = Bank(self._backbone, slots=len(self._prompts))
        names = [str(number) for number in range(len(self._prompts))]
        for number, name in enumerate(names):
            bank.put(name, lora(self._backbone, number, self._sites))
        return lambda: self._write(bank.mixed_batch, names)

    def _generate(self, model: Any, **options: Any) -> Any:
        width = max(map(len, self._prompts))
        pad = self._backbone.tokenizer.pad_token_id
        ids = [[pad] * (width - len(prompt)) + list(prompt) for prompt in self._prompts]
        mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in self._prompts]
        config = GenerationConfig(
            max_new_tokens=self._tokens,
            min_new_tokens=self._tokens,
            do_sample=False,
            pad_token_id=pad,
            eos_token_id=self._ends,
        )
        with torch.inference_mode(), self._backbone.autocast():
            inputs, text = torch.tensor([ids, mask], device=self._backbone.device)
            return model.generate(inputs, attention_mask=text, generation_config=config, **options)

    def _write(self, build: Any, names: Sequence[str]) -> None:
        engine = Engine(self._backbone, build, limits=EngineLimits(rows=len(names)))
        engine._ends = frozenset()
        sampling = SamplingSettings(self._tokens)
        prompts = make_prompts(self._backbone, None, self._prompts, sampling)
        for number, (name, prompt) in enumerate(zip(names, prompts, strict=True)):
            engine.add(number, replace(prompt, delta=name))
        while len(engine):
            engine.step()
        engine.pause()


VARIANTS = ("plain", "none", "one", "tasks", "adapter_names")


def peak_memory(name: str, variant: str, options: dict[str, Any]) -> float:
    """Return MiB of the peak over the loaded model; run in a process of its own."""
    torch.set_num_threads(options["threads"])
    backbone = load_backbone(name, dtype=options["dtype"])
    variants = WritingVariants(backbone, rows=options["rows"], tokens=options["tokens"], sites=options["sites"])
    return with_peak(getattr(variants, variant)())[1]


def speeds(backbone: Backbone, options: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Time all variants in turn."""
    variants = WritingVariants(backbone, rows=options["rows"], tokens=options["tokens"], sites=options["sites"])
    runs: dict[str, Variant] = {name: getattr(variants, name)() for name in VARIANTS}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in VARIANTS}
    for turn in range(options["rounds"] + 1):  # the first round warms up
        for name, run in runs.items():
            start, cpu = time.perf_counter(), time.process_time()
            run()
            if turn:
                times[name].append((time.perf_counter() - start, time.process_time() - cpu))
        say(f"round {turn}: " + ", ".join(f"{name} {times[name][-1][0]:.2f} s" for name in VARIANTS if turn))
    count = options["rows"] * options["tokens"]
    plain = [seconds for _, seconds in times["plain"]]
    return {
        name: {
            "tokens_per_second": count / median(wall for wall, _ in measured),
            "tokens_per_cpu_second": count / median(cpu for _, cpu in measured),
            "share_of_plain": median(base / cpu for base, (_, cpu) in zip(plain, measured, strict=True)),
        }
        for name, measured in times.items()
    }


def waiting(backbone: Backbone) -> dict[str, float]:
    """Measure a server's waiting times over HTTP."""
    never_ending = {"logit_bias": {str(token): -100 for token in end_tokens(backbone)}}
    with TemporaryDirectory() as home:
        registry = Registry.open(f"sqlite:///{home}/registry.db", f"{home}/blobs")
        app = create_app(ChampionServer(backbone, registry))
        with running_app(app) as url, httpx.Client(base_url=url, timeout=600) as client:

            def event_seconds(text: str, tokens: int = 32) -> list[float]:
                start = time.perf_counter()
                body = {"model": backbone.name, "prompt": text, "max_tokens": tokens, "stream": True} | never_ending
                with client.stream("POST", "/v1/completions", json=body) as response:
                    return [time.perf_counter() - start for line in response.iter_lines() if line]

            def first_token(text: str) -> float:
                return event_seconds(text)[0]

            def embedding() -> float:
                start = time.perf_counter()
                body = {"model": backbone.name, "input": "where is my parcel?"}
                client.post("/v1/embeddings", json=body).raise_for_status()
                return time.perf_counter() - start

            first_token(TEXTS[0])
            embedding()
            with ThreadPoolExecutor(16) as threads:
                one = [first_token(text) for text in TEXTS]
                four = [seconds for _ in range(3) for seconds in threads.map(first_token, TEXTS)]
                alone = [embedding() for _ in range(5)]
                prompts = [threads.submit(first_token, TEXTS[n % len(TEXTS)]) for n in range(16)]
                threading.Event().wait(0.5)
                behind = [embedding() for _ in range(3)]
                for prompt in prompts:
                    prompt.result()
                long_alone = first_token(LONG_TEXT)
                answer = threads.submit(event_seconds, TEXTS[0], 96)
                threading.Event().wait(0.5)
                first_token(f"Once more: {LONG_TEXT}")  # another beginning, so that all of it is read
                pauses = [after - before for before, after in pairwise(answer.result())]
    return {
        "first_token_one_client": fmean(one),
        "first_token_four_clients": fmean(four),
        "first_token_four_clients_worst": max(four),
        "embedding_alone": median(alone),
        "embedding_behind_16_prompts": max(behind),
        "first_token_long_prompt": long_alone,
        "longest_pause_beside_long_prompt": max(pauses),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("backbone")
    for name, default in (("rows", 16), ("tokens", 48), ("rounds", 3), ("threads", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--sites", nargs="*", default=(), help="sites of LoRA; every projection without them")
    arguments = parser.parse_args()
    quieten()
    options = {name: getattr(arguments, name) for name in ("rows", "tokens", "rounds", "threads", "sites", "dtype")}
    torch.set_num_threads(options["threads"])
    backbone = load_backbone(arguments.backbone, dtype=arguments.dtype)
    results: dict[str, Any] = {"backbone": backbone.name, **options}
    results["variants"] = speeds(backbone, options)
    results["waiting"] = waiting(backbone)
    for variant in VARIANTS:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            peak = process.submit(peak_memory, arguments.backbone, variant, options).result()
        results["variants"][variant]["peak_mib"] = peak
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
