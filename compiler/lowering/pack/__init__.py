"""Provide packing: operators become kernel calls, in the layouts that kernels want."""

from edgec.compiler.lowering.pack.context import Decline
from edgec.compiler.lowering.pack.packer import Notes, PackLayouts

__all__ = ["Decline", "Notes", "PackLayouts"]
