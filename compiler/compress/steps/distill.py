"""Distill: a compressed model learns to answer like the original one (Hinton et al. 2015).

No labels are needed: for each sample the original says what is to be answered. With student s
and teacher t, scores z and p = softmax(z / T), the loss of an output is

    sum (s - t)^2 / sum (t - mean t)^2  +  T^2 sum_i p_ti log(p_ti / p_si)

the second term for class scores only; outputs behind a softmax have it alone. Weights that are
zero stay zero, so that what was pruned stays pruned.
"""

import hashlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator
from threadpoolctl import threadpool_limits
from tvm import IRModule

from edgec.compiler.calibration.float_model import FloatModel
from edgec.compiler.compress.autodiff.gradient import Network, Parameter
from edgec.compiler.compress.step import CompressionStep, StepContext
from edgec.compiler.compress.training import Arrays, Checkpoint, Schedule, State, descend
from edgec.compiler.errors import CalibrationError, UnsupportedModelError, UsageError
from edgec.compiler.ir.anchors import Operator, find_operators
from edgec.compiler.ir.graph import Graph
from edgec.compiler.ir.relax_helpers import op_name, shape_of
from edgec.compiler.ir.rewrite import with_weights
from edgec.compiler.ir.signature import Tensors
from edgec.compiler.support.cores import usable_cores
from edgec.compiler.support.npy_files import NpyError, read_arrays

# Images that one thread evaluates at a time, and what their values may take.
_IMAGES = 16
_BYTES = 256 * 2**20

# Samples that tell how far the teacher's outputs spread.
_SPREAD_SAMPLES = 64


class Distill(CompressionStep):
    """Train weights and biases until the model answers like the original.

    Samples are held in memory.

    Attributes:
        epochs: passes over the samples, at most.
        batch: images in a step.
        rate: largest step size of Adam.
        warmup: share of the steps in which the rate rises; it falls as a cosine then.
        temperature: T of class scores.
        loss: `scores`: as for class scores; `values`: the first term alone; `auto`: scores are
            outputs [N, classes] and those behind a softmax.
        features: weight of the differences of intermediate values that both models have.
        labels: .npy file of integers, one for each image of the samples, in order.
        label_weight: the label weight of their cross entropy.
        held_out: share of the samples that decide when to end, and which weights are kept.
        patience: epochs without a smaller loss after which it ends.
        clip: largest norm of a gradient.
        noise: added to inputs, as a share of their deviation.
        shift: inputs [N, C, H, W] are moved by up to so many pixels.
        mix: mix pairs of images in random shares.
        seed: the seed of order, noise, shifts and shares.
    """

    kind: Literal["distill"] = "distill"
    epochs: int = Field(default=30, ge=1)
    batch: int = Field(default=32, ge=1)
    rate: float = Field(default=2e-3, gt=0)
    warmup: float = Field(default=0.05, ge=0, le=1)
    temperature: float = Field(default=2.0, gt=0)
    loss: Literal["auto", "scores", "values"] = "auto"
    features: float = Field(default=0.0, ge=0)
    labels: Path | None = None
    label_weight: float = Field(default=0.5, gt=0)
    held_out: float = Field(default=0.1, ge=0, lt=1)
    patience: int = Field(default=10, ge=1)
    clip: float = Field(default=1.0, gt=0)
    noise: float = Field(default=0.0, ge=0)
    shift: int = Field(default=0, ge=0)
    mix: bool = False
    seed: int = 0

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if self.mix and self.labels is not None:
            raise ValueError("mixed images have no labels: leave out mix or labels")
        return self

    @property
    def needs_samples(self) -> bool:
        """Return the teacher answers for something."""
        return True

    def apply(self, graph: Graph, context: StepContext) -> IRModule:
        """Train.

        Raises:
            UnsupportedModelError: nothing to train, or operators without a derivative.
            BadInputError: the checkpoint is of another run.
        """
        operators = self.weighted(graph)
        if not operators:
            raise UnsupportedModelError(
                "distill: the model has no convolution or matrix product with constant weights"
            )
        parameters = _parameters(graph, operators)
        network = Network(graph, parameters)
        assert context.samples is not None
        with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(usable_cores()) as pool:
            values = _Run(self, network, parameters, context, pool).train()
        anchors = {operator.anchor for operator in operators}
        weights = {v: array for (v, _), array in values.items() if v in anchors}
        biases = {v: array for (v, _), array in values.items() if v not in anchors}
        return with_weights(graph, weights, biases)


