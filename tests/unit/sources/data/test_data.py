"""Data by name: shapes, splits that never overlap, and clear errors for what is damaged."""

from __future__ import annotations

import gzip
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

from fewbits.errors import ConfigError, MissingExtraError, SourceError
from fewbits.sources import ArraySplit, DataSource, Normalization, StreamSplit, load_data

RNG = np.random.default_rng(0)


def _all(data, split, **settings):
    batches = list(data.batches(split, **settings))
    return torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])


def _idx(path, array, zipped=False):
    head = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    data = head + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(data) if zipped else data)


def _pictures(root, classes, count=3, size=(6, 4)):
    for value, name in enumerate(classes):
        (root / name).mkdir(parents=True, exist_ok=True)
        for k in range(count):
            Image.new("RGB", size, (value * 10, k, 7)).save(root / name / f"{k}.png")


# digits


def test_digits_are_divided_once_and_for_all():
    data = load_data("digits")
    train, train_labels = _all(data, "train")
    test, test_labels = _all(data, "test")
    assert train.shape == (1348, 1, 8, 8)
    assert test.shape == (449, 1, 8, 8)
    assert train.dtype == torch.float32
    assert train_labels.dtype == torch.int64
    assert set(test_labels.tolist()) == set(range(10))
    assert float(train.mean()) == pytest.approx(0, abs=1e-2)
    assert float(train.std()) == pytest.approx(1, abs=1e-2)
    assert test_labels[:8].tolist() == _all(load_data("digits"), "test")[1][:8].tolist()
    assert "pixels / 16" in data.preprocessing


def test_digits_splits_never_overlap_and_calibration_is_training_data():
    data = load_data("digits")
    train = {x.numpy().tobytes() for x in _all(data, "train")[0]}
    calibration = {x.numpy().tobytes() for x in _all(data, "calibration", limit=500, seed=3)[0]}
    test = {x.numpy().tobytes() for x in _all(data, "test")[0]}
    assert calibration <= train
    assert len(calibration) == 500
    assert not test & train


# batches


def test_batches_can_be_read_again_and_a_seed_shuffles_the_same_way():
    data = load_data("digits")
    batches = data.batches("train", batch_size=100, limit=250, seed=1)
    assert len(batches) == 3
    assert [len(y) for _, y in batches] == [100, 100, 50]
    first, again = (torch.cat([y for _, y in batches]) for _ in range(2))
    assert torch.equal(first, again)
    assert torch.equal(first, _all(data, "train", limit=250, seed=1)[1])
    assert not torch.equal(first, _all(data, "train", limit=250, seed=2)[1])
    in_order = _all(data, "train", limit=250)[1]
    assert torch.equal(in_order, data.train.labels[:250])


@pytest.mark.parametrize("settings", [{"batch_size": 0}, {"limit": 0}])
def test_sizes_below_one_are_refused(settings):
    with pytest.raises(ConfigError, match="at least 1"):
        load_data("digits").batches("train", **settings)


def test_a_missing_split_is_named():
    data = DataSource("mine", test=StreamSplit(list))
    with pytest.raises(SourceError, match=r"no train split; it has: test"):
        data.split("train")
    with pytest.raises(SourceError, match="no calibration split"):
        data.split("calibration")
    with pytest.raises(ConfigError, match="split"):
        data.split("validation")


def test_normalization_is_per_channel_and_checked():
    normal = Normalization(1 / 255, (0.5, 0.0), (0.5, 2.0))
    inputs = torch.full((1, 2, 1, 1), 255, dtype=torch.uint8)
    assert normal(inputs).flatten().tolist() == [1.0, 0.5]
    assert str(normal) == "pixels / 255, minus 0.5, 0, over 0.5, 2"
    with pytest.raises(SourceError, match="mean has 2 numbers for inputs of 3 channels"):
        normal(torch.zeros(1, 3, 2, 2))
    with pytest.raises(SourceError, match="std must be positive"):
        Normalization(std=(0.0,))


# npz


def test_npz_of_one_piece_is_divided(tmp_path):
    x, y = RNG.integers(0, 256, (40, 1, 3, 3)).astype(np.uint8), np.arange(40) % 4
    x[:, 0, 0, 0] = np.arange(40)
    np.savez(tmp_path / "d.npz", x=x, y=y)
    data = load_data(f"{tmp_path / 'd.npz'}?test=0.25")
    (train, _), (test, _) = _all(data, "train"), _all(data, "test")
    assert (len(train), len(test), data.classes) == (30, 10, 4)
    numbers = [set((part[:, 0, 0, 0] * 255).round().int().tolist()) for part in (train, test)]
    assert numbers[0] | numbers[1] == set(range(40))
    assert "pixels / 255" in data.preprocessing


