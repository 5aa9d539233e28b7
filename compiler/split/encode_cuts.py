"""Round the floats that travel between stages: fewer bytes, and a loss that is measured.

The stage that computes a value rounds it, those that read it bring it back; both are operators of
the stages, so that what travels is a tensor like any other. With m the largest magnitude in it:

    float16    the nearest half float
    int8       round(127 x / m), and m / 127
    int4       round(7 x / m) in pairs of a byte, and m / 7; the second half of the values is in
               the upper four bits
"""

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from tvm import IRModule, relax

from edgec.compiler.ir.graph import Graph, substituted
from edgec.compiler.ir.relax_helpers import constant
from edgec.compiler.ir.signature import Signature, TensorSpec
from edgec.compiler.split.make_stages import Stage
from edgec.compiler.split.plan import Encoding

op = relax.op
_Emit = Callable[[Any], Any]
_LARGEST = {"int8": 127.0, "int4": 7.0}
# A tensor of zeros has a scale of its own.
_TINY = 1e-30


def encode_cuts(
    stages: Sequence[Stage], outputs: Collection[str], encoding: Encoding
) -> list[Stage]:
    """Return the stages with the floats between them rounded.

    Args:
        stages: in order.
        outputs: names of the model's outputs, which stay as they are for the host.
        encoding: how; `none` changes nothing.
    """
    if encoding == "none":
        return list(stages)
    given = {s.name for stage in stages for s in stage.signature.outputs}
    rounded = {
        spec.name
        for stage in stages
        for spec in stage.signature.inputs
        if spec.name in given and spec.dtype == "float32"
    }
    return [_encoded(stage, rounded, outputs, encoding) for stage in stages]


def encoded_parts(spec: TensorSpec, encoding: Encoding) -> list[TensorSpec]:
    """Return what travels in the place of a float value.

    >>> [str(part) for part in encoded_parts(TensorSpec("x", (1, 3), "float32"), "int4")]
    ['x/int4 [2] uint8', 'x/scale [1] float32']
    """
    if encoding == "float16":
        return [TensorSpec(f"{spec.name}/float16", spec.shape, "float16")]
    scale = TensorSpec(f"{spec.name}/scale", (1,), "float32")
    if encoding == "int8":
        return [TensorSpec(f"{spec.name}/int8", spec.shape, "int8"), scale]
    count = math.prod(extent or 0 for extent in spec.shape)
    return [TensorSpec(f"{spec.name}/int4", ((count + 1) // 2,), "uint8"), scale]


def _encoded(
    stage: Stage, rounded: Collection[str], kept: Collection[str], encoding: Encoding
) -> Stage:
    graph = Graph(stage.module, {})
    others = {v: f for v, f in stage.module.functions_items() if not isinstance(f, relax.Function)}
    builder = relax.BlockBuilder(IRModule(others))
    made: dict[Any, Any] = {}
    parameters: list[Any] = []
    inputs: list[TensorSpec] = []
    coded: list[tuple[Any, TensorSpec, list[Any]]] = []
    for spec, parameter in zip(stage.signature.inputs, graph.parameters, strict=True):
        parts = encoded_parts(spec, encoding) if spec.name in rounded else [spec]
        fresh = [parameter]
        if spec.name in rounded:
            fresh = [
                relax.Var(f"{parameter.name}_{n}", relax.TensorType(part.shape, part.dtype))
                for n, part in enumerate(parts)
            ]
            coded.append((parameter, spec, fresh))
        parameters += fresh
        inputs += parts
    outputs: list[TensorSpec] = []
    fields: list[Any] = []
    with builder.function("main", parameters, dict(stage.module["main"].attrs or {})):
        with builder.dataflow():
            for parameter, spec, fresh in coded:
                made[parameter] = _decode(builder.emit, fresh, spec, encoding)
            for variable, value in graph.bindings:
                made[variable] = builder.emit(substituted(value, made), variable.name)
            for spec, result in zip(stage.signature.outputs, graph.results, strict=True):
                current = made.get(result, result)
                if spec.name in kept or spec.name not in rounded:
                    outputs.append(spec)
                    fields.append(current)
                if spec.name in rounded:
                    outputs += encoded_parts(spec, encoding)
                    fields += _encode(builder.emit, current, spec, encoding)
            bound = builder.emit_output(fields[0] if len(fields) == 1 else relax.Tuple(fields))
        builder.emit_func_output(bound)
    signature = Signature(tuple(inputs), tuple(outputs))
    return replace(stage, module=builder.get(), signature=signature)


def _encode(emit: _Emit, value: Any, spec: TensorSpec, encoding: Encoding) -> list[Any]:
    if encoding == "float16":
        return [emit(op.astype(value, "float16"))]
    largest = _LARGEST[encoding]
    magnitude = emit(op.maximum(emit(op.max(emit(op.abs(value)))), _number(_TINY)))
    scale = emit(op.divide(magnitude, _number(largest)))
    codes = emit(op.round(emit(op.divide(value, scale))))
    sent_scale = emit(op.reshape(scale, [1]))
    if encoding == "int8":
        return [emit(op.astype(codes, "int8")), sent_scale]
    count = math.prod(extent or 0 for extent in spec.shape)
    flat = emit(op.reshape(codes, [count]))
    if count % 2:
        flat = emit(op.concat([flat, constant(np.zeros(1, np.float32))], 0))
    low, high = _halves(emit, flat, count + count % 2)
    upper = emit(op.multiply(emit(op.add(high, _number(8))), _number(16)))
    pairs = emit(op.add(upper, emit(op.add(low, _number(8)))))
    return [emit(op.astype(pairs, "uint8")), sent_scale]


def _halves(emit: _Emit, flat: Any, count: int) -> tuple[Any, Any]:
    half = count // 2
    return (
        emit(op.strided_slice(flat, [0], [0], [half])),
        emit(op.strided_slice(flat, [0], [half], [count])),
    )


def _decode(emit: _Emit, parts: Sequence[Any], spec: TensorSpec, encoding: Encoding) -> Any:
    codes = emit(op.astype(parts[0], "float32"))
    if encoding == "float16":
        return codes
    if encoding == "int4":
        count = math.prod(extent or 0 for extent in spec.shape)
        upper = emit(op.floor(emit(op.multiply(codes, _number(1 / 16)))))
        lower = emit(op.subtract(codes, emit(op.multiply(upper, _number(16)))))
        both = emit(op.subtract(emit(op.concat([lower, upper], 0)), _number(8)))
        if count % 2:
            both = emit(op.strided_slice(both, [0], [0], [count]))
        codes = emit(op.reshape(both, list(spec.shape)))
    return emit(op.multiply(codes, emit(op.reshape(parts[1], []))))


def _number(value: float) -> Any:
    return constant(np.array(value, np.float32))
