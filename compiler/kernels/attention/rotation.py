"""Turn a row by the angles of its position, on the way from one place to another."""

from dataclasses import dataclass
from typing import Any

from tvm import tirx

from edgec.compiler.kernels.emit.emitter import Emitter
from edgec.compiler.kernels.emit.quantized_values import to_float16
from edgec.compiler.kernels.vectors import constant, shuffle


@dataclass(frozen=True)
class Rotation:
    """A rotation describes rotary position embedding (Su et al. 2021).

    Attributes:
        positions: rows of the tables; positions beyond are clipped.
        half: angles of a row: so many pairs of features are turned, the first ones.
        interleaved: whether a feature's partner is its neighbour, not the one `half` later.
    """

    positions: int
    half: int
    interleaved: bool


@dataclass(frozen=True)
class RotationTables:
    """The tables are what a rotation reads.

    Attributes:
        rotation: which.
        cosines: buffer of float32 [positions, half].
        sines: likewise.
    """

    rotation: Rotation
    cosines: Any
    sines: Any

    def angles(self, e: Emitter, position: Any) -> Any:
        """Return where the angles of a position begin."""
        last = tirx.IntImm("int32", self.rotation.positions - 1)
        row = tirx.max(tirx.min(position, last), tirx.IntImm("int32", 0))
        return e.let("angles", row * self.rotation.half)


def declare_tables(e: Emitter, rotation: Rotation | None) -> RotationTables | None:
    """Return the tables as parameters of a kernel; None if nothing is turned."""
    if rotation is None:
        return None
    size = rotation.positions * rotation.half
    cosines, sines = (e.buffer(name, size, "float32") for name in ("cosines", "sines"))
    return RotationTables(rotation, cosines, sines)


@dataclass(frozen=True)
class RowMover:
    """A row mover writes the statements that bring a row to another place.

    Attributes:
        emit: collects them.
        size: values of a row.
        lanes: of a vector of the target.
        source: buffer that it is read from.
        target: buffer that it is written to.
        tables: how rows are turned; None: they are not.
        scale: factor of all values.
        halves: whether they are written as float16.
    """

    emit: Emitter
    size: int
    lanes: int
    source: Any
    target: Any
    tables: RotationTables | None = None
    scale: float = 1.0
    halves: bool = False

    def move(self, source: Any, target: Any, position: Any) -> None:
        """Move a row.

        Args:
            source: where it begins.
            target: where it is to begin.
            position: in the tables, int32.
        """
        e, turned = self.emit, 0
        if self.tables is not None:
            turned = 2 * self.tables.rotation.half
            self._turn(source, target, self.tables, self.tables.angles(e, position))
        c = fitting_lanes(self.lanes, self.size - turned, turned)
        with e.loop("vector", (self.size - turned) // c) as vector:
            at = e.let("at", vector * c + turned)
            self._write(target + at, self._read(source + at, c), c)

    def _read(self, at: Any, lanes: int) -> Any:
        return self.emit.let("value", self.emit.load(self.source, at, lanes))

    def _write(self, at: Any, value: Any, lanes: int) -> None:
        scaled = value if self.scale == 1 else value * constant(self.scale, "float32", lanes)
        self.emit.store(self.target, at, to_float16(scaled) if self.halves else scaled)

    def _turn(self, source: Any, target: Any, tables: RotationTables, angles: Any) -> None:
        e, half = self.emit, tables.rotation.half
        interleaved, c = tables.rotation.interleaved, fitting_lanes(self.lanes, half)
        with e.loop("pairs", half // c) as number:
            at = e.let("at", number * c)
            cosine = e.let("cosine", e.load(tables.cosines, angles + at, c))
            sine = e.let("sine", e.load(tables.sines, angles + at, c))
            # Where the two vectors of pairs are.
            low, high = (2 * at, 2 * at + c) if interleaved else (at, at + half)
            first, second = self._read(source + low, c), self._read(source + high, c)
            mixed = interleaved and c > 1
            if mixed:
                both = [first, second]
                first, second = (
                    e.let("part", shuffle(both, range(odd, 2 * c, 2))) for odd in (0, 1)
                )
            real = e.let("real", first * cosine - second * sine)
            other = e.let("other", second * cosine + first * sine)
            if mixed:
                both, picks = [real, other], [lane // 2 + lane % 2 * c for lane in range(2 * c)]
                real, other = shuffle(both, picks[:c]), shuffle(both, picks[c:])
            self._write(target + low, real, c)
            self._write(target + high, other, c)


def fitting_lanes(lanes: int, *sizes: int) -> int:
    """Return the largest power of 2 up to `lanes` that divides all sizes.

    >>> fitting_lanes(16, 80, 24), fitting_lanes(16, 7)
    (8, 1)
    """
    while any(size % lanes for size in sizes):
        lanes //= 2
    return lanes