def test_npz_with_its_own_splits_keeps_float_values(tmp_path):
    x = RNG.normal(size=(6, 5))
    np.savez(tmp_path / "d.npz", x_train=x, y_train=np.zeros(6), x_test=-x, y_test=np.ones(6))
    data = load_data(f"npz:{tmp_path / 'd.npz'}?mean=1&std=2")
    torch.testing.assert_close(
        _all(data, "test")[0], torch.from_numpy((-x - 1) / 2).float(), rtol=1e-6, atol=1e-6
    )
    assert data.classes == 2


def test_npz_of_tokens_stays_integers(tmp_path):
    x = RNG.integers(0, 50_000, (40, 3)).astype(np.int32)
    np.savez(tmp_path / "d.npz", x=x, y=np.arange(40) % 4)
    data = load_data(f"{tmp_path / 'd.npz'}?test=0.25")
    inputs, _ = _all(data, "train")
    assert inputs.dtype == torch.int64
    assert {tuple(row) for row in inputs.tolist()} < {tuple(row) for row in x.tolist()}
    for query in ("?mean=0", "?dtype=float32"):
        inputs, _ = _all(load_data(f"{tmp_path / 'd.npz'}{query}"), "train")
        assert inputs.dtype == torch.float32


def test_npz_without_labels_gives_inputs_only(tmp_path):
    x = np.arange(12).reshape(6, 2)
    np.savez(tmp_path / "d.npz", x_train=x, x_test=x + 100)
    data = load_data(str(tmp_path / "d.npz"))
    assert data.classes is None
    assert "no labels" in data.preprocessing
    (batch,) = data.batches("train")
    assert torch.equal(batch, torch.from_numpy(x))


@pytest.mark.parametrize(
    ("arrays", "query", "message"),
    [
        ({"x": np.zeros((3, 2)), "y": [0, 1, 5]}, "?classes=3", "label 5 of sample 2"),
        ({"x": np.zeros((3, 2)), "y": [0, -1, 0]}, "", "label -1 of sample 1"),
        ({"x": np.zeros((3, 2)), "y": [0, 0.5, 0]}, "", "not integer class numbers"),
        ({"x": np.zeros((3, 2)), "y": [[0], [1], [1]]}, "", "labels have shape"),
        ({"x": np.zeros((3, 2)), "y": [0, 1]}, "", "3 samples but y has 2"),
        ({"x": np.zeros((0, 2))}, "", "0 samples but no labels"),
        ({"x": np.array(["a", "b"]), "y": [0, 1]}, "", "expected numbers"),
        ({"labels": [0], "inputs": [0]}, "", "no array x or x_train; it has: inputs, labels"),
        ({}, "", "it has: none"),
        ({"x": np.zeros((1, 2)), "y": [0]}, "", "too few"),
        ({"x": np.zeros((3, 2)), "y": [0, 1, 1]}, "?tset=0.5", "Did you mean 'test'"),
        ({"x": np.zeros((3, 2)), "y": [0, 1, 1]}, "?test=2", "between 0 and 1"),
        ({"x": np.zeros((3, 2)), "y": [0, 1, 1]}, "?mean=a", "numbers separated by commas"),
        ({"x": np.zeros((3, 2)), "y": [0, 1, 1]}, "?std=nan", "numbers separated by commas"),
    ],
)
def test_wrong_npz(tmp_path, arrays, query, message):
    np.savez(tmp_path / "d.npz", **arrays)
    with pytest.raises(SourceError, match=message):
        load_data(f"{tmp_path / 'd.npz'}{query}")


@pytest.mark.parametrize("content", [b"", b"nonsense", b"PK\x03\x04broken"])
def test_damaged_npz(tmp_path, content):
    (tmp_path / "d.npz").write_bytes(content)
    with pytest.raises(SourceError, match="cannot be read"):
        load_data(str(tmp_path / "d.npz"))


def test_a_single_array_is_no_npz(tmp_path):
    with (tmp_path / "d.npz").open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(SourceError, match="is a single array"):
        load_data(str(tmp_path / "d.npz"))


def test_npz_with_pickles_or_absent(tmp_path):
    np.savez(tmp_path / "d.npz", x=np.array([{}, {}]), y=[0, 1])
    with pytest.raises(SourceError, match="without pickles"):
        load_data(str(tmp_path / "d.npz"))
    with pytest.raises(SourceError, match="does not exist"):
        load_data("nowhere.npz")


# idx


