"""Provide structured pruning: channels, features and attention heads go, and shapes with them."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from pydantic import Field
from tvm import IRModule

from edgec.compiler.calibration.float_model import FloatModel
from edgec.compiler.calibration.moments import Moments, has_moments, measure_moments, patch_length
from edgec.compiler.compress.channel_groups.dependencies import Dependencies, Group, Term
from edgec.compiler.compress.channel_groups.effects import weighted_by_effect
from edgec.compiler.compress.channel_groups.scores import (
    NEEDING_SAMPLES,
    ChannelBlock,
    Score,
    consumer_of,
    coupled_channels,
    rank,
)
from edgec.compiler.compress.latency import latencies_ms
from edgec.compiler.compress.reconstruct import MAX_LENGTH, reconstruct
from edgec.compiler.compress.step import CompressionStep, StepContext
from edgec.compiler.errors import UnsupportedModelError
from edgec.compiler.ir.anchors import Operator, find_operators
from edgec.compiler.ir.graph import Graph
from edgec.compiler.numerics.affine import Floats

# Compiles that a budget of time takes; each removes more or less than the one before.
LATENCY_TRIALS = 4


class Channels(CompressionStep):
    """Remove the channels that cost least, until the budget is met.

    Attributes:
        ratio: share of the budget that goes, 0..1.
        budget: multiplications, weights, or the time of one inference on this machine.
        score: what a channel costs: the error left after its readers are corrected, their error
            unrepaired, its weights' energy, its distance to the most similar filter, or chance;
            None takes the first with samples, the energy without.
        allocate: which layers it goes from: where the error is least for what it saves; the same
            with each layer's error weighted by what it is measured to do to the outputs; or the
            same share of each. None takes the second with samples, the first without.
        repair: adjust the weights that are left by least squares, if there are samples.
        multiple: the multiple of which the number of channels is kept; None takes the target's
            vector width.
        seed: the seed of chance.
    """

    kind: Literal["channels"] = "channels"
    ratio: float = Field(gt=0, lt=1)
    budget: Literal["macs", "weights", "latency"] = "macs"
    score: Score | None = None
    allocate: Literal["error", "effect", "uniform"] | None = None
    repair: bool = True
    multiple: int | None = Field(default=None, ge=1)
    seed: int = 0

    @property
    def needs_samples(self) -> bool:
        """Return whether the step cannot do without samples."""
        return self.score in NEEDING_SAMPLES or self.allocate == "effect"

    def apply(self, graph: Graph, context: StepContext) -> IRModule:
        """Remove channels and correct what is left."""
        dependencies = Dependencies(graph)
        ranked = self._ranked(dependencies, context)
        if not ranked:
            raise UnsupportedModelError(
                "channels: the model has no channels that could be removed: all of them reach an "
                "output or an operator that needs them all"
            )
        chosen = self._chosen(dependencies, ranked, context)
        module = dependencies.without(chosen)
        if context.samples is None or not self.repair:
            return module
        kept = dependencies.kept(chosen)
        origins = [variable for variable, _ in graph.bindings]

        def left(variable: Any, values: Floats) -> Floats:
            return dependencies.kept_values(variable, values, kept)

        return reconstruct(module, graph, origins, context, left)

    def _ranked(self, dependencies: Dependencies, context: StepContext) -> list[list[ChannelBlock]]:
        """Return the blocks of all coupled channels that may shrink, each in order."""
        given = context.samples is not None
        score: Score = self.score or ("repair" if given else "magnitude")
        allocate = self.allocate or ("effect" if given else "error")
        graph = dependencies.graph
        anchors = {o.anchor for o in self.weighted(graph)}
        moments = {}
        if score in NEEDING_SAMPLES or allocate == "effect":
            assert context.samples is not None
            moments = _moments(graph, context)
        consumers = [
            item
            for s in dependencies.linear_operators
            if (item := consumer_of(dependencies, s, *moments.get(s.variable, (None, None))))
        ]
        # A skipped operator keeps its inputs and its outputs.
        free = {s.weight for s in dependencies.linear_operators if s.variable in anchors}
        mine = [s.weight for s in dependencies.linear_operators if s.weight]
        fixed = {place for place in mine if place not in free}
        groups = [g for g in dependencies.groups if not fixed & {s.place for s in g.slots}]
        lanes = self.multiple or context.target.float_lanes
        ranked = []
        found = coupled_channels(groups)
        with context.progress.parts("score channels", len(found)) as advance:
            for coupled in found:
                ranked.append(rank(coupled, consumers, dependencies, score, lanes, self.seed))
                advance()
        ranked = [blocks for blocks in ranked if blocks]
        if allocate == "effect" and score != "random":
            assert context.samples is not None
            return weighted_by_effect(dependencies, ranked, consumers, moments, context)
        return ranked

    def _chosen(
        self,
        dependencies: Dependencies,
        ranked: Sequence[Sequence[ChannelBlock]],
        context: StepContext,
    ) -> list[Group]:
        evenly = self.allocate == "uniform" or self.score == "random"
        macs, weights = dependencies.multiplications, dependencies.weights
        if self.budget == "weights":
            return choose(dependencies, ranked, weights, self.ratio, evenly)
        if self.budget == "macs":
            return choose(dependencies, ranked, macs, self.ratio, evenly)
        original = context.evaluate(dependencies.graph.module, context.signature)
        low, high, ratio, best = 0.0, 1.0, self.ratio, None
        with context.progress.parts("latency", LATENCY_TRIALS) as advance:
            for _ in range(LATENCY_TRIALS):
                chosen = choose(dependencies, ranked, macs, ratio, evenly, strict=False)
                smaller = context.evaluate(dependencies.without(chosen), context.signature)
                before, after = latencies_ms([original, smaller], context.inputs)
                share = 1 - after / before
                if share >= self.ratio:
                    best, high = chosen, ratio
                else:
                    low = ratio
                # Where a straight line through what was measured meets the budget.
                guess = ratio * self.ratio / max(share, 0.01)
                ratio = guess if low < guess < high else (low + high) / 2
                advance()
        if best is None:
            raise UnsupportedModelError(
                f"channels: with {high:.0%} of the multiplications gone the model was not yet "
                f"{self.ratio:.0%} faster on this machine: ask for less"
            )
        return best


def _moments(graph: Graph, context: StepContext) -> dict[Any, tuple[Operator, Moments]]:
    """Return the moments of every convolution and matrix product that can be corrected.

    By its variable.
    """
    assert context.samples is not None
    operators = [
        o
        for o in find_operators(graph)
        if has_moments(o) and o.kind != "depthwise_conv" and patch_length(o) <= MAX_LENGTH
    ]
    model = FloatModel(graph, context.signature, [o.inputs[0] for o in operators], context.evaluate)
    found = measure_moments(model, operators, context.samples, context.progress)
    return {o.anchor: (o, moments) for o, moments in found}


def choose(
    dependencies: Dependencies,
    ranked: Sequence[Sequence[ChannelBlock]],
    terms: Sequence[Term],
    ratio: float,
    evenly: bool,
    strict: bool = True,
) -> list[Group]:
    """Return the groups to remove.

    Args:
        dependencies: the dependencies of the module.
        ranked: for each family, its bundles in order.
        terms: what adds up to the budget.
        ratio: share of the budget that goes.
        evenly: the same share of each family; else what is cheapest for what it saves.
        strict: refuse a share that cannot be reached; else give all that can go.

    Raises:
        UnsupportedModelError: says how much can go.
    """
    ledger = _Ledger(dependencies, terms)
    total, taken = ledger.total, [0] * len(ranked)
    saved: list[int | None] = [None] * len(ranked)
    touched = [frozenset().union(*(ledger.terms(b) for b in blocks)) for blocks in ranked]
    chosen: list[Group] = []
    while (excess := ledger.total - (1 - ratio) * total) > 0:
        values = np.full(len(ranked), np.inf)
        for i, blocks in enumerate(ranked):
            if taken[i] == len(blocks):
                continue
            block = blocks[taken[i]]
            gain = saved[i]
            if gain is None:
                gain = saved[i] = ledger.saved(block)
            # What goes beyond the budget is not worth anything.
            useful_gain = max(min(gain, excess), 1e-9)
            values[i] = taken[i] / len(blocks) if evenly else block.saliency / useful_gain
        best = int(np.argmin(values))
        if values[best] == np.inf:
            if strict:
                raise UnsupportedModelError(
                    f"channels: {ratio:.0%} asked for, but only {1 - ledger.total / total:.0%} can "
                    "go with one vector of channels left in each layer: ask for less"
                )
            break
        block = ranked[best][taken[best]]
        ledger.remove(block)
        chosen += block.groups
        taken[best] += 1
        saved = [None if touched[i] & touched[best] else s for i, s in enumerate(saved)]
    return chosen


class _Ledger:
    """A ledger keeps a sum of products of extents, as groups leave."""

    def __init__(self, dependencies: Dependencies, terms: Sequence[Term]) -> None:
        self._factors = [term.factor for term in terms]
        self._extents = [[len(ids) for ids in term.axes] for term in terms]
        # By group: term, axis and number of indices.
        self._uses: dict[int, list[tuple[int, int, int]]] = {}
        for number, term in enumerate(terms):
            for axis, ids in enumerate(term.axes):
                found = np.unique(dependencies.roots(ids), return_counts=True)
                for root, count in zip(*found, strict=True):
                    self._uses.setdefault(int(root), []).append((number, axis, int(count)))
        self.total = sum(map(self._value, range(len(terms))))

    def _value(self, term: int) -> int:
        return self._factors[term] * math.prod(self._extents[term])

    def terms(self, block: ChannelBlock) -> frozenset[int]:
        """Return those that a bundle makes smaller."""
        return frozenset(t for g in block.groups for t, _, _ in self._uses.get(g.identity, ()))

    def _change(self, block: ChannelBlock, sign: int) -> None:
        for group in block.groups:
            for term, axis, count in self._uses.get(group.identity, ()):
                self._extents[term][axis] += sign * count

    def saved(self, block: ChannelBlock) -> int:
        """Return by how much the total would fall."""
        terms = self.terms(block)
        before = sum(map(self._value, terms))
        self._change(block, -1)
        after = sum(map(self._value, terms))
        self._change(block, 1)
        return before - after

    def remove(self, block: ChannelBlock) -> None:
        """Let a bundle go."""
        self.total -= self.saved(block)
        self._change(block, -1)
