"""Provide Einsum as transposes and matrix products.

The terms are combined two at a time, from the left. Of two terms, labels

    in both, needed later     count products that are independent: the batch
    in both, not needed       are summed over: the depth of the product
    in one                    are rows or columns of the product

so that each pair is one matrix product between two transposes, of which as few as possible move
anything. Labels that only one term has and nobody needs are summed first; a label that occurs
twice in a term takes its diagonal.
"""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tvm import relax

from edgec.compiler.frontend.node import Node, Refusal, static_shape

op = relax.op


@dataclass(frozen=True)
class _Term:
    """A term is a tensor with a label for each axis."""

    data: relax.Expr
    labels: tuple[str, ...]

    @property
    def sizes(self) -> dict[str, int]:
        """Return the extent of each label."""
        return dict(zip(self.labels, static_shape(self.data), strict=True))


def convert_einsum(node: Node) -> relax.Expr:
    """Convert Einsum: any number of tensors and an equation such as `bij,bjk->bik`."""
    operands = [node.input(index) for index in range(len(node.inputs))]
    ranks = [len(static_shape(operand)) for operand in operands]
    inputs, output = parse_equation(str(node.attributes["equation"]), ranks)
    terms = [
        _diagonal(node, _Term(data, labels)) for data, labels in zip(operands, inputs, strict=True)
    ]
    extents: dict[str, int] = {}
    for term in terms:
        for label, extent in term.sizes.items():
            known = extents.setdefault(label, extent)
            if extent != known and 1 not in (extent, known):
                raise Refusal(f"attribute equation: {label!r} is {known} and {extent}")
            extents[label] = max(known, extent)
    terms = [_without_broadcast(node, term, extents) for term in terms]
    term = terms[0]
    for number, other in enumerate(terms[1:], 1):
        needed = set(output).union(*(later.labels for later in terms[number + 1 :]))
        term = _combined(node, term, other, needed, output)
    term = _summed(node, term, set(output))
    return _transposed(node, term, output).data


def parse_equation(
    equation: str, ranks: Sequence[int]
) -> tuple[list[tuple[str, ...]], tuple[str, ...]]:
    """Return the labels of each term and those of the result.

    An ellipsis stands for axes that are counted from the last; without an arrow the result has
    these, then every label that occurs once, by the alphabet.

    >>> parse_equation("...i, ij", (3, 2))
    ([('2', '1', 'i'), ('i', 'j')], ('2', '1', 'j'))

    Args:
        equation: as ONNX defines it.
        ranks: the number of axes of each tensor.

    Raises:
        Refusal: the equation does not fit the tensors.
    """
    left, arrow, right = equation.replace(" ", "").partition("->")
    texts = left.split(",")
    if len(texts) != len(ranks):
        raise Refusal(f"attribute equation has {len(texts)} terms for {len(ranks)} inputs")
    hidden = [rank - len(text.replace("...", "")) for text, rank in zip(texts, ranks, strict=True)]
    inputs = [_labels(text, count) for text, count in zip(texts, hidden, strict=True)]
    for labels, rank, text in zip(inputs, ranks, texts, strict=True):
        if len(labels) != rank:
            raise Refusal(f"attribute equation: {text!r} does not fit {rank} axes")
    longest = max((n for n, text in zip(hidden, texts, strict=True) if "..." in text), default=0)
    if arrow:
        output = _labels(right, longest)
    else:
        letters = re.sub(r"[.,]", "", left)
        once = sorted(letter for letter in set(letters) if letters.count(letter) == 1)
        output = (*_labels("...", longest), *once)
    unknown = set(output).difference(*inputs)
    if unknown or len(set(output)) != len(output):
        raise Refusal(f"attribute equation: {right!r} names what no term has, or names it twice")
    return inputs, output


def _labels(text: str, hidden: int) -> tuple[str, ...]:
    """Return the labels of a term; axes behind an ellipsis are numbered, the last one is 1."""
    before, dots, behind = text.partition("...")
    numbers = [str(number) for number in range(hidden, 0, -1)] if dots else []
    return (*before, *numbers, *behind)


def _diagonal(node: Node, term: _Term) -> _Term:
    """Take the diagonal along labels that occur more than once."""
    labels = list(term.labels)
    for label in dict.fromkeys(labels):
        while labels.count(label) > 1:
            data, shape = term.data, static_shape(term.data)
            first = labels.index(label)
            second = labels.index(label, first + 1)
            rest = [axis for axis in range(len(shape)) if axis not in (first, second)]
            extent = shape[first]
            if shape[second] != extent:
                raise Refusal(f"attribute equation: {label!r} is {extent} and {shape[second]}")
            data = node.call(op.permute_dims, data, [*rest, first, second])
            kept = [shape[axis] for axis in rest]
            data = node.call(op.reshape, data, (*kept, extent * extent))
            data = node.call(
                op.strided_slice, data, [len(kept)], [0], [extent * extent], [extent + 1]
            )
            labels = [*(labels[axis] for axis in rest), label]
            term = _Term(data, tuple(labels))
    return term


