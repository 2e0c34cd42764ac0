"""Serving engines that load many LoRA adapters over one model: what each takes, and the command that starts it.

The facts are those of the engines' documentation: vLLM's supported models and LoRA adapters, SGLang's LoRA serving,
LoRAX's adapters (docs/how-to/engines.md).
"""

import json
import shlex
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # values of --max-lora-rank
OTHER_EXPORT = "--format transformers writes a whole model with the change in its weights, which engines serve"
_LLAMA_MODULES = frozenset(["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"])


@dataclass(frozen=True)
class ServedAdapter:
    """An adapter as a server is told of it.

    Attributes:
        name: The name by which requests choose it.
        folder: Its folder.
        rank: Its rank.
        outputs: Number of outputs of its head; None without one.
    """

    name: str
    folder: Path
    rank: int
    outputs: int | None = None


@dataclass(frozen=True)
class ServingEngine:
    r"""A serving engine.

    >>> from pathlib import Path
    >>> adapters = [ServedAdapter("mood", Path("out/mood@1"), 12), ServedAdapter("tone", Path("out/tone@1"), 8)]
    >>> print(SERVING_ENGINES["sglang"].command("org/model", adapters).replace(" --", " \\\n  --"))
    python -m sglang.launch_server \
      --model-path org/model \
      --enable-lora \
      --max-loras-per-batch 2 \
      --max-lora-rank 12 \
      --lora-paths mood=out/mood@1 tone=out/tone@1

    Attributes:
        title: Its name as its makers write it.
        command: Returns the command that serves adapters over a model; a server has one kind of answer, so all have
            heads of one number of outputs, or none has one.
        takes_heads: Whether it takes the head of a classification with an adapter.
        unsupported_families: Model types that it serves without LoRA.
        modules: Last parts of the names of modules at which it takes LoRA, by model type, under `""` for all other
            types; a type without an entry has none. None where all are taken.
    """

    title: str
    command: Callable[[str, Sequence[ServedAdapter]], str]
    takes_heads: bool = False
    unsupported_families: Collection[str] = ()
    modules: Mapping[str, Collection[str]] | None = None

    def family_obstacle(self, family: str, *, is_causal: bool) -> str | None:
        """Return why it loads no adapter over a model of a type; None where it does."""
        if not is_causal:
            return f"{self.title} loads LoRA over causal language models, and a {family} model is none"
        if family in self.unsupported_families or (self.modules is not None and not self._modules_of(family)):
            return f"{self.title} serves {family} models without LoRA"
        return None

    def module_obstacle(self, family: str, modules: Collection[str]) -> str | None:
        """Return why it ignores LoRA at some of the modules of a model; None where it takes all."""
        if self.modules is None:
            return None
        names = {module.rpartition(".")[2] for module in modules} - set(self._modules_of(family))
        return f"{self.title} takes no LoRA at {', '.join(sorted(names))} of a {family} model" if names else None

    def _modules_of(self, family: str) -> Collection[str]:
        modules = self.modules or {}
        return modules.get(family, modules.get("", ()))


def _vllm(base: str, adapters: Sequence[ServedAdapter]) -> str:
    rank = next((rank for rank in VLLM_RANKS if rank >= _largest_rank(adapters)), _largest_rank(adapters))
    words = ["vllm", "serve", base]
    if adapters[0].outputs is not None:
        overrides = json.dumps({"num_labels": adapters[0].outputs})
        words += ["--runner", "pooling", "--convert", "classify", "--hf-overrides", overrides]
    words += ["--enable-lora", "--max-loras", str(len(adapters)), "--max-lora-rank", str(rank)]
    return shlex.join([*words, "--lora-modules", *_named_folders(adapters)])


def _sglang(base: str, adapters: Sequence[ServedAdapter]) -> str:
    words = ["python", "-m", "sglang.launch_server", "--model-path", base, "--enable-lora"]
    words += ["--max-loras-per-batch", str(len(adapters)), "--max-lora-rank", str(_largest_rank(adapters))]
    return shlex.join([*words, "--lora-paths", *_named_folders(adapters)])


def _lorax(base: str, adapters: Sequence[ServedAdapter]) -> str:
    """Return the command of the server alone: its requests name a folder (adapter_id, adapter_source: local)."""
    return shlex.join(["lorax-launcher", "--model-id", base])


def _largest_rank(adapters: Sequence[ServedAdapter]) -> int:
    return max(adapter.rank for adapter in adapters)


def _named_folders(adapters: Sequence[ServedAdapter]) -> list[str]:
    return [f"{adapter.name}={adapter.folder}" for adapter in adapters]


SERVING_ENGINES: Mapping[str, ServingEngine] = {
    "vllm": ServingEngine(
        "vLLM",
        _vllm,
        takes_heads=True,
        unsupported_families=("bloom", "falcon", "gpt2", "gpt_neo", "gpt_neox", "gptj", "mpt", "stablelm"),
    ),
    "sglang": ServingEngine(
        "SGLang", _sglang, modules={"": _LLAMA_MODULES | {"qkv_proj", "gate_up_proj", "embed_tokens", "lm_head"}}
    ),
    "lorax": ServingEngine(
        "LoRAX",
        _lorax,
        modules={
            **dict.fromkeys(("llama", "mistral", "qwen2"), _LLAMA_MODULES | {"lm_head"}),
            "gemma": _LLAMA_MODULES,
            "gpt2": ("c_attn", "c_proj", "c_fc"),
            "phi3": ("qkv_proj", "o_proj", "gate_up_proj", "down_proj", "lm_head"),
            "phi": ("q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2", "lm_head"),
        },
    ),
}
"""The engines by the name of their export format."""
