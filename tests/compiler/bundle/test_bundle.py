import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from edgec.compiler import Bundle
from edgec.compiler.bundle.bundle import write_bundle
from edgec.compiler.bundle.manifest import MANIFEST, Manifest
from edgec.compiler.bundle.npy import load_npy, save_vector
from edgec.compiler.errors import BundleError, CheckFailed, IntegrityError, OutputError
from edgec.compiler.parity.verify_bundle import verify_bundle
from edgec.compiler.runtime.inputs import rounded_to_half
from edgec.targets import load_target

FILES = (MANIFEST, "model.so", "vectors/0/input-0.npy", "vectors/0/output-0.npy")


@pytest.fixture
def copy(digits_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(digits_bundle, tmp_path / "copy.edgec"))


def contents(folder: Path) -> dict[str, bytes]:
    return {
        file.relative_to(folder).as_posix(): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file()
    }


def repack(bundle: Path, output: Path, **changes: object) -> Bundle:
    """The same bundle with a changed manifest, signed again."""
    manifest = Manifest.from_bytes((bundle / MANIFEST).read_bytes()).model_copy(update=changes)
    files = {name: bundle / name for name in manifest.files}
    return write_bundle(output, manifest, files)


def test_holds_what_the_format_says(digits_bundle: Path) -> None:
    assert sorted(contents(digits_bundle)) == sorted(FILES)


def test_round_trip(digits_bundle: Path, tmp_path: Path) -> None:
    again = repack(digits_bundle, tmp_path / "again.edgec")
    assert contents(again.path) == contents(digits_bundle)


def test_two_compiles_give_the_same_bytes(digits_bundle: Path, tmp_path: Path) -> None:
    """In another process with another hash seed, so that no set order gets into the result."""
    program = (
        "import sys; from edgec.compiler.cli.main import main; "
        "sys.exit(main(['compile', sys.argv[1], '--shape', 'image=1,1,8,8', '-q', "
        "'-o', sys.argv[2]]))"
    )
    from edgec.models import load_model_recipe

    model = load_model_recipe("digits").write(tmp_path / "digits.onnx")
    other = tmp_path / "other.edgec"
    subprocess.run(
        [sys.executable, "-c", program, str(model), str(other)],
        check=True,
        env={**os.environ, "PYTHONHASHSEED": "12345"},
    )
    assert contents(other) == contents(digits_bundle)


def test_moving_changes_nothing(copy: Path, tmp_path: Path) -> None:
    moved = copy.rename(tmp_path / "elsewhere")
    bundle = Bundle.load(moved)
    assert verify_bundle(bundle).passed


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("position", [0.0, 0.3, 0.999])
def test_any_changed_byte_is_found(copy: Path, name: str, position: float) -> None:
    file = copy / name
    data = bytearray(file.read_bytes())
    data[int(position * len(data))] ^= 1
    file.write_bytes(data)
    with pytest.raises((IntegrityError, BundleError), match=Path(name).name):
        Bundle.load(copy)


def test_white_space_in_the_manifest_is_found(copy: Path) -> None:
    fields = json.loads((copy / MANIFEST).read_text())
    (copy / MANIFEST).write_text(json.dumps(fields))
    with pytest.raises(IntegrityError, match=r"manifest\.json is damaged"):
        Bundle.load(copy)


@pytest.mark.parametrize("name", FILES[1:])
def test_a_missing_file_is_named(copy: Path, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises(IntegrityError, match=f"{name} is missing"):
        Bundle.load(copy)


def test_an_extra_file_is_named(copy: Path) -> None:
    (copy / "extra.bin").write_bytes(b"")
    with pytest.raises(IntegrityError, match=r"extra\.bin is not in the manifest"):
        Bundle.load(copy)


def test_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="does not exist"):
        Bundle.load(tmp_path / "no.edgec")
    with pytest.raises(BundleError, match=r"is no bundle: it has no manifest\.json"):
        Bundle.load(tmp_path)


