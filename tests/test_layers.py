"""The order of the rooms: each imports only from rooms below it, and no files import in a ring."""

import ast
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("compiler", "targets", "models")

# From the ground up. Rooms of one line do not know each other.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("errors",),
    ("support",),
    ("trust",),
    ("targets",),
    ("tokenizer",),
    ("numerics",),
    ("ir",),
    # The quantizer asks kernels what they can compute.
    ("kernels",),
    ("passes",),
    ("language",),
    ("frontend",),
    ("calibration",),
    ("compress", "quantize"),
    ("exits",),
    ("lowering",),
    ("codegen",),
    ("runtime",),
    ("governor",),
    ("options", "backend"),
    ("transform",),
    ("predict",),
    ("bundle",),
    ("generation",),
    ("parity",),
    ("inspection", "describe", "outputs", "installation"),
    ("program_compiler",),
    ("pipeline",),
    ("bench", "jobs"),
    ("cascade",),
    ("boards", "serve"),
    ("evaluate", "split", "private_calibration", "update"),
    ("distribute",),
    ("tune",),
    ("fit",),
    ("compiler",),
    ("models",),
    ("cli",),
    ("__main__",),
)

# Arrows that climb or stay on a floor, to be untied; none is left.
KNOWN: frozenset[tuple[str, str]] = frozenset()


def modules(root: Path) -> dict[str, Path]:
    """Return the files of the package by module name."""
    found = {}
    for folder in FOLDERS:
        for path in sorted((root / folder).rglob("*.py")):
            parts = ("edgec", *path.relative_to(root).with_suffix("").parts)
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(name: str, path: Path, known: Mapping[str, Path]) -> Iterator[str]:
    """Yield the modules of the package that a file names in an import, wherever it stands."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module in known:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in known else node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)


def room(module: str) -> str:
    """Return the room that a module stands in: a folder of `compiler`, or a file beside them."""
    parts = module.split(".")[1:]
    return parts[1] if parts[0] == "compiler" and len(parts) > 1 else parts[0]


def arrows(root: Path) -> set[tuple[str, str, str]]:
    """Return room, imported room and a line that says which file imports what."""
    known = modules(root)
    return {
        (room(name), room(target), f"{name} imports {target}")
        for name, path in known.items()
        for target in imports(name, path, known)
        if room(name) != room(target)
    }


def wrong_arrows(found: Iterable[tuple[str, str, str]]) -> list[str]:
    """Return the arrows that do not go down."""
    height = {name: floor for floor, names in enumerate(FLOORS) for name in names}
    return sorted(
        line
        for source, target, line in found
        if height[target] >= height[source] and (source, target) not in KNOWN
    )


def rings(edges: Mapping[str, set[str]]) -> list[list[str]]:
    """Return groups of nodes that reach each other (Tarjan 1972)."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found = []

    def visit(node: str) -> None:
        order[node] = low[node] = len(order)
        stack.append(node)
        for target in sorted(edges.get(node, ())):
            if target not in order:
                visit(target)
                low[node] = min(low[node], low[target])
            elif target in stack:
                low[node] = min(low[node], order[target])
        if low[node] == order[node]:
            ring = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(ring) > 1:
                found.append(sorted(ring))

    for node in sorted(edges):
        if node not in order:
            visit(node)
    return found


def test_every_room_has_a_floor() -> None:
    on_disk = {room(name) for name in modules(ROOT)}
    assert on_disk == {name for floor in FLOORS for name in floor}


def test_imports_go_down() -> None:
    assert wrong_arrows(arrows(ROOT)) == []


def test_no_files_import_in_a_ring() -> None:
    known = modules(ROOT)
    edges = {name: set(imports(name, path, known)) - {name} for name, path in known.items()}
    # A package's __init__ and what it gathers are one.
    assert rings(edges) == []


def test_known_arrows_are_still_there() -> None:
    there = {(source, target) for source, target, _ in arrows(ROOT)}
    assert there >= KNOWN


@pytest.mark.parametrize(
    ("room_above", "line"),
    [("numerics", "from edgec.compiler.kernels import layout"), ("kernels", "import edgec.models")],
)
def test_an_import_that_climbs_is_found(room_above: str, line: str, tmp_path: Path) -> None:
    for folder, text in ((f"compiler/{room_above}", line), ("compiler/kernels/layout", "")):
        file = tmp_path / folder / "new.py" if folder.count("/") == 1 else tmp_path / f"{folder}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        (file.parent / "__init__.py").touch()
        file.write_text(text)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "__init__.py").touch()
    (found,) = wrong_arrows(arrows(tmp_path))
    assert found.startswith(f"edgec.compiler.{room_above}.new imports ")


def test_a_ring_is_found() -> None:
    assert rings({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]
