"""README and docs/: every command runs as pasted, every link leads somewhere, every path exists."""

import contextlib
import fcntl
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.documents import (
    Block,
    anchors_of,
    blocks_of,
    is_in,
    links_of,
    missing_line,
    quoted_files,
    quoted_paths,
)
from test_layers import FLOORS

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
RUN = (README, *sorted((ROOT / "docs").glob("*.md")))
READ = (*RUN, ROOT / "CONTRIBUTING.md")
FOLDERS = ("compiler", "targets", "models", "tests", "docs", ".ci")

README_BYTES = 10_000
BLOCK_SECONDS = 1200
INSTALL = "pip install ."

# Blocks that no test runs, by document.
NOT_RUN = {
    "README.md": [],
    "benchmarks.md": ["takes an hour, and a calm machine"] * 3
    + ["the model is downloaded, and the others are not installed"],
    "boards.md": ["needs a board behind ssh me@pi"],
    "choosing.md": ["needs QEMU, which is fetched the first time"],
    "distributed.md": [
        "takes half a minute of QEMU; tests/compiler/distribute/ runs the same commands",
        "needs a board behind ssh pi",
        "needs a board behind ssh pi",
        "takes half a minute; tests/compiler/distribute/test_http_stage.py does the same",
    ],
    "early-exits.md": [
        "takes half a minute; tests/compiler/cascade/ does the same",
        "takes half a minute; tests/compiler/cascade/ does the same",
        "takes ten seconds; tests/compiler/distribute/test_edge_session.py does the same",
        "the images are downloaded",
    ],
    "fitting.md": ["takes half a minute; tests/compiler/fit/test_fit.py does the same"],
    "generation.md": ["the model is downloaded"] * 2,
    "private-calibration.md": ["four processes compile the model, some 50 s"],
    "running.md": [
        "needs a board behind ssh pi",
        "needs CMake and a C++ compiler, which edgec does not install; "
        "tests/compiler/bundle/test_runner.py builds it",
    ],
    "serving.md": [
        "needs tritonclient, which edgec does not install; "
        "tests/compiler/serve/test_server.py uses it",
        "the model is downloaded",
    ],
}


def names(paths: tuple[Path, ...]) -> list[str]:
    return [path.name for path in paths]


@dataclass(frozen=True)
class Install:
    """A copy of the repository, and what its first command installed there."""

    folder: Path
    environment: dict[str, str]


def install_command() -> tuple[str, str]:
    """Return the README's first block: what installs, and what is done then."""
    install, separator, commands = blocks_of(README.read_text())[0].text.partition(INSTALL)
    assert separator, f"the first command no longer installs: {install}"
    return install + separator, commands.removeprefix(" &&")


@pytest.fixture(scope="session")
def plain_install(tmp_path_factory: pytest.TempPathFactory) -> Install:
    """What the README's first command installs; one for all workers of a test run."""
    shared = tmp_path_factory.getbasetemp()
    shared = shared.parent if "PYTEST_XDIST_WORKER" in os.environ else shared
    folder = shared / "plain"
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV"))}
    with (shared / "plain.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "installed").exists():
            listing = subprocess.run(
                ["git", "ls-files", "-co", "--exclude-standard"],
                cwd=ROOT,
                capture_output=True,
                text=True,
                check=True,
            )
            for name in listing.stdout.splitlines():
                if (ROOT / name).is_file():
                    (folder / name).parent.mkdir(parents=True, exist_ok=True)
                    (folder / name).write_bytes((ROOT / name).read_bytes())
            subprocess.run(
                ["sh", "-ec", install_command()[0]], cwd=folder, env=inherited, check=True
            )
            (folder / "installed").touch()
    path = f"{folder / '.venv' / 'bin'}:{inherited['PATH']}"
    return Install(folder, {**inherited, "PATH": path})


@contextlib.contextmanager
def shell(folder: Path, environment: dict[str, str]) -> Iterator["Shell"]:
    """Run blocks in a folder; what they leave running ends with it."""
    # Boards that the document names are not those of whoever runs the test.
    private = {f"XDG_{kind}_HOME": str(folder / f".{kind.lower()}") for kind in ("CONFIG", "STATE")}
    opened = Shell(folder, {**environment, **private}, [])
    try:
        yield opened
    finally:
        for group in opened.groups:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, signal.SIGTERM)


