from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edgec.compiler.calibration.samples import open_samples
from edgec.compiler.errors import CalibrationError, UsageError
from edgec.compiler.frontend.preprocessing import Preprocess, parse_preprocess
from edgec.compiler.ir.signature import TensorSpec

IMAGE = TensorSpec("image", (2, 3, 4, 5), "float32")
MASK = TensorSpec("mask", (2, 4), "int64")


def some() -> Iterator[dict[str, np.ndarray]]:
    """For `module:function`."""
    for value in range(3):
        yield {"image": np.full((2, 3, 4, 5), value, np.float32)}


def test_an_array_is_cut_along_its_first_axis(tmp_path: Path) -> None:
    data = np.random.default_rng(0).standard_normal((7, 3, 4, 5)).astype(np.float32)
    np.save(tmp_path / "x.npy", data)
    samples = open_samples(str(tmp_path / "x.npy"), [IMAGE])
    assert samples.count == 3
    assert np.array_equal(np.concatenate([s["image"] for s in samples]), data[:6])
    assert len(list(samples.limited(2))) == 2


def test_several_inputs_go_by_name(tmp_path: Path) -> None:
    np.savez(
        tmp_path / "x.npz", image=np.zeros((4, 3, 4, 5), np.float32), mask=np.ones((4, 4), np.int64)
    )
    (first, _) = open_samples(str(tmp_path / "x.npz"), [IMAGE, MASK])
    assert first["mask"].shape == (2, 4)


def test_a_callable_gives_samples() -> None:
    values = [s["image"][0, 0, 0, 0] for s in open_samples(f"{__name__}:some", [IMAGE])]
    assert values == [0, 1, 2]


def test_images_are_prepared_as_stated(tmp_path: Path) -> None:
    images = pytest.importorskip("PIL.Image")
    for index in range(2):
        pixels = np.zeros((8, 10, 3), np.uint8)
        pixels[..., 0], pixels[..., 2] = 255, 51 * index
        images.fromarray(pixels).save(tmp_path / f"{index}.png")
    how = parse_preprocess("mean=0.5/0/0,std=0.5/1/1,color=rgb")
    (batch,) = open_samples(str(tmp_path), [IMAGE], how)
    assert batch["image"].shape == (2, 3, 4, 5)
    assert np.allclose(batch["image"][1, :, 0, 0], [1, 0, 0.2])
    (batch,) = open_samples(str(tmp_path), [IMAGE], Preprocess(color="bgr", scale=1))
    assert np.allclose(batch["image"][1, :, 0, 0], [51, 0, 255])
    last = TensorSpec("image", (1, 4, 5, 3), "float32")
    assert next(iter(open_samples(str(tmp_path), [last])))["image"].shape == (1, 4, 5, 3)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((4, 3, 4, 6), np.float32), r"image \[4,3,4,6\] float32 was given, image \[N,3"),
        (np.zeros((1, 3, 4, 5), np.float32), "N of at least 2"),
        (np.zeros((2, 3, 4, 5), np.int32), "int32 was given"),
        (np.full((2, 3, 4, 5), np.nan, np.float32), "NaN or infinity"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, array: np.ndarray, message: str) -> None:
    np.save(tmp_path / "x.npy", array)
    with pytest.raises(CalibrationError, match=message):
        open_samples(str(tmp_path / "x.npy"), [IMAGE])


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    (tmp_path / "text.npy").write_text("no")
    (tmp_path / "empty").mkdir()
    for source, message in (
        ("nowhere.npy", "cannot be read"),
        ("nowhere", "does not exist"),
        (str(tmp_path / "text.npy"), "no NumPy file"),
        (str(tmp_path / "empty"), "has neither images"),
    ):
        with pytest.raises(CalibrationError, match=message):
            open_samples(source, [IMAGE])
    np.save(tmp_path / "x.npy", np.zeros((2, 3, 4, 5), np.float32))
    with pytest.raises(CalibrationError, match="has no names"):
        open_samples(str(tmp_path / "x.npy"), [IMAGE, MASK])
    with pytest.raises(UsageError, match="has no function nothing"):
        open_samples(f"{__name__}:nothing", [IMAGE])
    with pytest.raises(UsageError, match="cannot be imported"):
        open_samples("no_such_module:f", [IMAGE])


@pytest.mark.parametrize("text", ["means=0.5", "resize=zoom", "mean=a"])
def test_wrong_preprocessing_is_named(text: str) -> None:
    with pytest.raises(UsageError, match="--preprocess"):
        parse_preprocess(text)
