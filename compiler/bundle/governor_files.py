"""Provide what a bundle of variants has besides: the C that chooses among them.

```text
model.edgec/
├── governor.so    chooses, for Python; `run` has the same inside
└── variants.txt   the accuracy of each program, for `run`
```
"""

from pathlib import Path

from edgec.compiler.bundle.manifest import Manifest
from edgec.compiler.codegen.executor import FOLDER as EXECUTOR
from edgec.compiler.codegen.link import link_shared
from edgec.compiler.governor.governor import GOVERNOR
from edgec.compiler.governor.native import FOLDER, SOURCES
from edgec.targets.target import Target

VARIANTS = "variants.txt"


def governor_files(manifest: Manifest, target: Target, scratch: Path) -> dict[str, bytes | Path]:
    """Return the files by path in the bundle.

    Args:
        manifest: what the bundle says of its variants.
        target: what to build for.
        scratch: folder that the library is written to.

    Raises:
        ToolchainError: the compiler is missing or fails.
    """
    library = scratch / GOVERNOR
    sources = [FOLDER / name for name in SOURCES]
    link_shared(sources, library, target, exports=["edgec_*"], includes=[EXECUTOR])
    lines = [f"variant {variant.accuracy!r}\n" for variant in manifest.variants]
    return {GOVERNOR: library, VARIANTS: "".join(lines).encode()}