def _parameters(graph: Graph, operators: Iterable[Operator]) -> dict[Parameter, NDArray[Any]]:
    """Return weights and biases by place."""
    found: dict[Parameter, NDArray[Any]] = {}
    for operator in operators:
        assert operator.weight is not None
        found[(operator.anchor, 1)] = operator.weight.array
        if operator.bias is not None:
            variable = operator.bias[0]
            for place, operand in enumerate(graph.definitions[variable].args):
                array = graph.constant(operand)
                if array is not None:
                    found[(variable, place)] = array
    return found


@dataclass(frozen=True)
class _Output:
    """An output describes one value that the student is compared in.

    Attributes:
        variable: the one of the student.
        name: the name of the teacher's value.
        compares: its differences count.
        scores: it is class scores; `log` for what the teacher gives behind a softmax.
        weight: the weight of its differences.
    """

    variable: Any
    name: str
    compares: bool
    scores: Literal["", "direct", "log"] = ""
    weight: float = 1.0


def _outputs(settings: Distill, network: Network, context: StepContext) -> list[_Output]:
    graph, found = network.graph, []
    for result, spec in zip(graph.results, context.signature.outputs, strict=True):
        variable = network.of(result)
        if not graph.is_float(variable) or variable not in graph.definitions:
            continue
        shape, call = shape_of(variable) or (), graph.definitions[variable]
        rank = len(shape)
        softmax = op_name(call) == "relax.nn.softmax" and int(call.attrs.axis) % rank == rank - 1
        if softmax and settings.loss != "values":
            logits = network.of(call.args[0])
            found.append(_Output(logits, f"result {spec.name}", compares=False, scores="log"))
            continue
        is_scores = rank == 2 and shape[1] > 1 and settings.loss == "auto"
        scores: Literal["", "direct"] = "direct" if is_scores or settings.loss == "scores" else ""
        found.append(_Output(variable, f"result {spec.name}", compares=True, scores=scores))
    if not found:
        raise UnsupportedModelError("distill: the model gives no floats to compare")
    return found


def _features(settings: Distill, graph: Graph, context: StepContext) -> list[tuple[_Output, Any]]:
    """Return values of the same name and shape in both models, with the teacher's variable."""
    if not settings.features:
        return []
    teacher = {o.name: o.result for o in find_operators(context.original) if o.weight is not None}
    return [
        (_Output(o.result, o.name, compares=True, weight=settings.features), teacher[o.name])
        for o in find_operators(graph)
        if o.name in teacher and shape_of(teacher[o.name]) == shape_of(o.result)
    ]


