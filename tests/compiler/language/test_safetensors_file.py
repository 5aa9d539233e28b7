"""Safetensors files are read as views; wrong ones are one clear line."""

import json

import numpy as np
import pytest
from support.language_files import safetensors_file

from edgec.compiler.errors import EdgecError, ModelFileError, UnsupportedModelError
from edgec.compiler.language.safetensors_file import parse_safetensors


def parse(data: bytes) -> dict[str, np.ndarray]:
    found = parse_safetensors(np.frombuffer(data, np.uint8), "m.safetensors")
    return {name: tensor.data for name, tensor in found.items()}


TENSORS = {
    "matrix": np.arange(6, dtype=np.float32).reshape(2, 3),
    "indices": np.arange(4)[None],
    "number": np.float32(2.5).reshape(()),
}


def test_tensors_are_read() -> None:
    read = parse(safetensors_file(TENSORS))
    assert list(read) == list(TENSORS)
    for name, values in TENSORS.items():
        np.testing.assert_array_equal(read[name], values)
        assert read[name].dtype == values.dtype


def with_header(header: object) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(8)


def entry(**changes: object) -> bytes:
    return with_header({"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}})


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "it has 0 bytes"),
        ((2**60).to_bytes(8, "little"), "its header claims 1152921504606846976 of 8 bytes"),
        (with_header(b"{"), "no JSON"),
        (with_header(b"[" * 5000), "no JSON"),
        (with_header([]), "no object"),
        (with_header({"x": 1}), "tensor x has no type"),
        (entry(shape=[3]), "lies at bytes 0 to 8"),
        (entry(shape=[-2]), r"has the shape \[-2\]"),
        (entry(data_offsets=[8, 16]), "lies at bytes 8 to 16"),
        (entry(data_offsets=[8, 0]), "lies at bytes"),
        (entry(shape=[2**62, 2**62]), "lies at bytes"),
    ],
)
def test_lies(data: bytes, message: str) -> None:
    with pytest.raises(ModelFileError, match=message):
        parse(data)


def test_unknown_types_are_named() -> None:
    with pytest.raises(UnsupportedModelError, match="tensor x has the data type F4; read are F64"):
        parse(entry(dtype="F4"))


def complaint(data: bytes) -> str:
    try:
        parse(data)
    except EdgecError as error:
        return str(error)
    return ""


def test_whatever_happens_to_a_file_is_one_line() -> None:
    random = np.random.default_rng(0)
    content = safetensors_file(TENSORS)
    for _ in range(200):
        data = bytearray(content)
        data[random.integers(len(data))] = random.integers(256)
        assert "\n" not in complaint(bytes(data[: random.integers(len(data) // 2, len(data))]))
