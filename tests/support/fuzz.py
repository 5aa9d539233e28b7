"""Seeded damage to files: bytes, and fields of a parsed ONNX model."""

import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import Message
from onnx import TensorProto
from support.onnx_graphs import make_model, node
from support.onnx_graphs import random as numbers

_INTEGERS = (-(2**63), -(2**31), -1, 0, 1, 2, 3, 7, 64, 1000, 2**20, 2**31 - 1, 2**31, 2**62)
_TEXTS = ("", "x", "y", "w", "Loop", "Conv", "Softmax", "ai.onnx", "\0", "a/b", "é" * 3)


def base_models() -> list[onnx.ModelProto]:
    """Return small models whose parts meet most of the front end."""
    conv = make_model(
        [
            node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1], strides=[2, 2]),
            node("Relu", ["c"], ["r"]),
            node("MaxPool", ["r"], ["p"], kernel_shape=[2, 2]),
            node("Flatten", ["p"], ["f"], axis=1),
            node("Softmax", ["f"], ["y"], axis=-1),
        ],
        {"x": [1, 2, 8, 8]},
        ["y"],
        {"w": numbers(3, 2, 3, 3)},
    )
    shapes = make_model(
        [
            node("Shape", ["x"], ["s"]),
            node("Gather", ["s", "i"], ["g"], axis=0),
            node("Concat", ["g", "m"], ["t"], axis=0),
            node("Reshape", ["x", "t"], ["r"]),
            node("Cast", ["r"], ["h"], to=TensorProto.FLOAT16),
            node("Transpose", ["h"], ["y"], perm=[1, 0]),
            node("Range", ["zero", "n", "one"], ["q"]),
            node("Neg", ["q"], ["z"]),
        ],
        {"x": [2, 3, 4]},
        ["y", "z"],
        {
            "i": np.array([0], np.int64),
            "m": np.array([-1], np.int64),
            "zero": np.array(0, np.int64),
            "one": np.array(1, np.int64),
            "n": np.array(6, np.int64),
        },
    )
    sizes = make_model(
        [
            node("ConstantOfShape", ["k"], ["c"]),
            node("Expand", ["x", "k"], ["e"]),
            node("Add", ["c", "e"], ["a"]),
            node("Pad", ["a", "p"], ["b"], mode="constant"),
            node("Slice", ["b", "st", "en"], ["d"]),
            node("Resize", ["d", "", "sc"], ["u"], mode="nearest"),
            node("TopK", ["u", "top"], ["y", "j"], axis=-1),
        ],
        {"x": [1, 4]},
        ["y"],
        {
            "k": np.array([3, 4], np.int64),
            "p": np.array([0, 1, 1, 0], np.int64),
            "st": np.array([0, 0], np.int64),
            "en": np.array([3, 4], np.int64),
            "sc": np.array([1, 2], np.float32),
            "top": np.array([2], np.int64),
        },
    )
    recurrent = make_model(
        [node("LSTM", ["x", "w", "r"], ["y", "h"], hidden_size=3)],
        {"x": [4, 1, 2]},
        ["y"],
        {"w": numbers(1, 12, 2), "r": numbers(1, 12, 3)},
    )
    return [conv, shapes, sizes, recurrent]


def damage_bytes(data: bytes, seed: int) -> bytes:
    """Return flip, drop, double or cut some bytes."""
    dice = random.Random(seed)
    result = bytearray(data)
    for _ in range(dice.choice((1, 1, 2, 5, 20))):
        at = dice.randrange(len(result) or 1)
        kind = dice.randrange(5)
        if kind == 0 and result:
            result[at] = dice.randrange(256)
        elif kind == 1 and result:
            result[at] ^= 1 << dice.randrange(8)
        elif kind == 2:
            del result[at : at + dice.randrange(1, 9)]
        elif kind == 3:
            result[at:at] = result[at : at + dice.randrange(1, 33)]
        elif kind == 4:
            result[at : at + 8] = dice.choice(_INTEGERS).to_bytes(8, "little", signed=True)
    if dice.random() < 0.1:
        del result[dice.randrange(len(result) or 1) :]
    return bytes(result)


def damage_model(model: onnx.ModelProto, seed: int) -> bytes:
    """Return change some fields of a model to other values of their type, or damage its bytes."""
    dice = random.Random(seed)
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    if dice.random() < 0.3:
        return damage_bytes(changed.SerializeToString(), seed)
    for _ in range(dice.choice((1, 1, 1, 2, 4))):
        dice.choice(list(_changes(changed, dice)))()
    return changed.SerializeToString()


def _changes(message: Message, dice: random.Random) -> Iterator[Callable[[], object]]:
    """Yield one change of every field."""
    for field, value in message.ListFields():
        name = field.name
        if field.type == field.TYPE_MESSAGE:
            for item in value if field.is_repeated else [value]:
                yield from _changes(item, dice)
            if field.is_repeated:
                at = dice.randrange(len(value))
                yield lambda value=value, at=at: value.pop(at)
                yield lambda value=value, at=at: value.append(value[at])
            continue
        made = _value_of(field, dice)
        if field.is_repeated:
            at = dice.randrange(len(value))

            def assign(value: Any = value, at: int = at, made: Any = made) -> None:
                value[at] = made

            yield assign
            yield lambda value=value, at=at: value.pop(at)
            yield lambda value=value, made=made: value.extend([made] * 3)
        elif field.type == field.TYPE_BYTES:
            seed = dice.randrange(2**30)
            yield lambda m=message, n=name, v=value, s=seed: setattr(m, n, damage_bytes(v, s))
        else:
            yield lambda m=message, n=name, made=made: setattr(m, n, made)
            yield lambda m=message, n=name: m.ClearField(n)


def _value_of(field: Any, dice: random.Random) -> Any:
    kind = field.cpp_type
    if kind == field.CPPTYPE_STRING:
        text = dice.choice(_TEXTS)
        return text.encode() if field.type == field.TYPE_BYTES else text
    if kind in (field.CPPTYPE_FLOAT, field.CPPTYPE_DOUBLE):
        return dice.choice((0.0, -1.0, 1e30, float("inf"), float("nan"), 0.5))
    if kind == field.CPPTYPE_ENUM:
        return dice.choice([value.number for value in field.enum_type.values])
    number = dice.choice(_INTEGERS)
    if kind == field.CPPTYPE_INT64:
        return number
    return abs(number) if kind == field.CPPTYPE_UINT64 else max(-(2**31), min(2**31 - 1, number))
