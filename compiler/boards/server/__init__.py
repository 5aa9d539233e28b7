"""Describe what is on a board: one C source on TVM's runtime, and the script that puts it there."""

from pathlib import Path

SOURCE = Path(__file__).parent / "server.c"
SCRIPT = Path(__file__).parent / "board.sh"