@pytest.mark.parametrize(
    ("found", "advice"), [(3, "read it with a newer edgec"), (1, "compile the model again")]
)
def test_other_formats(copy: Path, found: int, advice: str) -> None:
    text = (copy / MANIFEST).read_text()
    (copy / MANIFEST).write_text(text.replace('"format": 2', f'"format": {found}'))
    wanted = f"bundle format {found}; this edgec reads format 2: {advice}"
    with pytest.raises(BundleError, match=wanted):
        Bundle.load(copy)


def test_another_architecture_is_refused(digits_bundle: Path, tmp_path: Path) -> None:
    bundle = repack(digits_bundle, tmp_path / "pi.edgec", target=load_target("rpi4"))
    with pytest.raises(BundleError, match="for target rpi4: its code is for aarch64"):
        verify_bundle(bundle)


def test_a_cpu_without_a_feature_is_refused(digits_bundle: Path, tmp_path: Path) -> None:
    target = load_target("native")
    wanting = target.model_copy(update={"features": (*target.features, "+imaginary")})
    bundle = repack(digits_bundle, tmp_path / "new.edgec", target=wanting)
    with pytest.raises(BundleError, match="this CPU lacks imaginary"):
        verify_bundle(bundle)


def test_wrong_expected_outputs_fail_verification(digits_bundle: Path, tmp_path: Path) -> None:
    """The negative control of `verify`: intact files, wrong results."""
    manifest = Manifest.from_bytes((digits_bundle / MANIFEST).read_bytes())
    files: dict[str, bytes | Path] = {name: digits_bundle / name for name in manifest.files}
    vector = "vectors/0/output-0.npy"
    wrong = tmp_path / "wrong.npy"
    logits = np.load(digits_bundle / vector)
    logits[0, 3] += 0.01
    np.save(wrong, logits)
    bundle = write_bundle(tmp_path / "wrong.edgec", manifest, {**files, vector: wrong})
    report = verify_bundle(bundle)
    assert not report.passed
    with pytest.raises(CheckFailed, match="logits"):
        report.check("here")


def test_verify_compares_fresh_inputs(digits_bundle: Path, digits: Path, tmp_path: Path) -> None:
    bundle = Bundle.load(digits_bundle)
    assert verify_bundle(bundle, model=digits, seeds=(5, 6)).passed
    other = tmp_path / "other.onnx"
    other.write_bytes(digits.read_bytes().replace(b"edgec", b"EDGEC"))
    with pytest.raises(BundleError, match="was compiled from another file"):
        verify_bundle(bundle, model=other)


