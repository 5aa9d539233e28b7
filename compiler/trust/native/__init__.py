"""Provide the C sources that check and decrypt a bundle where there is no Python.

`monocypher.c` and `monocypher-ed25519.c` are Monocypher 4.0.3 as its authors publish it
(https://monocypher.org, licence in MONOCYPHER-LICENCE.md): X25519, ChaCha20-Poly1305 and Ed25519.
"""

from pathlib import Path

FOLDER = Path(__file__).parent
_OURS = ("age", "files", "identity", "policy", "sha256", "sha256_blocks", "signature", "trust")
_NAMES = (*_OURS, "monocypher", "monocypher-ed25519")
SOURCES = tuple(f"{name}.c" for name in _NAMES)
FILES = (*SOURCES, *(f"{name}.h" for name in _NAMES), "MONOCYPHER-LICENCE.md")