@pytest.mark.parametrize("zipped", [False, True])
def test_idx_folder(tmp_path, zipped):
    end = ".gz" if zipped else ""
    images = RNG.integers(0, 256, (5, 4, 3))
    for prefix in ("train", "t10k"):
        _idx(tmp_path / f"{prefix}-images-idx3-ubyte{end}", images, zipped)
        _idx(tmp_path / f"{prefix}-labels-idx1-ubyte{end}", np.arange(5), zipped)
    data = load_data(str(tmp_path))
    x, y = _all(data, "test")
    assert x.shape == (5, 1, 4, 3)
    assert torch.equal((x[:, 0] * 255).round().int(), torch.from_numpy(images).int())
    assert y.tolist() == [0, 1, 2, 3, 4]
    assert data.classes == 5


def test_damaged_idx(tmp_path):
    images, labels = tmp_path / "train-images-idx3-ubyte", tmp_path / "train-labels-idx1-ubyte"
    _idx(images, np.zeros((5, 4, 3)))
    with pytest.raises(SourceError, match="train-labels file is missing"):
        load_data(str(tmp_path))
    _idx(labels, np.zeros(4))
    with pytest.raises(SourceError, match="does not fit the 4 labels"):
        load_data(str(tmp_path))
    _idx(labels, np.full(5, 12))
    with pytest.raises(SourceError, match="label 12 of sample 0"):
        load_data(f"{tmp_path}?classes=10")
    images.write_bytes(images.read_bytes()[:-1])
    with pytest.raises(SourceError, match=r"has 75 bytes .* states 76"):
        load_data(str(tmp_path))
    images.write_bytes(b"\x00\x00\x0d\x03" + bytes(12))
    with pytest.raises(SourceError, match="not an idx file of unsigned bytes"):
        load_data(str(tmp_path))
    images.unlink()
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(bytes(100))[:-9])
    with pytest.raises(SourceError, match="cannot be read"):
        load_data(str(tmp_path))


def test_idx_without_files(tmp_path):
    with pytest.raises(SourceError, match="contains no idx files"):
        load_data(f"idx:{tmp_path}")
    with pytest.raises(SourceError, match="does not exist"):
        load_data("idx:nowhere")


# picture folders


def test_folder_is_divided_resized_and_numbered(tmp_path):
    _pictures(tmp_path, ["dog", "cat"], count=6)
    data = load_data(f"{tmp_path}?size=4&mean=0.5&std=0.5")
    (train, train_labels), (test, test_labels) = _all(data, "train"), _all(data, "test")
    assert train.shape == (9, 3, 4, 4)
    assert (len(test), data.classes) == (3, 2)
    reds = torch.cat([train, test])[:, 0, 0, 0] * 0.5 + 0.5  # "cat" is class 0, the second value
    assert torch.equal((reds * 255).round() == 0, torch.cat([train_labels, test_labels]) == 1)
    assert "4x4" in data.preprocessing


def test_folder_with_its_own_test_split_and_grey(tmp_path):
    _pictures(tmp_path / "train", ["a", "b"])
    _pictures(tmp_path / "val", ["a"], count=2)
    data = load_data(f"folder:{tmp_path}?channels=1")
    assert _all(data, "train")[0].shape == (6, 1, 4, 6)
    assert _all(data, "test")[1].tolist() == [0, 0]


def test_resize_keeps_the_shape_and_crop_takes_the_middle(tmp_path):
    (tmp_path / "a").mkdir()
    picture = np.zeros((8, 16, 3), np.uint8)
    picture[:, 4:12] = 255
    for k in range(2):
        Image.fromarray(picture).save(tmp_path / "a" / f"{k}.png")
    x, _ = _all(load_data(f"{tmp_path}?resize=8&size=8&test=0.5"), "train")
    assert x.shape == (1, 3, 8, 8)
    assert float(x.min()) == 1


def test_wrong_folders(tmp_path):
    with pytest.raises(SourceError, match="no subfolders"):
        load_data(str(tmp_path))
    (tmp_path / "a").mkdir()
    with pytest.raises(SourceError, match="no images"):
        load_data(str(tmp_path))
    with pytest.raises(SourceError, match="smaller than size"):
        load_data(f"{tmp_path}?size=8&resize=4")
    with pytest.raises(SourceError, match="an integer >= 1"):
        load_data(f"{tmp_path}?size=0")
    with pytest.raises(SourceError, match="one of 1, 3"):
        load_data(f"{tmp_path}?channels=2")
    _pictures(tmp_path / "train", ["a"])
    _pictures(tmp_path / "test", ["b"])
    with pytest.raises(SourceError, match="class 'b' is not among the training classes"):
        load_data(str(tmp_path))


