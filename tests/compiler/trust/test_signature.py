"""What is not what was signed is refused, by Python and by the runner, before its code runs."""

import random
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from support.signed_bundle import SignedBundle, load

from edgec.compiler import Bundle
from edgec.compiler.bundle.bundle import sign_bundle
from edgec.compiler.cli.main import main
from edgec.compiler.codegen.link import link_shared
from edgec.compiler.errors import TrustError
from edgec.compiler.trust.keys import new_key
from edgec.compiler.trust.signature import SIGNATURE, parse_signature
from edgec.targets import load_target


@pytest.fixture
def copy(signed: SignedBundle, tmp_path: Path) -> Path:
    return Path(shutil.copytree(signed.path, tmp_path / "copy.edgec"))


def refused(signed: SignedBundle, bundle: Path, words: str, policy: Path | None = None) -> None:
    """Both refuse it, in one line."""
    with pytest.raises(TrustError) as caught:
        load(bundle)
    assert words in str(caught.value)
    code, line = signed.run(bundle, policy=policy)
    assert code == caught.value.exit_code == 8
    assert words in line
    assert line.startswith("run: error: ")
    assert line.count("\n") == 1


def test_a_signed_bundle_runs(signed: SignedBundle) -> None:
    bundle = load(signed.path)
    assert bundle.signature is not None
    assert bundle.signature.keys == (signed.key.public,)
    assert set(bundle.signature.files) == {*bundle.manifest.files, "manifest.json"}
    assert signed.run(signed.path) == (0, "")


def test_flipped_bits(signed: SignedBundle, copy: Path) -> None:
    """Some of each file; tests/benchmarks/flip_every_bit.py flips them all."""
    chance = random.Random(1)
    for file in [path for path in sorted(copy.rglob("*")) if path.is_file()]:
        data = file.read_bytes()
        for place in chance.sample(range(8 * len(data)), 6):
            changed = bytearray(data)
            changed[place // 8] ^= 1 << place % 8
            file.write_bytes(changed)
            refused(signed, copy, "bundle ")
        file.write_bytes(data)
    assert signed.run(copy)[0] == 0


def _line(text: str, number: int, change: Callable[[str], str]) -> str:
    lines = text.splitlines(keepends=True)
    lines[number] = change(lines[number])
    return "".join(lines)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("signature 1", "signature 0"),
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text + "\n",
        lambda text: text[:-1],
        lambda text: "",
        lambda text: text[: text.index("ed25519")],
        lambda text: text + text[text.index("ed25519") :],
        lambda text: _line(text, 2, str.upper),
        lambda text: _line(text, 2, lambda line: line + line),
        lambda text: _line(text, 2, lambda line: line.replace(" model.so", " ../model.so")),
        lambda text: _line(text, 1, lambda line: ""),
        lambda text: _line(text, 1, lambda line: line.replace(" manifest", "  manifest")),
        lambda text: _line(text, 1, lambda line: line.replace("sha256 ", "sha256 \0")),
        lambda text: _line(text, -1, lambda line: line.replace("ed25519", "ed25518")),
        lambda text: _line(text, -1, lambda line: line[:-3] + "\n"),
    ],
)
def test_a_changed_signature(
    signed: SignedBundle, copy: Path, change: Callable[[str], str]
) -> None:
    file = copy / SIGNATURE
    file.write_bytes(change(file.read_text()).encode())
    refused(signed, copy, "get the bundle again")


def test_files_that_differ_are_named(signed: SignedBundle, copy: Path) -> None:
    key = str(signed.key.public)
    (copy / "vectors" / "extra.npy").write_bytes(b"")
    refused(signed, copy, "vectors/extra.npy is an extra file that was not signed; remove it")
    refused(signed, copy, key)
    (copy / "vectors" / "extra.npy").unlink()
    (copy / "link").symlink_to("/etc")
    refused(signed, copy, "link is an extra file")
    (copy / "link").unlink()
    vector = copy / "vectors/0/input-0.npy"
    data = vector.read_bytes()
    vector.write_bytes(data + b"x")
    refused(signed, copy, "vectors/0/input-0.npy is not the file that was signed")
    vector.unlink()
    refused(signed, copy, "vectors/0/input-0.npy is missing")
    outside = copy.parent / "x.npy"
    outside.write_bytes(data)
    vector.symlink_to(outside)
    with pytest.raises(TrustError, match=r"input-0\.npy is no file"):
        load(copy)
    assert signed.run(copy)[0] == 8


def test_nothing_of_a_refused_library_runs(signed: SignedBundle, copy: Path) -> None:
    """What would run first when a library is loaded leaves a trace: only if it is unsigned."""
    trace, source = copy.parent / "trace", copy.parent / "evil.c"
    source.write_text(
        "#include <fcntl.h>\n__attribute__((constructor)) static void run(void) "
        f'{{ open("{trace}", O_CREAT | O_WRONLY, 0600); }}\n'
    )
    link_shared([source], copy / "model.so", load_target("native"), checked=False)
    refused(signed, copy, "model.so is not the file that was signed")
    assert not trace.exists()
    (copy / SIGNATURE).unlink()
    assert signed.run(copy)[0] == 4
    assert trace.exists()


def test_sign_a_bundle_that_is_there(signed: SignedBundle, copy: Path) -> None:
    """Rotation: the new key signs beside the old one; the same for a tar."""
    other = new_key("other")
    keys = {signed.key.public, other.public}
    found = sign_bundle(copy, [other])
    assert found.signature is not None
    assert set(found.signature.keys) == keys
    assert signed.run(copy) == (0, "")
    # Other files: the old signature is not true of them.
    (copy / "vectors/0/input-0.npy").unlink()
    with pytest.raises(TrustError):
        sign_bundle(copy, [other])


def test_the_command_line(
    signed: SignedBundle, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (copy / SIGNATURE).unlink()
    assert Bundle.load(copy).signature is None
    assert main(["sign", str(copy), "--key", "maker"]) == 0
    assert main(["verify", str(copy)]) == 0
    assert f"signed by {signed.key.public}: this machine has no policy" in capsys.readouterr().out
    assert main(["sign", str(copy), "--key", "makers"]) == 4
    assert "did you mean maker?" in capsys.readouterr().err
    assert main(["sign", str(copy)]) == 2
    (copy / "extra").touch()
    assert main(["verify", str(copy)]) == 8
    assert "extra is an extra file" in capsys.readouterr().err


def test_a_tar(signed: SignedBundle, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name in ("manifest.json", "model.so", "vectors"):
            tar.add(signed.path / name, name)
    assert Bundle.load(tmp_path / "x.tar").signature is None
    again = sign_bundle(tmp_path / "x.tar", [signed.key])
    assert again.signature is not None
    assert again.signature.keys == (signed.key.public,)


def test_order_and_number_of_keys(signed: SignedBundle) -> None:
    text = (signed.path / SIGNATURE).read_bytes()
    start = text.index(b"ed25519")
    with pytest.raises(TrustError, match="damaged"):
        parse_signature(text[:start] + 17 * text[start:], signed.path)