@dataclass(frozen=True)
class Shell:
    """Runs blocks, each in a process group of its own."""

    folder: Path
    environment: dict[str, str]
    groups: list[int]

    def run(self, language: str, text: str) -> tuple[int, str]:
        """Return exit code and output of a block."""
        command = ["sh", "-ec", text] if language == "sh" else ["python", "-c", text]
        output = self.folder / ".output"
        # Not a pipe: what a block leaves running would keep it open.
        with output.open("w") as file:
            process = subprocess.Popen(
                command,
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            self.groups.append(process.pid)
            code = process.wait(BLOCK_SECONDS)
        return code, output.read_text(errors="replace")


def check(block: Block, opened: Shell, where: str) -> None:
    code, output = opened.run(block.language, block.text)
    assert code == 0, f"{where}:{block.line}: exit code {code}\n{block.text}\n{output}"
    missing = missing_line(block.expected or "", output)
    assert missing is None, f"{where}:{block.line}: no line like {missing!r} in\n{output}"


@pytest.mark.slow
@pytest.mark.parametrize("document", RUN, ids=names(RUN))
def test_every_block_runs_as_pasted(document: Path, plain_install: Install, tmp_path: Path) -> None:
    blocks = blocks_of(document.read_text())
    if document == README:
        first = blocks[0]
        rest = Block(first.language, install_command()[1], first.line, first.expected)
        blocks = [rest, *blocks[1:]]
    with shell(tmp_path, plain_install.environment) as opened:
        for block in blocks:
            if not block.not_run:
                check(block, opened, document.name)


def test_blocks_that_are_not_run() -> None:
    found = {
        path.name: [block.not_run for block in blocks_of(path.read_text()) if block.not_run]
        for path in RUN
    }
    assert {name: why for name, why in found.items() if why} == {
        name: why for name, why in NOT_RUN.items() if why
    }


def test_the_readme_is_short() -> None:
    assert len(README.read_bytes()) <= README_BYTES


@pytest.mark.parametrize("document", READ, ids=names(READ))
def test_links_lead_somewhere(document: Path) -> None:
    for link in links_of(document.read_text()):
        path, _, anchor = link.partition("#")
        target = (document.parent / path) if path else document
        assert target.exists(), f"{document.name} links to {link}"
        assert not anchor or anchor in anchors_of(target.read_text()), f"{link} has no heading"


@pytest.mark.parametrize("document", READ, ids=names(READ))
def test_paths_exist(document: Path) -> None:
    text = document.read_text()
    assert [path for path in quoted_paths(text, FOLDERS) if not is_in(ROOT, path)] == []
    there = {
        path.name for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.is_file()
    }
    assert [name for name in quoted_files(text) if name not in there] == []


def test_the_rooms_are_told_in_their_order() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    table = text[text.index("| room | holds |") :].split("\n\n")[0]
    rows = [line.split("|")[1] for line in table.splitlines()[2:]]
    told = [re.findall(r"`(?:compiler/)?(\w+)(?:/|\.py)(?:__init__\.py)?`", row) for row in rows]
    rooms = ["compiler" if name == "__init__" else name for row in told for name in row]
    floor = {name: height for height, names in enumerate(FLOORS) for name in names}
    assert set(rooms) == set(floor) - {"__main__"}
    assert [floor[name] for name in rooms] == sorted(floor[name] for name in rooms)


DOCUMENT = """# One, two

```text
a picture
```

```sh
echo 5
```

```text
6
```

<!-- not run: why -->

```python
print()
```

`compiler/no.py` [there](#one-two)
"""


def test_a_document_is_read() -> None:
    assert blocks_of(DOCUMENT) == [
        Block("sh", "echo 5\n", 7, "6\n"),
        Block("python", "print()\n", 17, None, "why"),
    ]
    assert links_of(DOCUMENT) == ["#one-two"]
    assert anchors_of(DOCUMENT) == {"one-two"}
    assert quoted_paths(DOCUMENT, ("compiler",)) == ["compiler/no.py"]
    assert not is_in(ROOT, "compiler/no.py")
    assert is_in(ROOT, "compiler/{cli,frontend}/*.py")


@pytest.mark.parametrize(
    ("expected", "output", "missing"),
    [
        ("a 1.5 ms\n…\nb", "a  20 ms\nx\nb\n", None),
        ("a 1.5 ms", "a 1.5 MB", "a 1.5 ms"),
        ("a 0.8 MB", "a 808 kB", None),
        ("b\na", "a\nb", "a"),
        ("x: 6e-08, 0.1%", "x: 0, 12.0%", None),
    ],
)
def test_output_is_compared_by_its_lines(expected: str, output: str, missing: str | None) -> None:
    assert missing_line(expected, output) == missing


def test_a_block_that_fails_or_prints_something_else_is_found(tmp_path: Path) -> None:
    with shell(tmp_path, dict(os.environ)) as opened:
        check(Block("sh", "echo 5 files", 1, "6 files"), opened, "here")
        with pytest.raises(AssertionError, match="exit code 3"):
            check(Block("sh", "exit 3", 1), opened, "here")
        with pytest.raises(AssertionError, match="no line like 'none'"):
            check(Block("sh", "echo 5 files", 1, "none"), opened, "here")


def test_what_a_block_leaves_running_ends_with_the_document(tmp_path: Path) -> None:
    with shell(tmp_path, dict(os.environ)) as opened:
        opened.run("sh", "sleep 1000 & echo $! > pid")
    process = int((tmp_path / "pid").read_text())
    for _ in range(100):
        state = Path(f"/proc/{process}/stat")
        if not state.exists() or state.read_text().split()[2] == "Z":
            return
        signal.sigtimedwait([], 0.1)
    pytest.fail("it still runs")
