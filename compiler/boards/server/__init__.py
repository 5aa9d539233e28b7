"""The program on a board that answers: one C source on TVM's runtime."""

from pathlib import Path

SOURCE = Path(__file__).parent / "server.c"
