"""How each fused function is computed: loops, vectors, threads."""

from edgec.compiler.schedule.generic import schedule_generic
from edgec.compiler.schedule.select import schedule_module

__all__ = ["schedule_generic", "schedule_module"]