def test_pictures_that_differ_or_are_damaged_are_named(tmp_path):
    for split in ("train", "test"):
        _pictures(tmp_path / split, ["a", "b"], size=(4, 4))
    odd = tmp_path / "train" / "b" / "2.png"
    Image.new("RGB", (9, 4)).save(odd)
    data = load_data(str(tmp_path))
    with pytest.raises(SourceError, match=r"differ in size.*2\.png is 9x4.*size=SIDE"):
        _all(data, "train")
    odd.write_bytes(b"no picture")
    with pytest.raises(SourceError, match=r"2\.png cannot be decoded"):
        _all(data, "train")
    assert len(_all(data, "test")[0]) == 6


def test_without_pillow_the_extra_is_named(tmp_path, monkeypatch):
    _pictures(tmp_path, ["a"])
    monkeypatch.setitem(sys.modules, "PIL", None)
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(MissingExtraError, match=r"'PIL'.*fewbits\[image\]"):
        _all(load_data(str(tmp_path)), "train")


# datasets


class FakeRows:
    column_names = ("img", "label")

    def __init__(self, count):
        self.count = count

    def __getitem__(self, key):
        if key == "label":
            return [k % 2 for k in range(self.count)]
        return {"img": Image.new("RGB", (5, 5), (key, 0, 0)), "label": key % 2}


def test_datasets_by_name(monkeypatch):
    asked = []

    def load_dataset(name, config):
        asked.append((name, config))
        return {"train": FakeRows(4), "test": FakeRows(2)}

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    data = load_data("datasets:org/pets:small?size=5")
    assert asked == [("org/pets", "small")]
    x, y = _all(data, "train")
    assert x.shape == (4, 3, 5, 5)
    assert (x[:, 0, 0, 0] * 255).round().tolist() == [0, 1, 2, 3]
    assert y.tolist() == [0, 1, 0, 1]
    with pytest.raises(SourceError, match="it has img, label"):
        load_data("datasets:pets?label=breed")
    with pytest.raises(SourceError, match="train, test"):
        load_data("datasets:pets?train=a&test=b")


def test_datasets_absent(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r"fewbits\[hf\]"):
        load_data("datasets:mnist")


# module:callable


@pytest.fixture
def module(monkeypatch):
    made = ModuleType("persons_data")
    monkeypatch.setitem(sys.modules, "persons_data", made)
    return made


LOADER = DataLoader(TensorDataset(torch.arange(10.0)[:, None], torch.arange(10) % 2), batch_size=4)


def test_own_loaders_in_every_form(module):
    module.both = lambda: (LOADER, [(torch.ones(2, 1), torch.zeros(2).long())])
    assert len(_all(load_data("persons_data:both"), "test")[0]) == 2
    module.named = lambda: {"train": LOADER, "calibration": lambda: iter(list(LOADER)[:1])}
    named = load_data("persons_data:named")
    for _ in range(2):
        assert len(_all(named, "calibration")[0]) == 4
    module.source = lambda: DataSource("own", ArraySplit(torch.ones(3, 1), torch.zeros(3).long()))
    assert len(_all(load_data("persons_data:source"), "train")[0]) == 3
    module.only = lambda: LOADER
    only = load_data("persons_data:only")
    assert only.one_loader
    assert len(_all(only, "test")[0]) == 10


def test_a_limit_cuts_own_loaders_inside_a_batch(module):
    module.only = lambda: LOADER
    x, y = _all(load_data("persons_data:only"), "train", limit=6)
    assert x.flatten().tolist() == [0, 1, 2, 3, 4, 5]
    assert len(y) == 6
    module.dicts = lambda: [{"a": torch.ones(4, 2), "n": torch.tensor(1)}] * 3
    batches = list(load_data("persons_data:dicts").batches("train", limit=5))
    assert [len(b["a"]) for b in batches] == [4, 1]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (7, "gave a int"),
        ("text", "gave a str"),
        (iter([]), "read only once"),
        ({"train": [], "exam": []}, "unknown split 'exam'"),
    ],
)
def test_own_data_of_no_use(module, value, message):
    module.bad = lambda: value
    with pytest.raises(SourceError, match=message):
        load_data("persons_data:bad")


def test_unknown_names():
    with pytest.raises(SourceError, match=r"Did you mean 'digits'\?"):
        load_data("digit")
    with pytest.raises(SourceError, match="no module 'nowhere_at_all'"):
        load_data("nowhere_at_all:loaders")
    with pytest.raises(SourceError, match="None exist"):
        load_data("digits?seed=1")
