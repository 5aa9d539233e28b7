"""Unpack groups of weights of a few bits for tiles that read them again and again."""

from collections.abc import Callable
from typing import Any

from edgec.compiler.kernels.emit.emitter import Emitter
from edgec.compiler.kernels.matmul.grouped_layout import GroupNumbers, WeightReader

Units = Callable[[Any, int], list[list[Any]]]
"""Gives codes [unit][vector] from a unit of a group on: as many units as share bytes."""


class UnpackedPanel:
    """An unpacked panel holds groups of vectors of columns: codes one to a byte, float32 numbers.

    Codes of 8 bits stay where they are.

    Args:
        e: what the kernel is written with.
        reader: reads the weight.
        vectors: of columns.
        groups: at most.
    """

    def __init__(self, e: Emitter, reader: WeightReader, vectors: int, groups: int) -> None:
        self.e, self.form, self.vectors = e, reader.form, vectors
        self.together = reader.together
        self.vector, self.lanes = reader.vector, reader.vector // 4
        # Bytes of a group, and its numbers.
        self.group_bytes = vectors * reader.form.group * self.lanes
        self.kinds = 1 + bool(reader.form.zeros or reader.form.minima)
        self.group_numbers = vectors * self.kinds * self.lanes
        if reader.form.bits < 8:
            self.codes = e.local("panel", groups * self.group_bytes, "uint8")
        self.numbers = e.local("numbers", groups * self.group_numbers, "float32")

    def fill(
        self,
        first: Any,
        count: int,
        units: Callable[[Any], Units],
        numbers: Callable[[Any], list[GroupNumbers]],
    ) -> None:
        """Write groups from `first` on, of what gives units and numbers of a group."""
        e, shared = self.e, self.together
        shares = self.form.group // 4 // shared
        with e.loop("group", count, wide=True) as number:
            for v, found in enumerate(numbers(first + number)):
                at = number * self.group_numbers + v * self.kinds * self.lanes
                e.store(self.numbers, at, found.scale)
                if self.kinds == 2:
                    other = found.minimum if found.zero is None else found.zero
                    e.store(self.numbers, at + self.lanes, other)
            if self.form.bits == 8:
                return
            load = units(first + number)
            with e.loop("share", shares, wide=True) as share:
                for n, values in enumerate(load(share * shared, shared)):
                    unit = (number * shares + share) * shared + n
                    for v, value in enumerate(values):
                        e.store(self.codes, (unit * self.vectors + v) * self.vector, value)

    def units(self, number: Any) -> Units:
        """Return what loads the units of the group of that number."""
        e = self.e

        def load(first: Any, count: int) -> list[list[Any]]:
            found = []
            for n in range(count):
                start = number * self.group_bytes + (first + n) * (self.vectors * self.vector)
                places = [start + v * self.vector for v in range(self.vectors)]
                found.append([e.let("codes", e.load(self.codes, at, self.vector)) for at in places])
            return found

        return load

    def group_numbers_of(self, number: Any) -> list[GroupNumbers]:
        """Return what vectors have in the group of that number."""
        e, found = self.e, []
        for v in range(self.vectors):
            at = number * self.group_numbers + v * self.kinds * self.lanes
            scale = e.let("scale", e.load(self.numbers, at, self.lanes))
            other = None
            if self.kinds == 2:
                other = e.let("other", e.load(self.numbers, at + self.lanes, self.lanes))
            zero, minimum = (other, None) if self.form.zeros else (None, other)
            found.append(GroupNumbers(scale, zero, minimum))
        return found
