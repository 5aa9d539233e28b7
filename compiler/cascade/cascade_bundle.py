"""Provide a cascade as evaluation sees it: a bundle of two bundles."""

from pathlib import Path

from edgec.compiler.bundle.bundle import Bundle
from edgec.compiler.bundle.manifest import Manifest
from edgec.compiler.cascade.cascade import LARGE, SMALL, Cascade
from edgec.compiler.cascade.session import CascadeSession


class CascadeBundle:
    """A cascade bundle has the manifest of the large model: that is what it stands for.

    Attributes:
        path: the folder that `edgec cascade` wrote.
        cascade: what it says.
        small: the bundle that is asked first.
        large: the other one.
    """

    def __init__(self, path: Path) -> None:
        """Load both bundles.

        Raises:
            BundleError: there is no cascade.
        """
        self.path = path
        self.cascade = Cascade.load(path)
        self.small, self.large = Bundle.load(path / SMALL), Bundle.load(path / LARGE)

    @property
    def manifest(self) -> Manifest:
        """Return the manifest of the large model."""
        return self.large.manifest

    def open(self, threads: int = 0) -> CascadeSession:
        """Load both models.

        Raises:
            BundleError: one is for another machine.
        """
        return CascadeSession.open(self.path, threads=threads)
