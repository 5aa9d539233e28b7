"""A small signed bundle, the runner that checks it, and keys that live in a folder of the test."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx.parser

from edgec.compiler import Bundle, CompileOptions, compile_model
from edgec.compiler.trust.keys import SigningKey, new_key

RELU = '<ir_version: 8, opset_import: ["" : 17]> g (float[1,4] x) => (float[1,4] y) {y = Relu(x)}'


@dataclass(frozen=True)
class SignedBundle:
    """A signed bundle lies in a folder; no policy of this machine says anything about it.

    Attributes:
        path: the bundle, which is small: it has no runner of its own.
        runner: the program, elsewhere.
        key: what signed it.
        image: a .npy file with an input of the model.
    """

    path: Path
    runner: Path
    key: SigningKey
    image: Path

    def run(self, bundle: Path, *arguments: str, policy: Path | None = None) -> tuple[int, str]:
        """Return exit code and standard error of the runner on a bundle; refused: no output."""
        environment = {} if policy is None else {"EDGEC_TRUST": str(policy)}
        done = subprocess.run(
            [self.runner, "--bundle", bundle, "--input", self.image, *arguments],
            capture_output=True,
            text=True,
            # No policy of whoever runs the tests.
            env={"XDG_CONFIG_HOME": str(self.image.parent), **environment},
            check=False,
            timeout=60,
        )
        assert done.returncode == 0 or not done.stdout
        return done.returncode, done.stderr


def make_signed_bundle(folder: Path) -> SignedBundle:
    """Compile, sign and build; the variable XDG_CONFIG_HOME is this folder."""
    model = onnx.parser.parse_model(RELU)
    key = new_key("maker")
    options = CompileOptions(runner=True, sign=["maker"], parity=False)
    complete = compile_model(model, "native", options, output=folder / "complete.edgec")
    plain = CompileOptions(sign=["maker"], parity=False)
    small = compile_model(model, "native", plain, output=folder / "small.edgec")
    np.save(folder / "x.npy", np.float32([[-1, 0, 1, 2]]))
    runner = (complete.path / "run").rename(folder / "run")
    return SignedBundle(small.path, runner, key, folder / "x.npy")


def load(path: Path) -> Bundle:
    """Open a bundle as far as its code."""
    bundle = Bundle.load(path)
    bundle.open(1)
    return bundle
