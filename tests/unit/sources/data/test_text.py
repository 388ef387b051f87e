"""Text as windows or lines of tokens, from files of every kind."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from fewbits.errors import SourceError
from fewbits.sources import load_data, with_selection
from fewbits.sources.base.spec import parse

LINES = ["one two", "", "three", "four five six seven"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Work in a folder with 100 tokens in each form, and a text."""
    monkeypatch.chdir(tmp_path)
    np.save("t.npy", np.arange(100, dtype=np.uint16))
    np.savez("t.npz", tokens=np.arange(100, dtype=np.int32))
    np.save("rows.npy", np.arange(24).reshape(6, 4))
    (tmp_path / "t.txt").write_bytes(bytes(range(32, 132 - 6)) + b"\x80\x81")
    (tmp_path / "lines.txt").write_text("\n".join(LINES))
    return tmp_path


def tokens(data, split="test", **options):
    return torch.cat([batch["input_ids"] for batch in data.batches(split, **options)])


@pytest.mark.parametrize("name", ["t.npy", "t.npz"])
def test_windows_come_in_order_and_do_not_overlap(here, name):
    data = load_data(f"text:{name}?tokens=8")
    (first, *_) = data.batches("test")
    assert list(first) == ["input_ids"]
    assert first["input_ids"].dtype == torch.int64
    assert first["input_ids"].shape == (8, 8)  # 8 samples in a batch by default
    assert torch.equal(tokens(data), torch.arange(96).reshape(12, 8))  # 4 tokens are left over
    assert [len(b["input_ids"]) for b in data.batches("test", 5)] == [5, 5, 2]
    assert torch.equal(tokens(load_data(f"text:{name}?tokens=8&samples=2")), tokens(data)[:2])


def test_calibration_windows_are_drawn_by_the_seed(here):
    drawn = [
        tokens(load_data(f"text:t.npy?tokens=5&samples=6&seed={seed}"), "calibration")
        for seed in (0, 0, 1)
    ]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    for part in drawn:
        starts = part[:, 0].tolist()
        assert len(set(starts)) == 6
        assert all(start % 5 == 0 for start in starts)
        assert torch.equal(part, part[:, :1] + torch.arange(5))


def test_both_forms_of_the_options_say_the_same(here):
    short, long = (
        load_data(f"text:t.npy{s}") for s in (":tokens=7,samples=3", "?tokens=7&samples=3")
    )
    assert torch.equal(tokens(short), tokens(long))
    assert tokens(short).shape == (3, 7)
    with pytest.raises(SourceError, match="after '\\?' and after ':'"):
        load_data("text:t.npy:tokens=7?samples=3")
    with pytest.raises(SourceError, match=r"unknown option 'token'.*Did you mean 'tokens'"):
        load_data("text:t.npy:token=7")
    assert parse("text:a:b").with_short_options().target == "a:b"  # no options


def test_a_file_whose_name_looks_like_options(here):
    np.save("a:tokens=3.npy", np.arange(4))
    assert tokens(load_data("text:a:tokens=3.npy?tokens=2")).tolist() == [[0, 1], [2, 3]]


def test_rows_of_an_array_are_samples(here):
    assert torch.equal(tokens(load_data("text:rows.npy")), torch.arange(24).reshape(6, 4))


def test_bytes_need_no_tokenizer(here):
    data = load_data("text:t.txt?tokenizer=bytes&tokens=32")
    assert tokens(data)[0].tolist() == list(range(32, 64))
    short = load_data("text:t.txt?tokenizer=bytes")  # shorter than 512 tokens: one window
    assert tokens(short).shape == (1, 96)


def test_lines_are_samples_that_are_padded_in_their_batch(here):
    data = load_data("text:lines.txt?lines=sentences&tokenizer=bytes&tokens=9")
    first, last = data.batches("test", 2)
    assert first["input_ids"].shape == (2, 7)
    assert first["attention_mask"].tolist() == [[1] * 7, [1] * 5 + [0] * 2]
    assert bytes(first["input_ids"][1].tolist()) == b"three\0\0"
    assert list(last) == ["input_ids"]  # nothing to pad
    assert last["input_ids"].shape == (1, 9)  # cut


def test_encoder_decoders_get_labels(here):
    (here / "t5").mkdir()
    (here / "t5" / "config.json").write_text(json.dumps({"is_encoder_decoder": True}))
    name = "text:lines.txt?lines&tokenizer=bytes"
    (batch,) = load_data(name, "transformers:./t5").batches("test")
    labels = batch["labels"]
    assert torch.equal(labels[batch["attention_mask"].bool()], batch["input_ids"][labels != -100])
    assert (labels[~batch["attention_mask"].bool()] == -100).all()
    assert "labels" not in next(iter(load_data(f"{name}&labels=none", "t5").batches("test")))
    assert "labels" in next(iter(load_data(f"{name}&labels=inputs").batches("test")))


def test_one_file_is_one_split_under_whatever_options(here):
    data = load_data("text:t.npy?tokens=8")
    assert data.one_loader
    assert data.shares_samples(load_data("text:./t.npy:tokens=5"))
    assert not data.shares_samples(load_data("text:t.npz"))
    apart = with_selection(data)
    parts = [set(map(tuple, tokens(apart, n).tolist())) for n in ("calibration", "selection")]
    assert parts[0]
    assert parts[1]
    assert not parts[0] & parts[1]


def test_the_tokenizer_of_the_folder(here):
    tokenizers = pytest.importorskip("tokenizers")
    transformers = pytest.importorskip("transformers")
    words = {"<pad>": 0, "one": 1, "two": 2, "three": 3, "<unk>": 4}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", unk_token="<unk>"
    )
    made.save_pretrained("net")
    for data in (
        load_data("text:lines.txt?tokens=4", "./net"),
        load_data("text:lines.txt?tokens=4", "transformers:./net"),
        load_data("text:lines.txt?tokens=4&tokenizer=net", "mynet:build"),
    ):
        assert tokens(data).tolist() == [[1, 2, 3, 4]]
    lines = load_data("text:lines.txt?lines=sentences&tokens=3", "./net")
    (batch,) = lines.batches("test")
    assert batch["input_ids"].tolist() == [[1, 2, 0], [3, 0, 0], [4, 4, 4]]
    with pytest.raises(SourceError, match=r"no tokenizer could be read from './none'"):
        load_data("text:lines.txt", "transformers:./none")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("text:", "Write it as 'text:book.txt'"),
        ("text:nowhere.txt", "does not exist"),
        ("text:lines.txt", "needs a tokenizer.*tokenizer=bytes"),
        ("text:t.txt?tokenizer=./none", "not a text in UTF-8"),
        ("text:t.npy?tokenizer=bytes", "nothing to tokenize"),
        ("text:t.npy?lines", "nothing to tokenize"),
        ("text:floats.npy", "expected numbers of tokens"),
        ("text:negative.npy", "outside"),
        ("text:other.npz", "it has: y"),
        ("text:one.npy", "less than two tokens"),
        ("text:objects.npy", "without pickles"),
        ("text:t.npy?tokens=0", "an integer >= 1"),
        ("text:t.npy?seed=-1", "an integer >= 0"),
        ("text:t.npy?lines=words", "'lines' must be true or false"),
    ],
)
def test_what_cannot_be_read(here, source, message):
    np.save("floats.npy", np.zeros(9))
    np.save("negative.npy", np.array([3, -1]))
    np.savez("other.npz", y=np.arange(9))
    np.save("one.npy", np.array([3]))
    np.save("objects.npy", np.array([{}, {}]), allow_pickle=True)
    with pytest.raises(SourceError, match=message):
        load_data(source)
