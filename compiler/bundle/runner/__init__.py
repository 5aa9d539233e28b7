"""Provide the runner: a small program in C that runs a static model where there is no Python.

It is built for the target and goes into the bundle with its sources, the interface `edgec.h` and
an example of an application that embeds the model:

```text
model.edgec/
├── run                    the program; finds model.so and the test vectors beside itself
├── vectors/vectors.txt    what `run --verify` needs to know of the manifest
└── embed/                 edgec.h and edgec_NAME.h, the program's sources, app.cpp and
                           two_models.cpp, CMakeLists.txt; trust/: what checks the bundle
```
"""

import hashlib
import math
import re
from collections.abc import Iterator
from pathlib import Path

from edgec.compiler.bundle.manifest import RUNNER, Manifest, ToleranceRecord
from edgec.compiler.codegen.executor import FOLDER as EXECUTOR
from edgec.compiler.codegen.link import compiler_identity, link_program
from edgec.compiler.governor import native as governor
from edgec.compiler.ir.storage import STORAGE, decode_table
from edgec.compiler.support.content_cache import ContentCache
from edgec.compiler.tokenizer import native as generation
from edgec.compiler.trust import native
from edgec.targets.target import Target

FOLDER = Path(__file__).parent
SOURCES = (
    "runner.c",
    "govern.c",
    "npy.c",
    "parity.c",
    "talk.c",
    "connection.c",
    "serve.c",
    "stage.c",
)
HEADERS = ("govern.h", "npy.h", "parity.h", "process.h", "talk.h", "connection.h", "stage.h")
EMBEDDED = (*SOURCES, *HEADERS, "session.hpp")
# A runner is some two hundred kilobytes.
CACHE_BYTES = 64 * 2**20
# In these NAME stands for the model's name.
TEMPLATES = ("app.cpp", "two_models.cpp", "CMakeLists.txt")
_HEADER = """\
/* The model of this bundle; see edgec.h for what there is to call. */
#ifndef EDGEC_MODEL_NAME_H
#define EDGEC_MODEL_NAME_H

#include "edgec.h"

#ifdef __cplusplus
extern "C"
#endif
const edgec_model* edgec_model_NAME(void);

#endif
"""


def runner_files(
    manifest: Manifest, library: Path, *, embed: bool = True
) -> dict[str, bytes | Path]:
    """Build the runner.

    Args:
        manifest: the manifest of the bundle; its model runs on the static executor.
        library: the compiled model; the program is written beside it.
        embed: whether applications can be built from the bundle: not if its library is encrypted.

    Returns:
        What the bundle holds besides, by path in the bundle.

    Raises:
        ToolchainError: the compiler is missing or fails.
    """
    program = library.with_name(RUNNER)
    _build(program, manifest.target)
    expectations = "".join(f"{line}\n" for line in _expectations(manifest))
    files: dict[str, bytes | Path] = {
        RUNNER: program,
        "vectors/vectors.txt": expectations.encode(),
    }
    return files | (_embedded(manifest.execution.c_name) if embed else {})


def _embedded(name: str) -> dict[str, bytes | Path]:
    """Return what an application is built from, for a model of this name."""
    return {
        "embed/edgec.h": EXECUTOR / "edgec.h",
        f"embed/edgec_{name}.h": _named(_HEADER, name),
        **{f"embed/{file}": FOLDER / file for file in EMBEDDED},
        **{f"embed/trust/{file}": native.FOLDER / file for file in native.FILES},
        **{f"embed/generation/{file}": generation.FOLDER / file for file in generation.FILES},
        **{f"embed/governor/{file}": governor.FOLDER / file for file in governor.FILES},
        **{f"embed/{file}": _named((FOLDER / file).read_text(), name) for file in TEMPLATES},
    }


def _build(program: Path, target: Target) -> None:
    """Write the program, which is the same for every model: compiled once for a kind of target."""
    sources = [
        *(FOLDER / name for name in SOURCES),
        *(native.FOLDER / name for name in native.SOURCES),
        *(generation.FOLDER / name for name in generation.SOURCES),
        *(governor.FOLDER / name for name in governor.SOURCES),
    ]
    includes = [EXECUTOR, native.FOLDER, generation.FOLDER, governor.FOLDER]
    digest = hashlib.sha256(f"{compiler_identity(target)} {target.model_dump_json()}".encode())
    for folder in (FOLDER, *includes):
        for file in sorted(folder.glob("*.[ch]")):
            digest.update(f"{file.name} {file.stat().st_size}\n".encode() + file.read_bytes())

    def make(path: Path) -> None:
        link_program(sources, path, target, includes=includes)

    ContentCache("runners", CACHE_BYTES).write(digest.hexdigest(), program, make)


def _named(template: str, name: str) -> bytes:
    """Return a file of `embed/` for a model of this name."""
    return re.sub(r"(?<=_)NAME|\bNAME\b", name, template).encode()


def _expectations(manifest: Manifest) -> Iterator[str]:
    """Yield tolerance, codes and files, in the form that `runner.c` reads."""
    yield _tolerance(manifest.tolerance)
    for number, output in enumerate(manifest.outputs):
        if output.dtype in STORAGE:
            values = decode_table(output.dtype, "float64")
            yield f"codes {number} {' '.join(map(repr, values.tolist()))}"
    names = list(manifest.signatures)
    for vector in manifest.vectors:
        program = str(names.index(vector.program))
        variant = manifest.variant(vector.program)
        if variant is not None:
            yield _tolerance(variant.tolerance)
        goes_on = str(int(vector.goes_on))
        yield f"vector {' '.join((program, goes_on, *vector.inputs, *vector.outputs))}"


def _tolerance(record: ToleranceRecord) -> str:
    """Return the line that says what is enough for the vectors after it."""
    enough = math.inf if record.sqnr_db is None else record.sqnr_db
    return f"tolerance {record.relative!r} {record.absolute!r} {enough!r}"