def _without_broadcast(node: Node, term: _Term, extents: dict[str, int]) -> _Term:
    """Drop axes of extent 1 that stand for more."""
    kept = tuple(label for label in term.labels if term.sizes[label] == extents[label])
    return _reshaped(node, _Term(term.data, term.labels), kept)


def _reshaped(node: Node, term: _Term, labels: tuple[str, ...]) -> _Term:
    """Return a term without the axes of extent 1 that are not among the labels."""
    if labels == term.labels:
        return term
    shape = tuple(term.sizes[label] for label in labels)
    return _Term(node.call(op.reshape, term.data, shape), labels)


def _summed(node: Node, term: _Term, needed: set[str]) -> _Term:
    """Sum over what nobody needs."""
    axes = [axis for axis, label in enumerate(term.labels) if label not in needed]
    if not axes:
        return term
    labels = tuple(label for label in term.labels if label in needed)
    return _Term(node.call(op.sum, term.data, axes), labels)


def _transposed(node: Node, term: _Term, labels: tuple[str, ...]) -> _Term:
    """Return a term with its axes in another order."""
    if labels == term.labels:
        return term
    axes = [term.labels.index(label) for label in labels]
    return _Term(node.call(op.permute_dims, term.data, axes), labels)


def _combined(
    node: Node, left: _Term, right: _Term, needed: set[str], output: tuple[str, ...]
) -> _Term:
    """Multiply two terms and sum over what only they need."""
    left = _summed(node, left, needed.union(right.labels))
    right = _summed(node, right, needed.union(left.labels))
    if not set(left.labels) & set(right.labels) - needed:
        return _multiplied(node, left, right)
    product = min(_products(left, right, needed, output), key=lambda p: p.moved(output))
    return product.emit(node)


def _multiplied(node: Node, left: _Term, right: _Term) -> _Term:
    """Multiply element by element; each label is an axis of the result."""
    labels = (*left.labels, *(label for label in right.labels if label not in left.labels))
    operands = []
    for term in (left, right):
        ordered = _transposed(node, term, tuple(n for n in labels if n in term.labels))
        shape = tuple(term.sizes.get(label, 1) for label in labels)
        operands.append(node.call(op.reshape, ordered.data, shape))
    return _Term(node.call(op.multiply, *operands), labels)


@dataclass(frozen=True)
class _Product:
    """A product multiplies the matrices of two terms.

    Attributes:
        left: the term whose labels become rows.
        right: the term whose labels become columns.
        batch: labels of independent products.
        depth: labels that are summed over.
    """

    left: _Term
    right: _Term
    batch: tuple[str, ...]
    depth: tuple[str, ...]
    rows: tuple[str, ...]
    columns: tuple[str, ...]

    def moved(self, output: tuple[str, ...]) -> int:
        """Return how many values transposes move, that of the result among them."""
        sizes = {**self.left.sizes, **self.right.sizes}
        result = (*self.batch, *self.rows, *self.columns)
        wanted = tuple(label for label in output if label in result)
        sides = (
            (self.left.labels, (*self.batch, *self.rows, *self.depth)),
            (self.right.labels, (*self.batch, *self.depth, *self.columns)),
            (result, wanted),
        )
        return sum(
            math.prod(sizes[label] for label in before)
            for before, after in sides
            if [n for n in before if sizes[n] > 1] != [n for n in after if sizes[n] > 1]
        )

    def emit(self, node: Node) -> _Term:
        """Emit transposes and the product."""
        sizes = {**self.left.sizes, **self.right.sizes}

        def extent(labels: tuple[str, ...]) -> int:
            return math.prod(sizes[label] for label in labels)

        left = _transposed(node, self.left, (*self.batch, *self.rows, *self.depth)).data
        right = _transposed(node, self.right, (*self.batch, *self.depth, *self.columns)).data
        depth, batch = extent(self.depth), extent(self.batch)
        lead = (batch,) if self.batch else ()
        left = node.call(op.reshape, left, (*lead, extent(self.rows), depth))
        right = node.call(op.reshape, right, (*lead, depth, extent(self.columns)))
        product = node.call(op.matmul, left, right)
        labels = (*self.batch, *self.rows, *self.columns)
        shape = tuple(sizes[label] for label in labels)
        return _Term(node.call(op.reshape, product, shape), labels)


def _products(
    left: _Term, right: _Term, needed: set[str], output: tuple[str, ...]
) -> Iterator[_Product]:
    """Yield the ways to multiply two terms: either first, depth in the order of either."""
    both = [label for label in left.labels if label in right.labels]
    order = {label: place for place, label in enumerate(output)}
    for one, other in ((left, right), (right, left)):
        for first in (one, other):
            depth = tuple(n for n in first.labels if n in both and n not in needed)
            batch = tuple(n for n in first.labels if n in both and n in needed)
            batch = tuple(sorted(batch, key=lambda label: order.get(label, len(order))))
            rows, columns = (
                tuple(
                    sorted(
                        (n for n in term.labels if n not in both),
                        key=lambda label: order.get(label, len(order)),
                    )
                )
                for term in (one, other)
            )
            yield _Product(one, other, batch, depth, rows, columns)