class _Run:
    """A run is one training."""

    def __init__(
        self,
        settings: Distill,
        network: Network,
        parameters: dict[Parameter, NDArray[Any]],
        context: StepContext,
        pool: ThreadPoolExecutor,
    ) -> None:
        self.settings, self.network, self.context, self.pool = settings, network, context, pool
        self.parameters = parameters
        assert context.samples is not None
        self.names = [spec.name for spec in context.signature.inputs]
        self.samples = [[sample[name] for name in self.names] for sample in context.samples]
        if not self.samples:
            raise CalibrationError(f"calibration data {context.samples.source} hold no samples")
        self.each = len(self.samples[0][0]) if self.samples[0][0].ndim else 1
        self.labels = self._labels()
        anchors = {operator.anchor for operator in find_operators(network.graph)}
        # Of what stays zero: weights, not biases.
        self.masks = [a != 0 if v in anchors else None for (v, _), a in parameters.items()]
        features = _features(settings, network.graph, context)
        self.outputs = [*_outputs(settings, network, context), *(output for output, _ in features)]
        self.teacher = FloatModel(
            context.original, context.signature, [v for _, v in features], context.evaluate
        )
        stackable = network.stackable(self.samples[0], parameters)
        self.chunk = self._chunk() if stackable else 1
        order = np.random.default_rng(settings.seed).permutation(len(self.samples))
        held = int(settings.held_out * len(order))
        self.train_set, self.held_set = order[held:], order[:held] if held else order
        self.spread = self._spread()

    def _chunk(self) -> int:
        """Return samples that are evaluated at a time."""
        graph = self.network.graph
        numbers = sum(int(np.prod(shape_of(v) or ())) for v, _ in graph.bindings if shape_of(v))
        return max(1, min(_IMAGES // self.each, _BYTES // (8 * max(1, numbers))))

    def _labels(self) -> NDArray[np.int64] | None:
        path = self.settings.labels
        if path is None:
            return None
        try:
            labels = read_arrays(Path(path))
        except NpyError as error:
            raise UsageError(f"labels {path} {error}") from None
        if isinstance(labels, dict):
            raise UsageError(f"labels {path} is an archive; one array (.npy) is expected")
        count = self.each * len(self.samples)
        if labels.ndim != 1 or len(labels) < count or not np.issubdtype(labels.dtype, np.integer):
            raise UsageError(
                f"labels {path}: {labels.dtype} {list(labels.shape)} was found, integers "
                f"[{count}] are expected, one for each image of the samples"
            )
        return np.asarray(labels[:count], np.int64).reshape(len(self.samples), self.each)

    def train(self) -> dict[Parameter, NDArray[Any]]:
        """Return the trained values."""
        settings = self.settings
        checkpoint, state = None, None
        if self.context.checkpoint is not None:
            checkpoint = Checkpoint(self.context.checkpoint, self._key())
            state = checkpoint.load()
        state = state or State(list(self.parameters.values()))
        per_step = max(1, settings.batch // self.each)
        steps = -(-len(self.train_set) // per_step)

        def gradient(values: Arrays, epoch: int, place: int) -> Arrays:
            order = np.random.default_rng([settings.seed, epoch]).permutation(self.train_set)
            chosen = order[place * per_step : (place + 1) * per_step]
            random = np.random.default_rng([settings.seed, epoch, place + 1])
            return self._gradient(values, chosen, random)

        with self.context.progress.parts("distill", settings.epochs * steps) as advance:
            best = descend(
                state, self._schedule(), steps, gradient, self._loss, checkpoint, advance
            )
        return dict(zip(self.parameters, best, strict=True))

    def _schedule(self) -> Schedule:
        s = self.settings
        return Schedule(s.epochs, s.rate, s.warmup, s.patience, s.clip)

    def _key(self) -> str:
        """Return the key of all that decides what comes out."""
        digest = hashlib.sha256(self.settings.model_dump_json().encode())
        for array in [*self.parameters.values(), *(a for s in self.samples for a in s)]:
            digest.update(array.tobytes())
        return digest.hexdigest()

    def _expected(self, inputs: Sequence[NDArray[Any]]) -> Tensors:
        """Return what the teacher says to stacked samples."""
        parts = []
        for start in range(0, len(inputs[0]), self.each) if inputs[0].ndim else (0,):
            part = [a[start : start + self.each] for a in inputs] if inputs[0].ndim else inputs
            parts.append(self.teacher.values(dict(zip(self.names, part, strict=True))))
        return {o.name: np.concatenate([part[o.name] for part in parts]) for o in self.outputs}

    def _spread(self) -> dict[str, float]:
        """Return mean square of the teacher's values around their mean, by name."""
        sums: dict[str, list[float]] = {}
        for index in self.train_set[:_SPREAD_SAMPLES]:
            for name, array in self._expected(self.samples[index]).items():
                total = sums.setdefault(name, [0.0, 0.0, 0.0])
                total[0] += array.size
                total[1] += float(array.sum(dtype=np.float64))
                total[2] += float(np.square(array, dtype=np.float64).sum())
        return {n: max(square / c - (s / c) ** 2, 1e-12) for n, (c, s, square) in sums.items()}

    def _chunks(self, chosen: NDArray[Any], random: np.random.Generator | None) -> list["_Chunk"]:
        inputs = [
            np.concatenate(arrays) if len(arrays) > 1 else arrays[0]
            for arrays in zip(*(self.samples[i] for i in chosen), strict=True)
        ]
        if random is not None:
            inputs = [self._varied(array, random) for array in inputs]
        size = self.chunk * self.each
        chunks = []
        for place in range(0, len(chosen), self.chunk):
            start = place * self.each
            part = [array[start : start + size] if array.ndim else array for array in inputs]
            ids = chosen[place : place + self.chunk]
            labels = self.labels[ids].ravel() if self.labels is not None else None
            chunks.append(_Chunk(part, self._expected(part), labels, len(ids) / len(chosen)))
        return chunks

    def _varied(self, array: NDArray[Any], random: np.random.Generator) -> NDArray[Any]:
        settings = self.settings
        if not np.issubdtype(array.dtype, np.floating):
            return array
        if settings.shift and array.ndim == 4:
            far = settings.shift
            padded = np.pad(array, ((0, 0), (0, 0), (far, far), (far, far)), mode="edge")
            array, (height, width) = array.copy(), array.shape[2:]
            for image, (y, x) in enumerate(random.integers(0, 2 * far + 1, (len(array), 2))):
                array[image] = padded[image, :, y : y + height, x : x + width]
        if settings.mix and len(array) > 1:
            shares = random.random((len(array), *(1,) * (array.ndim - 1)), np.float32)
            array = shares * array + (1 - shares) * array[random.permutation(len(array))]
        if settings.noise:
            noise = random.standard_normal(array.shape, np.float32)
            array = array + np.float32(settings.noise * array.std()) * noise
        return array

    def _gradient(
        self, values: Arrays, chosen: NDArray[Any], random: np.random.Generator
    ) -> Arrays:
        parameters = dict(zip(self.parameters, values, strict=True))

        def each(chunk: "_Chunk") -> dict[Parameter, NDArray[Any]]:
            tape = self.network.run(chunk.inputs, parameters)
            _, seeds = self._compare(tape.values, chunk)
            return self.network.gradients(tape, seeds)

        parts = list(self.pool.map(each, self._chunks(chosen, random)))
        totals = []
        for index, parameter in enumerate(self.parameters):
            zero = np.zeros_like(values[index])
            total = sum((part.get(parameter, zero) for part in parts), start=zero)
            mask = self.masks[index]
            totals.append(total if mask is None else total * mask)
        return totals

    def _loss(self, values: Arrays) -> float:
        """Return the loss on the samples that are held out."""
        parameters = dict(zip(self.parameters, values, strict=True))
        total = 0.0
        for start in range(0, len(self.held_set), self.chunk):
            (chunk,) = self._chunks(self.held_set[start : start + self.chunk], None)
            loss, _ = self._compare(self.network.run(chunk.inputs, parameters).values, chunk)
            total += loss * len(chunk.inputs[0])
        return total / (len(self.held_set) * self.each)

    def _compare(
        self, values: dict[Any, NDArray[Any]], chunk: "_Chunk"
    ) -> tuple[float, dict[Any, NDArray[Any]]]:
        """Return the loss of a chunk, and its derivatives times the chunk's share."""
        loss, seeds = 0.0, dict[Any, NDArray[Any]]()

        def add(variable: Any, gradient: NDArray[Any]) -> None:
            part = (gradient * np.float32(chunk.share)).astype(np.float32)
            seeds[variable] = seeds[variable] + part if variable in seeds else part

        for output in self.outputs:
            actual, expected = values[output.variable], chunk.expected[output.name]
            if output.compares:
                difference = actual - expected
                scale = output.weight / (self.spread[output.name] * difference.size)
                loss += scale * float(np.vdot(difference, difference))
                add(output.variable, 2 * scale * difference)
            if output.scores:
                if output.scores == "log":
                    expected = np.log(np.maximum(expected, 1e-20))
                part, gradient = _divergence(actual, expected, self.settings.temperature)
                loss += part
                add(output.variable, gradient)
                if chunk.labels is not None:
                    part, gradient = _cross_entropy(actual, chunk.labels)
                    loss += self.settings.label_weight * part
                    add(output.variable, self.settings.label_weight * gradient)
        return loss, seeds


@dataclass(frozen=True)
class _Chunk:
    """A chunk describes samples that are evaluated together.

    Attributes:
        inputs: stacked.
        expected: what the teacher says, by name.
        labels: the labels of the images; None without.
        share: the share of the step.
    """

    inputs: list[NDArray[Any]]
    expected: Tensors
    labels: NDArray[np.int64] | None
    share: float


def _log_softmax(scores: NDArray[Any]) -> NDArray[Any]:
    shifted = scores - scores.max(axis=-1, keepdims=True)
    result: NDArray[Any] = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result


def _divergence(
    actual: NDArray[Any], expected: NDArray[Any], temperature: float
) -> tuple[float, NDArray[Any]]:
    """Return mean of T^2 KL(teacher || student), and its derivative by the student's scores."""
    log_p, log_q = (_log_softmax(z / np.float32(temperature)) for z in (expected, actual))
    p = np.exp(log_p)
    rows = actual.size // actual.shape[-1]
    loss = temperature**2 * float(np.sum(p * (log_p - log_q))) / rows
    return loss, temperature * (np.exp(log_q) - p) / rows


def _cross_entropy(actual: NDArray[Any], labels: NDArray[np.int64]) -> tuple[float, NDArray[Any]]:
    """Return mean over the rows of scores [N, classes], and its derivative."""
    log_q = _log_softmax(actual)
    rows = np.arange(len(labels))
    gradient = np.exp(log_q)
    gradient[rows, labels] -= 1
    return -float(log_q[rows, labels].mean()), gradient / len(labels)
