"""Describe what counts instructions under QEMU: its plugin, and the program that runs a model."""

from pathlib import Path

PLUGIN = Path(__file__).parent / "plugin.c"
PROGRAM = Path(__file__).parent / "count.c"
