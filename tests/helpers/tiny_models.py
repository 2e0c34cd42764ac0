"""Tiny random models of every family, and tokenizers of the tests' words, made without files."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from continual.backbones.families import family_of

HIDDEN, LAYERS, POSITIONS = 32, 2, 40
CHAT_POSITIONS = 512  # a template has many tokens in the tests' vocabulary

# The words of each task and label; no word belongs to two of them.
WORDS = {
    "animals": {"cat": "purr meow whisker kitten", "dog": "bark fetch leash puppy", "bird": "wing feather nest beak"},
    "mood": {"bad": "awful dull broken hate", "good": "lovely bright superb enjoy"},
    "place": {"city": "street tower metro crowd", "sea": "wave coral tide sail"},
    "food": {"sour": "lemon vinegar pickle lime", "sweet": "sugar honey candy cake"},
}
FILLER_WORDS = ["the", "a", "of", "and", "with", "one"]


def words() -> list[str]:
    """Return every word of every task; vocabularies are listed, as training a tokenizer breaks ties at random."""
    return [
        *FILLER_WORDS,
        *(word for task in WORDS.values() for label_words in task.values() for word in label_words.split()),
    ]


def word_pieces() -> PreTrainedTokenizerFast:
    """Return a WordPiece tokenizer with BERT's templates: [CLS] a [SEP], and [CLS] a [SEP] b [SEP] of types 0 and 1."""
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


def byte_pairs(single: str, pair: str, **special: str) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer with templates for one text and for a pair; special tokens come first."""
    special_tokens = list(dict.fromkeys(special.values()))
    grown = [(f"Ġ{word}"[:i], f"Ġ{word}"[i]) for word in words() for i in range(1, len(word) + 1)]
    merges = list(dict.fromkeys(grown))  # letter by letter: a known word after a space is one token
    pieces = [*special_tokens, *sorted(pre_tokenizers.ByteLevel.alphabet()), *("".join(both) for both in merges)]
    core = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, merges))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.add_special_tokens(special_tokens)
    core.post_processor = processors.TemplateProcessing(
        single=single, pair=pair, special_tokens=[(token, i) for i, token in enumerate(special_tokens)]
    )
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        model_input_names=["input_ids", "attention_mask"],
        model_max_length=POSITIONS,
        **{f"{name}_token": token for name, token in special.items()},
    )


def roberta_pieces() -> PreTrainedTokenizerFast:
    """Return a tokenizer with RoBERTa's templates: <s> a </s>, and <s> a </s></s> b </s>."""
    special = {"bos": "<s>", "cls": "<s>", "pad": "<pad>", "eos": "</s>", "sep": "</s>", "unk": "<unk>"}
    return byte_pairs("<s> $A </s>", "<s> $A </s> </s> $B </s>", **special, mask="<mask>")


def gpt2_pieces() -> PreTrainedTokenizerFast:
    """Return a tokenizer without template and without a padding token."""
    return byte_pairs("$A", "$A $B", bos="<|endoftext|>", eos="<|endoftext|>")


# The template of SmolLM2's tokenizer.
CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}"
    "{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def chat_pieces() -> PreTrainedTokenizerFast:
    """Return a tokenizer with a chat template, as SmolLM2's; an answer ends with <|im_end|>."""
    tokenizer = byte_pairs("$A", "$A $B", bos="<|im_start|>", eos="<|im_end|>", unk="<|endoftext|>", pad="<|im_end|>")
    tokenizer.chat_template = CHATML
    tokenizer.model_max_length = CHAT_POSITIONS
    return tokenizer


def t5_pieces() -> PreTrainedTokenizerFast:
    """Return a tokenizer with T5's templates: a </s>, and a </s> b </s>."""
    return byte_pairs("$A </s>", "$A </s> $B </s>", pad="<pad>", eos="</s>", unk="<unk>")


