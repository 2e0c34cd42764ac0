"""Tokens, batches and pooled vectors: a text's vector does not depend on its batch."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from continual.backbones.backbone import Backbone
from continual.backbones.hub import Pooling
from continual.features.pooling import encode, pool
from continual.features.tokens import pad, shuffled_batches, sorted_batches, tokenize
from tasks import Text
from tests.helpers.tiny_models import POSITIONS
from tests.helpers.tiny_tasks import rows_of

PAIR = ("purr meow kitten", "bark")
LONG = "purr " * 500
TEXTS: list[Text] = ["wave", *rows_of("mood", 6).texts, "the of the of the of a with one purr meow whisker", ""]
LENGTHS = st.lists(st.integers(1, 30), max_size=80)


@given(LENGTHS, st.integers(1, 9), st.integers(0, 5))
def test_an_epoch_holds_every_row_once(lengths: list[int], size: int, seed: int) -> None:
    batches = shuffled_batches(lengths, size, torch.Generator().manual_seed(seed))
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    assert all(1 <= len(batch) <= size for batch in batches)
    assert len(batches) == -(-len(lengths) // size), "no epoch has more steps than it needs"
    assert batches == shuffled_batches(lengths, size, torch.Generator().manual_seed(seed))


def test_rows_beyond_one_sorting_window_occur_once() -> None:
    lengths = [i % 17 + 1 for i in range(250)]  # windows of 2 x 50 rows
    batches = shuffled_batches(lengths, 2, torch.Generator().manual_seed(0))
    assert sorted(i for batch in batches for i in batch) == list(range(250))
    assert batches != shuffled_batches(lengths, 2, torch.Generator().manual_seed(1))
    unlike = sum(abs(lengths[batch[0]] - lengths[batch[-1]]) for batch in batches)
    assert unlike < 50, "rows of like length meet"


@given(LENGTHS, st.integers(1, 9))
def test_inference_takes_every_row_once_by_length(lengths: list[int], size: int) -> None:
    order = [i for batch in sorted_batches(lengths, size) for i in batch]
    assert sorted(order) == list(range(len(lengths)))
    assert [lengths[i] for i in order] == sorted(lengths)


def alone(backbone: Backbone, text: Text) -> Tensor:
    return encode(backbone, tokenize(backbone, [text], max_length=32))[0]


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_a_row_in_a_batch_equals_the_row_alone(backbone: Backbone, pooling: Pooling) -> None:
    from dataclasses import replace

    pooled_so = replace(backbone, pooling=pooling)
    together = encode(pooled_so, tokenize(backbone, TEXTS, max_length=32))
    assert together.shape == (len(TEXTS), backbone.hidden_size)
    torch.testing.assert_close(together, torch.stack([alone(pooled_so, t) for t in TEXTS]), rtol=0, atol=1e-5)


def test_rows_of_several_batches_keep_their_order(bert: Backbone) -> None:
    texts = rows_of("animals", 150).texts
    features = encode(bert, tokenize(bert, texts, max_length=32))
    for i in (0, 63, 64, 149):
        torch.testing.assert_close(features[i], alone(bert, texts[i]), rtol=0, atol=1e-5)


def test_the_mean_is_over_a_texts_own_tokens_alone() -> None:
    hidden = torch.tensor([[[1.0, 2.0], [3.0, 6.0], [100.0, 100.0]], [[1.0, 1.0], [2.0, 2.0], [6.0, 0.0]]])
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    assert pool(hidden, mask, "mean").tolist() == [[2.0, 4.0], [3.0, 1.0]]
    assert pool(hidden, mask, "cls").tolist() == [[1.0, 2.0], [1.0, 1.0]]
    assert pool(hidden, mask, "last").tolist() == [[3.0, 6.0], [6.0, 0.0]]


def test_padding_is_masked_and_as_wide_as_the_longest(backbone: Backbone) -> None:
    tokens = tokenize(backbone, ["wave", "wave coral tide"], max_length=32)
    batch = pad(backbone, tokens, [0, 1])
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (2, max(tokens.lengths))
    assert batch["attention_mask"].sum(dim=1).tolist() == tokens.lengths
    assert set(batch["input_ids"][0, tokens.lengths[0] :].tolist()) == {backbone.tokenizer.pad_token_id}
    assert pad(backbone, tokens, [0])["input_ids"].shape == (1, tokens.lengths[0])


def test_token_types_distinguish_the_texts_of_a_pair(bert: Backbone, roberta: Backbone) -> None:
    types = tokenize(bert, [PAIR], max_length=32).types
    ids = bert.tokenizer(*PAIR)["input_ids"]
    assert types is not None
    assert types[0] == (0,) * (ids.index(bert.tokenizer.sep_token_id) + 1) + (1,) * 2
    assert tokenize(roberta, [PAIR], max_length=32).types is None
    batch = pad(bert, tokenize(bert, [PAIR, ("wave " * 5, "tide " * 9)], max_length=32), [0, 1])
    assert batch["token_type_ids"].shape == batch["input_ids"].shape


def test_a_pairs_second_text_and_order_matter(backbone: Backbone) -> None:
    vectors = encode(backbone, tokenize(backbone, [PAIR, PAIR[::-1], (PAIR[0], "wave")], max_length=32))
    assert not torch.allclose(vectors[0], vectors[1])
    assert not torch.allclose(vectors[0], vectors[2])


def test_pairs_and_single_texts_may_be_mixed(backbone: Backbone) -> None:
    mixed: list[Text] = ["wave", PAIR, "", ("", ""), "tide", ("sail", "")]
    features = encode(backbone, tokenize(backbone, mixed, max_length=32))
    torch.testing.assert_close(features, torch.stack([alone(backbone, t) for t in mixed]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("text", ["", " ", "\n\t", "\u200b", "\0", "🦜", "é" * 3, "\ud800"], ids=ascii)
def test_any_text_has_a_vector(backbone: Backbone, text: str) -> None:
    assert alone(backbone, text).isfinite().all()


@pytest.mark.parametrize("text", [LONG, (LONG, LONG), ("wave", LONG), (LONG, "wave")], ids=["one", "both", "b", "a"])
def test_texts_longer_than_the_positions_are_truncated(backbone: Backbone, text: Text) -> None:
    assert backbone.longest_input == POSITIONS
    tokens = tokenize(backbone, [text, "wave"], max_length=100_000)
    assert tokens.lengths[0] == POSITIONS, "as many tokens as the model takes are read"
    assert encode(backbone, tokens).isfinite().all()


@pytest.mark.parametrize("text", [LONG, (LONG, "wave")], ids=["one", "pair"])
@pytest.mark.parametrize("length", [8, 9, 12])
def test_max_length_holds_down_to_a_budgets_minimum(backbone: Backbone, text: Text, length: int) -> None:
    tokens = tokenize(backbone, [text], max_length=length)
    assert tokens.lengths[0] <= length
    assert encode(backbone, tokens).isfinite().all()


def test_the_longer_text_of_a_pair_is_truncated_first(bert: Backbone) -> None:
    (ids,) = tokenize(bert, [(LONG, "wave coral")], max_length=12).ids
    assert bert.tokenizer.decode(ids).count("wave coral") == 1


def test_no_texts_give_no_vectors(backbone: Backbone) -> None:
    assert encode(backbone, tokenize(backbone, [], max_length=32)).shape == (0, backbone.hidden_size)


def test_a_real_backbones_vectors_do_not_depend_on_their_batch(minilm: Backbone) -> None:
    texts: list[Text] = ["my card is lost", "the film was dull", PAIR, LONG]
    together = encode(minilm, tokenize(minilm, texts, max_length=64))
    assert together.shape == (4, 384)
    for text, vector in zip(texts, together, strict=True):
        expected = encode(minilm, tokenize(minilm, [text], max_length=64))[0]
        torch.testing.assert_close(vector, expected, rtol=0, atol=1e-5)
