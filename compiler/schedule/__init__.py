"""From fused operators to kernels: our templates first, the generic rule for what they leave."""

from edgec.compiler.schedule.machine import schedule_for_machine
from edgec.compiler.schedule.select import Decide, NotStatic, default_decide, schedule_program

__all__ = ["Decide", "NotStatic", "default_decide", "schedule_for_machine", "schedule_program"]
