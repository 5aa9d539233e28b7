"""An encrypted bundle: its weights are in memory of those it is for, and nowhere else."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx.numpy_helper
import onnx.parser
import pytest

from edgec.compiler import Bundle, CompileOptions, compile_model
from edgec.compiler.cli.main import main
from edgec.compiler.errors import BadInputError, BundleError, IntegrityError, KeyFileError
from edgec.compiler.trust.identities import load_identities, new_identity
from edgec.compiler.trust.keys import keys_folder

ADD = """<ir_version: 8, opset_import: ["" : 17]>
g (float[64,64] x) => (float[64,64] y) <float[64,64] w = {}> {y = Add(x, w)}"""


@dataclass(frozen=True)
class Encrypted:
    """An encrypted bundle with its runner is for `board` and `spare`; weights as they are plain."""

    path: Path
    weights: bytes
    image: Path


@pytest.fixture(scope="module")
def encrypted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Encrypted]:
    folder = tmp_path_factory.mktemp("encrypted")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(folder))
        names = ("board", "spare", "stranger")
        for name in names:
            new_identity(name)
        model = onnx.parser.parse_model(ADD.replace("{}", "{" + ", ".join(["0"] * 4096) + "}"))
        array = np.random.default_rng(5).random((64, 64), np.float32)
        model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(array, "w"))
        options = CompileOptions(runner=True, parity=False, encrypt_for=names[:2])
        bundle = compile_model(model, "native", options, output=folder / "x.edgec")
        np.save(folder / "x.npy", np.zeros((64, 64), np.float32))
        yield Encrypted(bundle.path, array.tobytes()[:64], folder / "x.npy")


def identity(name: str) -> str:
    return f"file:{keys_folder() / name}.identity"


def run(encrypted: Encrypted, given: str, *words: str) -> subprocess.CompletedProcess[str]:
    command = [str(encrypted.path / "run"), "--input", str(encrypted.image), *words]
    environment = {
        "EDGEC_IDENTITY": given,
        "XDG_CONFIG_HOME": "/nowhere",
        "PATH": os.environ["PATH"],
    }
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=60
    )


@pytest.mark.parametrize("name", ["board", "spare"])
def test_each_recipient_runs_it(
    encrypted: Encrypted, name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    output = tmp_path / "y.npy"
    done = run(encrypted, identity(name), "--output", str(output))
    assert (done.returncode, done.stderr) == (0, "")
    monkeypatch.setenv("EDGEC_IDENTITY", identity(name))
    image = np.load(encrypted.image)
    results = Bundle.load(encrypted.path).run(image)
    np.testing.assert_array_equal(results["y"], np.load(output))
    assert results["y"].tobytes()[:64] == encrypted.weights


def test_a_wrong_key_gives_nothing(
    encrypted: Encrypted, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done = run(encrypted, identity("stranger"))
    assert (done.returncode, done.stdout) == (4, "")
    monkeypatch.setenv("EDGEC_IDENTITY", identity("stranger"))
    assert main(["run", str(encrypted.path)]) == 4
    captured = capsys.readouterr()
    assert captured.out == ""
    (key,) = load_identities()
    for text in (done.stderr, captured.err):
        assert f"it is not encrypted for {key.recipient}; have it compiled" in text
        assert text.count("\n") == 1


def test_damage(encrypted: Encrypted, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The digests of the manifest are Python's; the runner has the file's own tags."""
    copy = Path(shutil.copytree(encrypted.path, tmp_path / "copy.edgec"))
    monkeypatch.setenv("EDGEC_IDENTITY", identity("board"))
    file = copy / "model.so.age"
    data = file.read_bytes()
    for place in range(0, len(data), 997):
        file.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises(IntegrityError, match=r"model\.so\.age is changed"):
            Bundle.load(copy)
        done = run(Encrypted(copy, b"", encrypted.image), identity("board"))
        assert (done.returncode, done.stdout) == (4, "")
        assert "model.so.age" in done.stderr
        assert done.stderr.count("\n") == 1


def hexadecimal(data: bytes) -> str:
    """As strace writes it."""
    return "".join(f"\\x{byte:02x}" for byte in data)