_BERT: Mapping[str, Any] = {
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "initializer_range": 0.2,
    "max_position_embeddings": POSITIONS,
}
_ROBERTA = {**_BERT, "max_position_embeddings": POSITIONS + 2, "type_vocab_size": 1, "pad_token_id": 1}
_DISTILBERT = {
    "dim": HIDDEN,
    "n_layers": LAYERS,
    "n_heads": 4,
    "hidden_dim": 48,
    "initializer_range": 0.2,
    "max_position_embeddings": POSITIONS,
}
_MODERNBERT = {
    **_BERT,
    "num_hidden_layers": LAYERS + 1,
    "global_attn_every_n_layers": 2,
    "local_attention": 6,  # shorter than the texts of the tests
    "norm_bias": True,
    "attention_bias": True,
    "mlp_bias": True,
    **{f"{name}_token_id": number for name, number in {"bos": 0, "cls": 0, "pad": 1, "eos": 2, "sep": 2}.items()},
}
_GPT2 = {
    "n_embd": HIDDEN,
    "n_layer": LAYERS,
    "n_head": 4,
    "n_positions": POSITIONS,
    "initializer_range": 0.2,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
_OPT = {
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "ffn_dim": 48,
    "max_position_embeddings": POSITIONS,
    "init_std": 0.2,
}
# As OPT-350m: embeddings and last states of another size than the layers, and norms after the layers.
_OPT_NARROW = {**_OPT, "word_embed_proj_dim": 24, "do_layer_norm_before": False}
_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
_LLAMA = {**_BERT, "num_key_value_heads": 2, "bos_token_id": 0, "eos_token_id": 0, "tie_word_embeddings": True}
_QWEN2 = {**_LLAMA, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}
_QWEN3 = {**_LLAMA, "head_dim": 16}
_T5 = {
    "d_model": HIDDEN,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": LAYERS + 1,  # transformers' cache fails on a decoder that is the deeper of the two
    "num_decoder_layers": LAYERS,
    "num_heads": 4,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 16,
    "decoder_start_token_id": 0,
}
_BART = {
    "d_model": HIDDEN,
    "encoder_layers": LAYERS + 1,
    "decoder_layers": LAYERS,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 40,
    "max_position_embeddings": POSITIONS,
    "init_std": 0.2,
    "scale_embedding": True,
}
_MISTRAL = {**_LLAMA, "head_dim": 8, "sliding_window": 4}
_SMOLLM3 = {**_LLAMA, "no_rope_layers": [1, 0], "pad_token_id": 0}
_PHI3 = {**_LLAMA, "pad_token_id": 0, "rope_parameters": {**_ROPE, "partial_rotary_factor": 0.5}}
_GEMMA2 = {
    **_LLAMA,
    "head_dim": 16,
    "query_pre_attn_scalar": 16,
    "sliding_window": 4,
    "attn_logit_softcapping": 2.0,  # far below the scores, which it changes
    "pad_token_id": 0,
}
_GEMMA3 = {**_GEMMA2, "layer_types": ["sliding_attention", "full_attention"]}
_GEMMA3.pop("attn_logit_softcapping")
_QWEN3_MOE = {
    **_QWEN3,
    "num_hidden_layers": LAYERS + 1,
    "mlp_only_layers": [1],
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
}
_LLAMA4 = {
    **_LLAMA,
    "num_hidden_layers": LAYERS + 1,
    "head_dim": 8,
    "intermediate_size_mlp": 40,
    "num_local_experts": 4,
    "num_experts_per_tok": 1,
    "interleave_moe_layer_step": 2,
    "no_rope_layers": [1, 0, 1],
    "attention_chunk_size": 6,  # shorter than the texts of the tests
    "pad_token_id": 0,
}
_QWEN3_5 = {
    **_LLAMA,
    "initializer_range": 0.05,
    "head_dim": 16,
    "layer_types": ["linear_attention", "full_attention"],
    "linear_conv_kernel_dim": 3,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 8,
    "rope_parameters": {**_ROPE, "partial_rotary_factor": 0.5, "mrope_section": [2, 1, 1]},
}
_GPT_NEOX = {**_BERT, "rope_parameters": {**_ROPE, "partial_rotary_factor": 0.5}, "bos_token_id": 0, "eos_token_id": 0}
_MPNET = {**_BERT, "max_position_embeddings": POSITIONS + 2, "pad_token_id": 1}
_DEBERTA = {
    **_BERT,
    "relative_attention": True,
    "position_buckets": 6,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": "p2c|c2p",
    "position_biased_input": False,
    "type_vocab_size": 0,
    "pad_token_id": 0,
}
_MARIAN = {
    **_BART,
    "pad_token_id": 1,
    "decoder_start_token_id": 0,
    "eos_token_id": 2,
    "activation_function": "swish",
    "init_std": 0.1,
}

Settings = Mapping[str, Any]
TINY_CONFIGS: Mapping[
    str, tuple[Callable[[], PreTrainedTokenizerFast], str, Settings]
] = {  # with the settings of the config
    "bert": (word_pieces, "BertModel", _BERT),
    "roberta": (roberta_pieces, "RobertaModel", _ROBERTA),
    "distilbert": (word_pieces, "DistilBertModel", _DISTILBERT),
    "electra": (word_pieces, "ElectraModel", {**_BERT, "embedding_size": 24}),
    "modernbert": (roberta_pieces, "ModernBertModel", _MODERNBERT),
    "gpt2": (gpt2_pieces, "GPT2LMHeadModel", _GPT2),
    "opt": (roberta_pieces, "OPTForCausalLM", _OPT),
    "opt-narrow": (roberta_pieces, "OPTForCausalLM", _OPT_NARROW),
    "llama": (gpt2_pieces, "LlamaForCausalLM", _LLAMA),
    "qwen2": (gpt2_pieces, "Qwen2ForCausalLM", _QWEN2),
    "qwen3": (gpt2_pieces, "Qwen3ForCausalLM", _QWEN3),
    "t5": (t5_pieces, "T5ForConditionalGeneration", _T5),
    "t5-gated": (t5_pieces, "T5ForConditionalGeneration", {**_T5, "feed_forward_proj": "gated-gelu"}),
    "bart": (roberta_pieces, "BartForConditionalGeneration", _BART),
    "mistral": (gpt2_pieces, "MistralForCausalLM", _MISTRAL),
    "smollm3": (gpt2_pieces, "SmolLM3ForCausalLM", _SMOLLM3),
    "phi3": (gpt2_pieces, "Phi3ForCausalLM", _PHI3),
    "gemma2": (gpt2_pieces, "Gemma2ForCausalLM", _GEMMA2),
    "gemma3": (gpt2_pieces, "Gemma3ForCausalLM", _GEMMA3),
    "olmo2": (gpt2_pieces, "Olmo2ForCausalLM", {**_LLAMA, "pad_token_id": 0}),
    "qwen3_moe": (gpt2_pieces, "Qwen3MoeForCausalLM", _QWEN3_MOE),
    "llama4": (gpt2_pieces, "Llama4ForCausalLM", _LLAMA4),
    "qwen3_5": (gpt2_pieces, "Qwen3_5ForCausalLM", _QWEN3_5),
    "gpt_neox": (gpt2_pieces, "GPTNeoXForCausalLM", _GPT_NEOX),
    "mpnet": (roberta_pieces, "MPNetModel", _MPNET),
    "deberta-v2": (word_pieces, "DebertaV2Model", _DEBERTA),
    "mt5": (t5_pieces, "MT5ForConditionalGeneration", {**_T5, "feed_forward_proj": "relu", "initializer_factor": 0.5}),
    "marian": (roberta_pieces, "MarianMTModel", _MARIAN),
    "pegasus": (roberta_pieces, "PegasusForConditionalGeneration", _MARIAN),
}
# Their tables are made of parts of others'. Only the suite of families reads them, or the suites of methods, which try
# each method on each family, would take twice as long.
NEAR_RELATIVES = frozenset(
    {
        *("mistral", "smollm3", "phi3", "gemma3", "olmo2", "qwen3_moe", "llama4", "qwen3_5", "mpnet"),
        *("mt5", "marian", "pegasus"),
    }
)
SUITE_FAMILIES = tuple(kind for kind in TINY_CONFIGS if kind not in NEAR_RELATIVES)
LANGUAGE_MODELS = ("ForCausalLM", "ForConditionalGeneration", "MTModel", "LMHeadModel")  # ends of their classes' names
WRITERS = tuple(kind for kind, (_, model, _) in TINY_CONFIGS.items() if model.endswith(LANGUAGE_MODELS))


def tiny_model(kind: str, *, seed: int = 0, **changes: Any) -> tuple[Any, PreTrainedTokenizerFast]:
    """Return a random model and its tokenizer; biases and norms are random too, or errors in them would be hidden."""
    make_tokenizer, name, settings = TINY_CONFIGS[kind]
    tokenizer, model_class = make_tokenizer(), getattr(transformers, name)
    torch.manual_seed(seed)
    config = model_class.config_class(vocab_size=len(tokenizer), **{**settings, **changes})
    model = model_class(config, **family_of(config).load_arguments)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:  # a weight of one dimension is a norm's
                parameter.copy_(float(name.endswith("weight")) + 0.1 * torch.randn_like(parameter))
    return model, tokenizer


def tiny_chat_model(*, seed: int = 0) -> tuple[Any, PreTrainedTokenizerFast]:
    """Return a random Llama with room for the tokens of a chat template, and the tokenizer that has it."""
    tokenizer, (model, _) = chat_pieces(), tiny_model("llama", seed=seed, max_position_embeddings=CHAT_POSITIONS)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    return model, tokenizer
