"""Tiny random backbones and separable texts: everything a test needs to learn something in a second, made in code."""

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast, RobertaConfig, RobertaModel

from continual.backbone import Backbone, freeze
from continual.deltas import METHODS, Delta, Head, fresh_values
from continual.evaluate import Prepared, prepare
from tasks import Rows, Text

HIDDEN, LAYERS, POSITIONS = 32, 2, 40
FAMILIES = ("bert", "roberta")

# The words of each task and label; no word belongs to two of them.
WORDS = {
    "animals": {"cat": "purr meow whisker kitten", "dog": "bark fetch leash puppy", "bird": "wing feather nest beak"},
    "mood": {"bad": "awful dull broken hate", "good": "lovely bright superb enjoy"},
    "place": {"city": "street tower metro crowd", "sea": "wave coral tide sail"},
    "food": {"sour": "lemon vinegar pickle lime", "sweet": "sugar honey candy cake"},
}
FILLERS = ["the", "a", "of", "and", "with", "one"]


def text_of(task: str, label: str, draw: random.Random) -> str:
    """Some three to seven words, of which two at least are the label's own."""
    own = WORDS[task][label].split()
    chosen = [draw.choice(own) for _ in range(draw.randint(2, 4))] + draw.choices(FILLERS, k=draw.randint(1, 3))
    draw.shuffle(chosen)
    return " ".join(chosen)


def rows_of(task: str, n: int, *, seed: int = 0) -> Rows:
    """`n` rows whose labels take turns."""
    draw, labels = random.Random(f"{task}/{seed}"), tuple(WORDS[task])
    turns = tuple(labels[i % len(labels)] for i in range(n))
    return Rows(tuple(text_of(task, label, draw) for label in turns), turns)


def labels_of(task: str) -> tuple[str, ...]:
    return tuple(sorted(WORDS[task]))


def prepared(backbone: Backbone, task: str, n: int, *, seed: int = 0) -> Prepared:
    """`n` rows of a task, ready for a backbone."""
    return prepare(backbone, rows_of(task, n, seed=seed), labels=labels_of(task), max_length=32)


def write_task(folder: Path, task: str, *, train: int = 60, validation: int = 20, test: int = 12) -> dict[str, Any]:
    """Write a task's rows as JSON lines; the entry of a stream file that reads them."""
    (folder / task).mkdir(parents=True, exist_ok=True)
    files = {}
    for seed, (split, n) in enumerate({"train": train, "validation": validation, "test": test}.items()):
        rows = rows_of(task, n, seed=seed)
        write_rows(folder / task / f"{split}.jsonl", rows.texts, rows.labels)
        files[split] = f"{task}/{split}.jsonl"
    return {"name": task, "source": {"path": "json", "data_files": files}, "text": "text", "label": "label"}


def write_rows(path: Path, texts: Sequence[Text], labels: Sequence[str]) -> None:
    lines = (json.dumps({"text": text, "label": label}) for text, label in zip(texts, labels, strict=True))
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def words() -> list[str]:
    """Every word of every task. Vocabularies are listed, not trained: training breaks ties at random."""
    return [*FILLERS, *(word for task in WORDS.values() for own in task.values() for word in own.split())]


def bert_tokenizer() -> PreTrainedTokenizerFast:
    """WordPiece with BERT's frame: [CLS] a [SEP], and [CLS] a [SEP] b [SEP] with types 0 and 1."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = "abcdefghijklmnopqrstuvwxyz"
    pieces = [*special, *dict.fromkeys([*words(), *letters]), *(f"##{letter}" for letter in letters)]
    core = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
    core.normalizer = normalizers.BertNormalizer()
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.add_special_tokens(special)
    frame = [("[CLS]", core.token_to_id("[CLS]")), ("[SEP]", core.token_to_id("[SEP]"))]
    core.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0", pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1", special_tokens=frame
    )
    core.decoder = decoders.WordPiece()
    names = dict(zip(("pad", "unk", "cls", "sep", "mask"), special, strict=True))
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        **{f"{name}_token": token for name, token in names.items()},
    )


def roberta_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE with RoBERTa's frame: <s> a </s>, and <s> a </s></s> b </s>; no types."""
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    grown = [(f"Ġ{word}"[:i], f"Ġ{word}"[i]) for word in words() for i in range(1, len(word) + 1)]
    merges = list(dict.fromkeys(grown))  # letter by letter: a known word after a space is one token
    pieces = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet()), *("".join(pair) for pair in merges)]
    core = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, merges, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.add_special_tokens(special)
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        model_input_names=["input_ids", "attention_mask"],
        bos_token="<s>",
        cls_token="<s>",
        pad_token="<pad>",
        eos_token="</s>",
        sep_token="</s>",
        unk_token="<unk>",
        mask_token="<mask>",
    )


def tiny_model(family: str, *, seed: int = 0) -> tuple[Any, PreTrainedTokenizerFast]:
    """A random model of the family and its tokenizer; biases and norms are random too, or they would hide mistakes."""
    sizes = {
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "initializer_range": 0.2,
    }
    torch.manual_seed(seed)
    if family == "bert":
        tokenizer = bert_tokenizer()
        config = BertConfig(vocab_size=len(tokenizer), max_position_embeddings=POSITIONS, **sizes)
        model = BertModel(config, add_pooling_layer=False)
    else:
        tokenizer = roberta_tokenizer()
        config = RobertaConfig(
            vocab_size=len(tokenizer), max_position_embeddings=POSITIONS + 2, type_vocab_size=1, pad_token_id=1, **sizes
        )
        model = RobertaModel(config, add_pooling_layer=False)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.copy_((1.0 if "LayerNorm.weight" in name else 0.0) + 0.1 * torch.randn_like(parameter))
    return model, tokenizer


def tiny_backbone(family: str, *, seed: int = 0) -> Backbone:
    model, tokenizer = tiny_model(family, seed=seed)
    return freeze(model, tokenizer, name=f"tiny-{family}", device="cpu", dtype="float32")


def save_backbone(backbone: Backbone, folder: Path) -> Path:
    """The backbone as a folder that `load_backbone` reads."""
    backbone.model.save_pretrained(folder)
    backbone.tokenizer.save_pretrained(folder)
    return folder


# Settings that a method cannot do without.
NEEDED: Mapping[str, Mapping[str, Any]] = {
    "union": {"parts": ["bitfit", {"name": "lora", "rank": 2}]},
    "sequential": {"parts": [{"name": "lora", "rank": 2}, "bitfit"]},
}


def fresh_delta(backbone: Backbone, method: str, *, task: str = "mood", seed: int = 0, **settings: Any) -> Delta:
    """A delta that has learned nothing, with a random head."""
    chosen, labels = METHODS[method].model_validate({**NEEDED.get(method, {}), **settings}), labels_of(task)
    generator = torch.Generator().manual_seed(seed)
    head = Head(
        0.1 * torch.randn(len(labels), backbone.hidden_size, generator=generator),
        0.1 * torch.randn(len(labels), generator=generator),
        labels,
        backbone.pooling,
    )
    return Delta(method, chosen, backbone.fingerprint, fresh_values(backbone, chosen, seed=seed), head)


def moved_delta(backbone: Backbone, method: str, *, seed: int = 0, **settings: Any) -> Delta:
    """A delta every value of which is away from its start, as after training."""
    delta = fresh_delta(backbone, method, seed=seed, **settings)
    generator = torch.Generator().manual_seed(seed + 1)
    values = {key: value + 0.3 * torch.randn(value.shape, generator=generator) for key, value in delta.values.items()}
    return replace(delta, values=values)