class TestTar:
    @pytest.fixture
    def archive(self, digits_bundle: Path, tmp_path: Path) -> Path:
        return repack(digits_bundle, tmp_path / "digits.edgec.tar").path

    def test_holds_the_same(self, archive: Path, digits_bundle: Path, tmp_path: Path) -> None:
        shutil.unpack_archive(archive, tmp_path / "unpacked", filter="data")
        assert contents(tmp_path / "unpacked") == contents(digits_bundle)

    def test_runs(self, archive: Path) -> None:
        assert verify_bundle(Bundle.load(archive)).passed

    def test_same_bytes(self, archive: Path, digits_bundle: Path, tmp_path: Path) -> None:
        again = repack(digits_bundle, tmp_path / "again.tar").path
        assert again.read_bytes() == archive.read_bytes()

    def test_truncated(self, archive: Path) -> None:
        data = archive.read_bytes()
        archive.write_bytes(data[: len(data) // 2])
        with pytest.raises(IntegrityError, match="damaged"):
            Bundle.load(archive)

    @pytest.mark.parametrize("position", [0.1, 0.5, 0.9])
    def test_changed_byte(self, archive: Path, position: float) -> None:
        data = bytearray(archive.read_bytes())
        data[int(position * len(data))] ^= 1
        archive.write_bytes(data)
        with pytest.raises(IntegrityError):
            Bundle.load(archive)


class TestDestination:
    def test_a_bundle_is_replaced(self, digits_bundle: Path, copy: Path) -> None:
        (copy / "model.so").write_bytes(b"old")
        repack(digits_bundle, copy)
        assert contents(copy) == contents(digits_bundle)

    def test_a_folder_with_something_else_is_not(self, digits_bundle: Path, tmp_path: Path) -> None:
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "thesis.txt").write_text("precious")
        with pytest.raises(OutputError, match="a folder that is no bundle is in the way"):
            repack(digits_bundle, tmp_path / "mine")
        assert (tmp_path / "mine" / "thesis.txt").read_text() == "precious"

    def test_missing_parent(self, digits_bundle: Path, tmp_path: Path) -> None:
        with pytest.raises(OutputError, match="does not exist"):
            repack(digits_bundle, tmp_path / "no" / "x.edgec")

    @pytest.fixture
    def small_disk(self, tmp_path: Path) -> Iterator[Path]:
        """A real file system of 64 KiB."""
        folder = tmp_path / "small"
        folder.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
        if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
            pytest.skip("mounting needs root")
        yield folder
        subprocess.run(["umount", str(folder)], check=True)

    def test_full_disk(self, digits_bundle: Path, small_disk: Path) -> None:
        with pytest.raises(OutputError, match=r"no space left to write .*; nothing was written"):
            repack(digits_bundle, small_disk / "x.edgec")
        assert list(small_disk.iterdir()) == []

    def test_full_scratch_disk(
        self,
        small_disk: Path,
        tmp_path: Path,
        compile_digits: Callable[[Path], Bundle],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(tempfile, "tempdir", str(small_disk))
        with pytest.raises(OutputError, match=r"no space left in .*set TMPDIR to a larger disk"):
            compile_digits(tmp_path / "x.edgec")
        assert list(small_disk.iterdir()) == []
        assert not (tmp_path / "x.edgec").exists()

    def test_full_disk_leaves_the_old_bundle(
        self, digits_bundle: Path, small_disk: Path, compile_digits: Callable[[Path], Bundle]
    ) -> None:
        old = small_disk / "x.edgec"
        old.mkdir()
        (old / MANIFEST).write_text("old")
        with pytest.raises(OutputError):
            compile_digits(old)
        assert contents(old) == {MANIFEST: b"old"}

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
    def test_no_permission(self, digits_bundle: Path, tmp_path: Path) -> None:
        folder = tmp_path / "locked"
        folder.mkdir(mode=0o500)
        with pytest.raises(OutputError, match=r"cannot write .*Permission denied"):
            repack(digits_bundle, folder / "x.edgec")

    def test_read_only_place(self, digits_bundle: Path) -> None:
        """A folder in which nobody may create files, not even root."""
        with pytest.raises(OutputError, match="cannot write /proc/x"):
            repack(digits_bundle, Path("/proc/x.edgec"))


def test_vectors_take_half_the_bytes_where_that_is_exact() -> None:
    exact = np.array([1.5, -0.0, np.inf, 2.0**-24, 65504], np.float32)
    for array, size in ((exact, 2), (exact[::-1], 2)):
        data = save_vector(array)
        assert len(data) == 128 + size * array.size
        assert load_npy(data, "float32").tobytes() == array.tobytes()
    for other in (1 + 2.0**-11, 65520, 2.0**-25):
        array = np.array([*exact, other], np.float32)
        data = save_vector(array)
        assert len(data) == 128 + 4 * array.size
        assert load_npy(data, "float32").tobytes() == array.tobytes()


def test_samples_are_rounded_where_float16_reaches() -> None:
    images = np.random.default_rng(0).random((3, 5), np.float32)
    given = {"image": images, "far": 1e6 * images, "count": np.array([3])}
    rounded = rounded_to_half(given)
    np.testing.assert_allclose(rounded["image"], images, rtol=2.0**-11, atol=1e-7)
    assert len(save_vector(rounded["image"])) == 128 + 2 * 15 < len(save_vector(images))
    assert rounded["far"] is given["far"]
    assert rounded["count"] is given["count"]


def test_generated_inputs_are_stored_in_half_the_bytes(digits_bundle: Path) -> None:
    bundle = Bundle.load(digits_bundle)
    ((inputs, _),) = bundle.vectors()
    assert inputs["image"].dtype == np.float32
    assert bundle.manifest.files["vectors/0/input-0.npy"].size_bytes == 128 + 2 * 64
