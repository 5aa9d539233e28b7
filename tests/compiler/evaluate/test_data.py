"""What models are evaluated on: folders of classes, arrays with labels, and what does not fit."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgec.compiler.errors import BadInputError
from edgec.compiler.evaluate.data import open_data
from edgec.compiler.ir.signature import TensorSpec

IMAGE = (TensorSpec("x", (2, 3, 4, 4), "float32"),)
PAIRS = (TensorSpec("x", (2, 3), "float32"),)


def class_folders(folder: Path, names: tuple[str, ...], each: int = 2) -> Path:
    from PIL import Image

    for position, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for number in range(each):
            color = (50 * position, number, 0)
            Image.new("RGB", (4, 4), color).save(folder / name / f"{number}.png")
    return folder


@pytest.mark.parametrize(
    ("names", "labels"), [(("cat", "dog"), [0, 0, 1, 1]), (("10", "3"), [10, 10, 3, 3])]
)
def test_folders_are_classes(names: tuple[str, ...], labels: list[int], tmp_path: Path) -> None:
    data = open_data(class_folders(tmp_path / "d", names), IMAGE)
    batches = list(data.batches())
    assert [label for _, batch in batches for label in np.asarray(batch)] == labels
    assert batches[0][0]["x"].shape == (2, 3, 4, 4)
    # By default pixels are shares of white.
    assert batches[1][0]["x"][0, 0].max() == pytest.approx(50 / 255)
    assert len(list(data.batches(1))) == 1


def test_arrays_with_labels(tmp_path: Path) -> None:
    path = tmp_path / "d.npz"
    values = np.arange(15, dtype=np.float32).reshape(5, 3)
    np.savez(path, x=values, labels=np.array([4, 3, 2, 1, 0]))
    batches = list(open_data(path, PAIRS).batches())
    # An odd rest is left out.
    assert [np.asarray(labels).tolist() for _, labels in batches] == [[4, 3], [2, 1]]
    np.savez(path, x=values)
    assert [labels for _, labels in open_data(path, PAIRS).batches()] == [None, None]


def test_texts_become_classes(tmp_path: Path) -> None:
    path = tmp_path / "d.npz"
    values = np.zeros((2, 3), np.float32)
    texts = {"labels": np.array(["ba", "c"]), "characters": np.array(["_", "a", "b", "c"])}
    np.savez(path, x=values, **texts)
    data = open_data(path, PAIRS)
    assert data.labels is not None
    assert data.labels.tolist() == [[2, 1], [3, -1]]
    np.savez(path, x=values, labels=texts["labels"])
    with pytest.raises(BadInputError, match="an array `characters` must say"):
        open_data(path, PAIRS)
    np.savez(path, x=values, **texts | {"labels": np.array(["ba", "z"])})
    with pytest.raises(BadInputError, match="'z' of the labels is not among"):
        open_data(path, PAIRS)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.zeros((4, 3), np.float32), "labels": np.zeros(3, int)}, "one label for each"),
        ({"y": np.zeros((4, 3), np.float32)}, "x are expected"),
        ({"x": np.zeros((4, 9), np.float32)}, r"x \[N,3\] with N of at least 2 is expected"),
    ],
)
def test_arrays_that_do_not_fit(arrays: dict[str, Any], message: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", **arrays)
    with pytest.raises(BadInputError, match=message):
        open_data(tmp_path / "d.npz", PAIRS)


def test_folders_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="does not exist"):
        open_data(tmp_path / "none", PAIRS)
    folder = class_folders(tmp_path / "d", ("a",), each=1)
    with pytest.raises(BadInputError, match="holds 1 images in 1 class folders, one batch needs 2"):
        open_data(folder, IMAGE)
    (tmp_path / "d.npz").write_bytes(b"no zip")
    with pytest.raises(BadInputError, match="--data"):
        open_data(tmp_path / "d.npz", PAIRS)
