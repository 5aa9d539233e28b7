"""Draw networks of random shapes, for predictions that are fitted on more than known models.

Each is made of blocks that networks are made of, in sequence, so that its kernels find their
operands where those of a real model would.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from support.onnx_graphs import make_model, node

INPUT = "x"
# Networks from this one on have blocks that the others have seldom.
RARER = 60


class Network:
    """A network grows by a node at a time.

    Attributes:
        chance: draws everything.
        shape: of the last value.
        joint: whether attention begins with one product.
    """

    def __init__(self, seed: int, shape: tuple[int, ...]) -> None:
        self.chance = np.random.default_rng(seed)
        self.nodes: list[Any] = []
        self.weights: dict[str, np.ndarray] = {}
        self.first = shape
        self.joint = seed >= RARER
        self.shape = shape
        self.last = INPUT

    def pick(self, *values: Any) -> Any:
        """Return one of some values."""
        return values[int(self.chance.integers(len(values)))]

    def weight(self, *shape: int, around: float = 0.0) -> str:
        """Add a constant."""
        name = f"w{len(self.weights)}"
        spread = (2.0 / max(1, int(np.prod(shape[1:])))) ** 0.5
        values = self.chance.standard_normal(shape) * spread + around
        self.weights[name] = values.astype(np.float32)
        return name

    def constant(self, *values: int) -> str:
        """Add a constant of indices."""
        name = f"w{len(self.weights)}"
        self.weights[name] = np.array(values, np.int64)
        return name

    def index(self, value: int) -> str:
        """Add a constant index."""
        name = f"w{len(self.weights)}"
        self.weights[name] = np.int64(value)
        return name

    def add(self, op: str, inputs: list[str], count: int = 1, **attributes: Any) -> str:
        """Add a node; return its first result."""
        names = [f"v{len(self.nodes)}_{index}" for index in range(count)]
        self.nodes.append(node(op, inputs, names, **attributes))
        return names[0]

    def model(self) -> onnx.ModelProto:
        """Return the model."""
        return make_model(self.nodes, {INPUT: self.first}, [self.last], self.weights)

    # Of images: the last value is [1, channels, height, width].

    def activate(self) -> None:
        """Add an activation."""
        name = self.pick("Relu", "Relu", "Relu", "Clip", "HardSwish", "Silu", "LeakyRelu", "", "")
        if name == "Silu":
            gate = self.add("Sigmoid", [self.last])
            self.last = self.add("Mul", [self.last, gate])
        elif name == "Clip":
            bounds = [f"w{len(self.weights)}", f"w{len(self.weights) + 1}"]
            self.weights |= dict(zip(bounds, map(np.float32, (0, 6)), strict=True))
            self.last = self.add("Clip", [self.last, *bounds])
        elif name:
            self.last = self.add(name, [self.last])

    def conv(self, out: int, size: int, stride: int = 1, groups: int = 1) -> None:
        """Add a convolution."""
        _, channels, height, width = self.shape
        weights = [self.weight(out, channels // groups, size, size), self.weight(out)]
        pads = [size // 2] * 4
        self.last = self.add(
            "Conv", [self.last, *weights], pads=pads, strides=[stride] * 2, group=groups
        )
        extents = ((extent + 2 * (size // 2) - size) // stride + 1 for extent in (height, width))
        self.shape = (1, out, *extents)

    def joined(self, other: str) -> None:
        """Add a value of the same shape."""
        self.last = self.add("Add", [self.last, other])

    def concatenated(self, other: str, channels: int) -> None:
        """Append the channels of another value."""
        self.last = self.add("Concat", [self.last, other], axis=1)
        self.shape = (1, self.shape[1] + channels, *self.shape[2:])


def _wider(net: Network) -> int:
    channels = net.shape[1]
    grown = int(channels * net.pick(1, 1, 1.5, 2))
    step = int(net.pick(1, 4, 8, 8, 16))
    return max(8, min(768, round(grown / step) * step))


def _plain(net: Network) -> None:
    net.conv(_wider(net), net.pick(1, 1, 3, 3, 3, 5, 7), net.pick(1, 1, 2))
    net.activate()


def _separable(net: Network) -> None:
    net.conv(net.shape[1], net.pick(3, 3, 5), net.pick(1, 1, 2), net.shape[1])
    net.activate()
    net.conv(_wider(net), 1)
    net.activate()


def _inverted(net: Network) -> None:
    before, shape = net.last, net.shape
    net.conv(shape[1] * net.pick(2, 4, 6), 1)
    net.activate()
    net.conv(net.shape[1], net.pick(3, 5), 1, net.shape[1])
    net.activate()
    if net.pick(0, 1):
        _squeezed(net)
    net.conv(shape[1], 1)
    net.joined(before)


def _squeezed(net: Network) -> None:
    before, shape = net.last, net.shape
    net.last = net.add("GlobalAveragePool", [net.last])
    net.shape = (1, shape[1], 1, 1)
    net.conv(max(4, shape[1] // net.pick(4, 8, 16)), 1)
    net.last = net.add("Relu", [net.last])
    net.conv(shape[1], 1)
    gate = net.add(net.pick("Sigmoid", "HardSigmoid"), [net.last])
    net.last, net.shape = net.add("Mul", [before, gate]), shape


def _bottleneck(net: Network) -> None:
    before, shape = net.last, net.shape
    net.conv(max(8, shape[1] // net.pick(2, 4)), 1)
    net.activate()
    net.conv(net.shape[1], 3)
    net.activate()
    net.conv(shape[1], 1)
    net.joined(before)
    net.last = net.add("Relu", [net.last])


def _branches(net: Network) -> None:
    before, shape = net.last, net.shape
    net.conv(_wider(net) // 2, 1)
    net.activate()
    first, channels = net.last, net.shape[1]
    net.last, net.shape = before, shape
    net.conv(max(8, shape[1] // 2), 1)
    net.activate()
    net.conv(_wider(net), net.pick(3, 5))
    net.activate()
    net.concatenated(first, channels)


def _shuffled(net: Network) -> None:
    groups = net.pick(2, 4, 4, 8) if net.joint else net.pick(2, 4)
    _, channels, height, width = net.shape
    if channels % (2 * groups):
        return _plain(net)
    net.conv(channels, net.pick(1, 3), 1, groups)
    split = net.constant(1, groups, channels // groups, height, width)
    net.last = net.add("Reshape", [net.last, split])
    net.last = net.add("Transpose", [net.last], perm=[0, 2, 1, 3, 4])
    net.last = net.add("Reshape", [net.last, net.constant(1, channels, height, width)])
    net.conv(channels, 3, 1, channels)
    return None


def _normalized(net: Network) -> None:
    count = net.shape[1]
    parameters = [net.weight(count, around=v) for v in (1.0, 0.0, 0.0)] + [f"w{len(net.weights)}"]
    net.weights[parameters[-1]] = np.ones(count, np.float32)
    net.last = net.add("BatchNormalization", [net.last, *parameters])
    net.last = net.add("Relu", [net.last])
    net.conv(_wider(net), net.pick(1, 3))


def _pooled(net: Network) -> None:
    size, stride = net.pick((2, 2), (3, 2), (3, 1), (5, 1))
    kind = net.pick("MaxPool", "MaxPool", "AveragePool")
    pad = size // 2 if size % 2 else 0
    net.last = net.add(
        kind, [net.last], kernel_shape=[size] * 2, strides=[stride] * 2, pads=[pad] * 4
    )
    extents = ((extent + 2 * pad - size) // stride + 1 for extent in net.shape[2:])
    net.shape = (*net.shape[:2], *extents)


def _split_stage(net: Network) -> None:
    _, channels, height, width = net.shape
    if channels % 2:
        return _plain(net)
    name = net.add("Split", [net.last], 2, axis=1)
    other = f"{name[:-1]}1"
    net.last, net.shape = other, (1, channels // 2, height, width)
    net.conv(channels // 2, 3)
    net.activate()
    if net.pick(0, 1):
        net.joined(other)
    return net.concatenated(name, channels // 2)


def _up(net: Network) -> None:
    _, channels, height, width = net.shape
    if height > 48:
        return _separable(net)
    scales = f"w{len(net.weights)}"
    net.weights[scales] = np.array([1, 1, 2, 2], np.float32)
    net.last = net.add("Resize", [net.last, "", scales], mode=net.pick("nearest", "linear"))
    net.shape = (1, channels, 2 * height, 2 * width)
    return net.conv(max(8, channels // 2), 1)


_BLOCKS: tuple[Callable[[Network], None], ...] = (
    *(_plain, _plain, _plain, _separable, _separable, _inverted, _bottleneck, _branches),
    *(_shuffled, _normalized, _pooled, _split_stage, _up),
)
_RARE = (_shuffled, _shuffled, _shuffled, _squeezed, _split_stage, _pooled, _up, _normalized)


def images(seed: int) -> onnx.ModelProto:
    """Return a network of convolutions."""
    chance = np.random.default_rng(seed + 1000)
    height = int(chance.choice([16, 28, 32, 48, 64, 96, 112, 160, 224]))
    width = int(height * chance.choice([1, 1, 1, 2, 4])) if height <= 64 else height
    net = Network(seed, (1, net_channels(chance), height, width))
    net.conv(int(net.pick(8, 16, 24, 32, 48, 64)), net.pick(3, 3, 7), net.pick(1, 2, 2))
    net.activate()
    for _ in range(net.pick(5, 7, 9)):
        small = min(net.shape[2:]) < 6
        work = net.shape[1] * net.shape[2] * net.shape[3]
        if work > 400_000 and not small:
            _pooled(net)
        block = net.pick(*(_RARE if seed >= RARER else _BLOCKS))
        (_inverted if small and block in (_plain, _pooled) else block)(net)
    _ended(net)
    return net.model()


def net_channels(chance: np.random.Generator) -> int:
    """Return the channels of an input."""
    return int(chance.choice([1, 3, 3, 3, 16]))


def _ended(net: Network) -> None:
    """Add a head: of classes, of boxes, or of a text."""
    kind = net.pick("classes", "classes", "boxes", "text")
    _, channels, height, width = net.shape
    if kind == "classes":
        net.last = net.add("GlobalAveragePool", [net.last])
        net.last = net.add("Flatten", [net.last])
        count = int(net.pick(10, 100, 400, 1000))
        parameters = [net.weight(channels, count), net.weight(count)]
        net.last = net.add("Gemm", [net.last, *parameters])
        net.last = net.add("Softmax", [net.last])
        return
    net.last = net.add("Reshape", [net.last, net.constant(1, channels, height * width)])
    net.last = net.add("Transpose", [net.last], perm=[0, 2, 1])
    if kind == "text":
        count = int(net.pick(97, 1000, 4000))
        net.last = net.add("MatMul", [net.last, net.weight(channels, count)])
        net.last = net.add("Add", [net.last, net.weight(count)])
        net.last = net.add("Softmax", [net.last], axis=2)
    else:
        net.last = net.add("Sigmoid", [net.last])


# Of texts: the last value is [1, length, width].


def _dense(net: Network, out: int) -> None:
    net.last = net.add("MatMul", [net.last, net.weight(net.shape[-1], out)])
    net.last = net.add("Add", [net.last, net.weight(out)])
    net.shape = (*net.shape[:-1], out)


def _attended(net: Network) -> None:
    before, (_, length, width) = net.last, net.shape
    heads = net.pick(2, 4, 8)
    parts = []
    if net.joint:
        # One product for all three, which are taken apart afterwards.
        _dense(net, 3 * width)
        split = net.constant(1, length, 3, heads, width // heads)
        value = net.add("Reshape", [net.last, split])
        value = net.add("Transpose", [value], perm=[2, 0, 3, 1, 4])
        parts = [net.add("Gather", [value, net.index(number)], axis=0) for number in range(3)]
        parts[1] = net.add("Transpose", [parts[1]], perm=[0, 1, 3, 2])
    for number in range(0 if net.joint else 3):
        net.last, net.shape = before, (1, length, width)
        _dense(net, width)
        split = net.constant(1, length, heads, width // heads)
        value = net.add("Reshape", [net.last, split])
        perm = [0, 2, 3, 1] if number == 1 else [0, 2, 1, 3]
        parts.append(net.add("Transpose", [value], perm=perm))
    scores = net.add("MatMul", parts[:2])
    scale = f"w{len(net.weights)}"
    net.weights[scale] = np.float32((width // heads) ** 0.5)
    scores = net.add("Softmax", [net.add("Div", [scores, scale])], axis=-1)
    mixed = net.add("Transpose", [net.add("MatMul", [scores, parts[2]])], perm=[0, 2, 1, 3])
    net.last = net.add("Reshape", [mixed, net.constant(1, length, width)])
    net.shape = (1, length, width)
    _dense(net, width)
    _added(net, before)


def _added(net: Network, before: str) -> None:
    net.joined(before)
    width = net.shape[-1]
    parameters = [net.weight(width, around=1.0), net.weight(width)]
    net.last = net.add("LayerNormalization", [net.last, *parameters], axis=-1)


def _forward(net: Network) -> None:
    before, width = net.last, net.shape[-1]
    _dense(net, width * net.pick(2, 4))
    kind = net.pick("Relu", "Gelu", "Silu")
    if kind == "Gelu":
        half, one, root = (f"w{len(net.weights) + index}" for index in range(3))
        net.weights |= {half: np.float32(0.5), one: np.float32(1), root: np.float32(2**0.5)}
        wave = net.add("Erf", [net.add("Div", [net.last, root])])
        scaled = net.add("Mul", [net.last, net.add("Add", [wave, one])])
        net.last = net.add("Mul", [scaled, half])
    elif kind == "Silu":
        net.last = net.add("Mul", [net.last, net.add("Sigmoid", [net.last])])
    else:
        net.last = net.add("Relu", [net.last])
    _dense(net, width)
    _added(net, before)


def texts(seed: int) -> onnx.ModelProto:
    """Return a network of attention."""
    chance = np.random.default_rng(seed + 2000)
    length = int(chance.choice([8, 16, 25, 40, 64, 96, 128, 197]))
    width = int(chance.choice([64, 96, 120, 128, 192, 256, 384]))
    net = Network(seed, (1, length, width))
    for _ in range(net.pick(1, 2)):
        _attended(net)
        _forward(net)
    return net.model()


def random_network(seed: int) -> onnx.ModelProto:
    """Return a network: every fifth of attention, the others of convolutions."""
    return texts(seed) if seed % 5 == 4 else images(seed)
