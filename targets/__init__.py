"""Provide named targets: which machines edgec compiles for, and what they can do."""

from edgec.targets.load import load_target, target_names
from edgec.targets.target import Target

__all__ = ["Target", "load_target", "target_names"]