SYSTEM_CALLS = "trace=openat,open,creat,write,pwrite64,writev,memfd_create,rename,link,linkat"


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
@pytest.mark.parametrize("program", ["runner", "python"])
def test_nothing_plain_is_written(encrypted: Encrypted, program: str, tmp_path: Path) -> None:
    """System calls show what is written: weights to a file in memory, and to no other."""
    trace, scratch = tmp_path / "trace", tmp_path / "scratch"
    scratch.mkdir()
    command = [str(encrypted.path / "run"), "--input", str(encrypted.image)]
    if program == "python":
        words = "import sys; from edgec.compiler import Bundle; Bundle.load(sys.argv[1]).open(1)"
        command = [sys.executable, "-B", "-c", words, str(encrypted.path)]
    tracer = ["strace", "-f", "-y", "-s", "1048576", "-xx", "-o", str(trace), "-e", SYSTEM_CALLS]
    environment = {
        **os.environ,
        "EDGEC_IDENTITY": identity("board"),
        "TMPDIR": str(scratch),
    }
    subprocess.run([*tracer, *command], env=environment, check=True, capture_output=True)
    plain, in_memory = map(hexadecimal, (encrypted.weights, b"/memfd:model.so"))
    calls = trace.read_text().splitlines()
    assert any("memfd_create" in call for call in calls)
    if program == "runner":
        assert not any("O_WRONLY" in call or "O_RDWR" in call for call in calls)
    written = [call for call in calls if plain in call]
    # In Python the file in memory is filled by write, in the runner by a mapping.
    assert bool(written) == (program == "python")
    assert all(f"<{in_memory}" in call for call in written)
    for file in scratch.rglob("*"):
        assert encrypted.weights not in file.read_bytes()
    for file in encrypted.path.rglob("*"):
        if file.is_file() and "output" not in file.name:
            assert encrypted.weights not in file.read_bytes()


def test_it_is_not_sent_to_a_board(encrypted: Encrypted) -> None:
    bundle = Bundle.load(encrypted.path)
    assert bundle.encrypted
    with pytest.raises(BundleError, match="its library would be sent in the clear"):
        _ = bundle.library


def in_keyring(name: str, text: bytes) -> bool:
    """Put a secret into the kernel's keyring of this process; whether that is allowed here."""
    import ctypes
    import platform

    add_key = {"x86_64": 248, "armv7l": 309}.get(platform.machine(), 217)
    library = ctypes.CDLL(None, use_errno=True)
    # -3: the session's keyring, which programs that this one starts see as well.
    return library.syscall(add_key, b"user", name.encode(), text, len(text), -3) >= 0


def test_where_a_key_comes_from(encrypted: Encrypted, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (keys_folder() / "board.identity").read_bytes()
    sources = [f"command:cat {keys_folder()}/board.identity"]
    if in_keyring("edgec-test", text):
        sources.append("keyring:edgec-test")
    for source in sources:
        monkeypatch.setenv("EDGEC_IDENTITY", source)
        assert Bundle.load(encrypted.path).run(np.load(encrypted.image))
        assert run(encrypted, source).returncode == 0


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("", "it says where the secret key is: file:PATH, keyring:NAME or command:WORDS"),
        ("file:", "it says where the secret key is"),
        ("file:/nowhere", "/nowhere"),
        ("file:/dev/null", "holds no identity"),
        ("keyring:nothing-of-this-name", "key nothing-of-this-name of the kernel's keyring"),
        ("command:exit 3", "gave no key"),
        ("command:echo AGE-SECRET-KEY-1QQ", "expected AGE-SECRET-KEY-1…"),
    ],
)
def test_no_key(
    encrypted: Encrypted, source: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEC_IDENTITY", source)
    with pytest.raises(BadInputError) as caught:
        Bundle.load(encrypted.path).open()
    done = run(encrypted, source)
    assert (done.returncode, done.stdout) == (4, "")
    for text in (str(caught.value), done.stderr):
        assert message in text


def test_names(capsys: pytest.CaptureFixture[str], encrypted: Encrypted) -> None:
    with pytest.raises(KeyFileError, match="exists; choose another name"):
        new_identity("board")
    assert main(["keys", "list"]) == 0
    assert "recipient  board" in capsys.readouterr().out
    assert main(["compile", str(encrypted.image), "--encrypt-for", "nobody"]) == 4
    assert "edgec keys new NAME --encryption" in capsys.readouterr().err
