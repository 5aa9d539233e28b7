"""Write the folder of a plan: it is there whole or not at all."""

import shutil
import tempfile
from pathlib import Path
from types import TracebackType

from edgec.compiler.errors import OutputError
from edgec.compiler.split.plan import PLAN
from edgec.compiler.support.files import output_error


def check_plan_destination(path: Path) -> None:
    """Make sure that a plan can be written to a path.

    Raises:
        OutputError: no such folder, no permission, or something that is no plan is in the way.
    """
    try:
        if not path.parent.is_dir():
            raise OutputError(f"cannot write {path}: folder {path.parent} does not exist")
        in_the_way = path.is_dir() and not (path / PLAN).is_file() and any(path.iterdir())
        if in_the_way or (path.exists() and not path.is_dir()):
            raise OutputError(f"cannot write {path}: something that is no plan is in the way")
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise output_error(path, error) from None


class PlanFolder:
    """A plan folder is filled beside its place and takes it when all went well.

    Args:
        path: the place; a plan that is there is replaced.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._staging: Path | None = None

    def __enter__(self) -> Path:
        """Return the folder to fill."""
        try:
            self._staging = Path(
                tempfile.mkdtemp(prefix=f".{self._path.name}.", dir=self._path.parent)
            )
            filling = self._staging / "plan"
            filling.mkdir()
        except OSError as error:
            raise output_error(self._path, error) from None
        return filling

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Move it into place, or throw it away."""
        assert self._staging is not None
        try:
            if kind is None:
                if self._path.is_dir():
                    self._path.rename(self._staging / "old")
                (self._staging / "plan").rename(self._path)
        except OSError as error:
            raise output_error(self._path, error) from None
        finally:
            shutil.rmtree(self._staging, ignore_errors=True)
