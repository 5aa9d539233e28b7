"""Let operators of caches read and write float16 where a graph converts all of a cache.

    appended = append_rows(float32(past), new, offset)      past and present are float16;
    present = float16(appended)                             attention reads `appended`

ONNX has no attention of float32 over a cache of float16. Rows are rounded when they are written;
what attention reads of them are the rounded ones, as in every later run.
"""

from dataclasses import dataclass

from tvm import IRModule, relax

from edgec.compiler.ir.cache_operators import append_rows
from edgec.compiler.ir.relax_helpers import dtype_of, op_name
from edgec.compiler.passes.base import CallRewriter, Pass

_HALF, _WIDE = "float16", "float32"


@dataclass(frozen=True)
class KeepHalfCaches(Pass):
    """Append to and attend over caches of float16 as they are.

    1. The cache that is appended to is float16, converted to float32, and new rows are float32.
    2. A conversion of the result to float16 is the appended cache; attention over its floats is
       attention over it.
    """

    def apply(self, module: IRModule) -> IRModule:
        """Rewrite `main`."""
        return _KeepHalfCachesRewriter(module).run()


@relax.expr_functor.mutator
class _KeepHalfCachesRewriter(CallRewriter):
    def rewrite(self, call: relax.Call) -> relax.Expr | None:
        name = op_name(call)
        if name == "edgec.append_rows":
            past, new, offset = call.args
            half = self._half(past)
            # (1)
            if half is None or dtype_of(new) != _WIDE:
                return None
            cache = self.emit(append_rows(half, new, offset, clear=bool(call.attrs["clear"])))
            return relax.op.astype(cache, _WIDE)
        # (2)
        if name == "relax.astype" and dtype_of(call) == _HALF:
            return self._half(call.args[0])
        if name == "edgec.cached_attention":
            keys, values = map(self._half, call.args[1:3])
            if keys is None or values is None:
                return None
            arguments = [call.args[0], keys, values, call.args[3]]
            return relax.Call(call.op, arguments, call.attrs)
        return None

    def _half(self, expression: relax.Expr) -> relax.Expr | None:
        """Return the float16 that a float32 was made of."""
        wide = self.definition(expression, "relax.astype")
        if wide is None or dtype_of(wide) != _WIDE or dtype_of(wide.args[0]) != _HALF:
            return None
        return wide.args[0]
