"""Provide control flow that is left after `edgec.compiler.frontend.control_flow`."""

from tvm import relax

from edgec.compiler.frontend.control_flow import WHY_KEPT
from edgec.compiler.frontend.node import Node, Refusal


def refuse_control_flow(node: Node) -> list[relax.Expr]:
    """Return if, Loop or Scan: refused with the reason that was found before."""
    reasons = {item.key: item.value for item in node.proto.metadata_props}
    raise Refusal(reasons.get(WHY_KEPT, "it could not be unrolled"))
