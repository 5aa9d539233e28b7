"""Every way for a GGUF file to be wrong is one clear line."""

from pathlib import Path

import numpy as np
import pytest
from support.gguf_files import write_gguf
from support.language_files import config_of, random_tensors

from edgec.compiler.errors import EdgecError, ModelFileError, UnsupportedModelError
from edgec.compiler.language.gguf_file import is_gguf, read_gguf
from edgec.compiler.language.gguf_model import read_gguf_model


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    config = config_of("llama") | {"vocab_size": 11, "num_hidden_layers": 1}
    path = tmp_path_factory.mktemp("gguf") / "m.gguf"
    write_gguf(path, config, random_tensors(config), {"ffn_gate.weight": "Q4_0"})
    return path.read_bytes()


def altered(content: bytes, tmp_path: Path, name: bytes, offset: int, new: bytes) -> Path:
    """Overwrite bytes behind the first place where a name stands."""
    start = content.index(name) + len(name) + offset
    path = tmp_path / "m.gguf"
    path.write_bytes(content[:start] + new + content[start + len(new) :])
    return path


def number(value: int, size: int = 8) -> bytes:
    return value.to_bytes(size, "little")


@pytest.mark.parametrize(
    ("name", "offset", "new", "error", "message"),
    [
        (b"GGUF", 0, number(9, 4), UnsupportedModelError, "version 9; read are versions 2 and 3"),
        (b"GGUF", 4, number(10**6), ModelFileError, "claims 1000000 tensors"),
        (b"GGUF", 12, number(2**63), ModelFileError, "claims 9223372036854775808 metadata"),
        (b"general.architecture", 4, number(2**60), ModelFileError, "takes 1152921504606846976"),
        (b"general.architecture", 0, number(99, 4), ModelFileError, "the unknown type 99"),
        (b"tokenizer.ggml.tokens", 8, number(2**50), ModelFileError, "claims 1125899906842624"),
        (b"tokenizer.ggml.token_type", 8, number(2**50), ModelFileError, "[0-9]+ are left"),
        # Of two dimensions.
        (b"blk.0.attn_k.weight", 0, number(7, 4), ModelFileError, "has 7 dimensions"),
        (b"blk.0.attn_k.weight", 4, number(2**40), ModelFileError, "ends at byte"),
        (b"blk.0.ffn_gate.weight", 4, number(33), ModelFileError, "blocks of 32 values of Q4_0"),
        (b"blk.0.attn_k.weight", 20, number(19, 4), UnsupportedModelError, r"IQ1_S \(1 tensors\)"),
        (b"blk.0.attn_k.weight", 20, number(77, 4), UnsupportedModelError, "types number 77"),
        (b"blk.0.attn_k.weight", 24, number(2**62), ModelFileError, "ends at byte"),
        (b"blk.0.attn_k.weight", 24, number(33), ModelFileError, "not aligned to 32 bytes"),
    ],
)
def test_lies(
    name: bytes,
    offset: int,
    new: bytes,
    error: type[EdgecError],
    message: str,
    content: bytes,
    tmp_path: Path,
) -> None:
    with pytest.raises(error, match=message):
        read_gguf(altered(content, tmp_path, name, offset, new))


def test_every_unknown_type_is_named_at_once(content: bytes, tmp_path: Path) -> None:
    once = altered(content, tmp_path, b"blk.0.attn_k.weight", 20, number(19, 4))
    both = altered(once.read_bytes(), tmp_path, b"blk.0.attn_v.weight", 20, number(35, 4))
    message = r"IQ1_S \(1 tensors\), TQ2_0 \(1 tensors\); read are F32, F16, .*, BF16"
    with pytest.raises(UnsupportedModelError, match=message):
        read_gguf(both)


def complaint(path: Path) -> str:
    try:
        model = read_gguf_model(path)
        for name in model.weights.names:
            model.weights.matrix(name)
    except EdgecError as error:
        return str(error)
    return ""


def test_whatever_happens_to_a_file_is_one_line(content: bytes, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    path = tmp_path / "m.gguf"
    header = content.index(b"blk.0.ffn_up.weight") + 60
    refused = 0
    for _ in range(200):
        data = bytearray(content)
        if random.random() < 0.2:
            del data[random.integers(len(data)) :]
        for _ in range(random.integers(1, 4)):
            place = int(random.integers(min(header, max(1, len(data)))))
            data[place : place + 1] = bytes([random.integers(256)])
        path.write_bytes(data)
        message = complaint(path)
        assert "\n" not in message
        refused += bool(message)
    assert refused > 100


def test_what_is_none(tmp_path: Path) -> None:
    path = tmp_path / "m.bin"
    for data in (b"", b"GGU", b"PK\x03\x04" + bytes(100)):
        path.write_bytes(data)
        assert not is_gguf(path)
        with pytest.raises(ModelFileError):
            read_gguf(path)
    with pytest.raises(ModelFileError, match="does not exist"):
        read_gguf(tmp_path / "no.gguf")
    with pytest.raises(ModelFileError, match="cannot be read: Is a directory"):
        read_gguf(tmp_path)
