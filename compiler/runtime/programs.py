"""Choose the program of a model that takes some inputs: by their shapes alone."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgec.compiler.errors import TensorInputError
from edgec.compiler.ir.signature import Signature, Tensors, TensorSpec
from edgec.compiler.runtime.inputs import check_inputs


@dataclass(frozen=True)
class Programs:
    """Programs are what a model can be run as: the same weights and state, other shapes.

    Attributes:
        signatures: inputs and outputs of each program, by its name.
    """

    signatures: Mapping[str, Signature]

    @property
    def all(self) -> tuple[Signature, ...]:
        """Return the signature of each program, in order."""
        return tuple(self.signatures.values())

    def fitting(
        self,
        inputs: Tensors | NDArray[Any],
        index_bounds: Mapping[str, int] = MappingProxyType({}),
        program: str | None = None,
    ) -> tuple[int, dict[str, NDArray[Any]]]:
        """Return the number of the program that takes inputs, and the inputs in its order.

        Args:
            inputs: by name.
            index_bounds: rows that an input chooses from, by name.
            program: the name of the program; None takes the first one of these shapes.

        Raises:
            TensorInputError: no program takes them; says what each one does.
        """
        if program is not None:
            number = list(self.signatures).index(program)
            return number, check_inputs(self.all[number].inputs, inputs, index_bounds)
        if len(self.signatures) == 1:
            return 0, check_inputs(self.all[0].inputs, inputs, index_bounds)
        given = self._named(inputs)
        for number, signature in enumerate(self.all):
            if {s.name for s in signature.inputs} == set(given) and all(
                given[s.name].shape == s.shape and str(given[s.name].dtype) == s.dtype
                for s in signature.inputs
            ):
                return number, check_inputs(signature.inputs, given, index_bounds)
        found = ", ".join(str(TensorSpec(n, a.shape, str(a.dtype))) for n, a in given.items())
        raise TensorInputError(
            f"no program of this bundle takes {found}; there are {self.describe()}"
        )

    def describe(self) -> str:
        """Return the programs and their inputs in words."""
        return "; ".join(
            f"{name} ({', '.join(map(str, signature.inputs))})"
            for name, signature in self.signatures.items()
        )

    def padded(
        self, inputs: Tensors | NDArray[Any]
    ) -> tuple[dict[str, NDArray[Any]], dict[str, tuple[int, ...]]]:
        """Fill inputs up with zeros to the smallest program that holds them.

        Only along axes in which the programs differ.

        Returns:
            The inputs, and by output the shape of what belongs to the inputs as they were given:
            extents of outputs that are the same share of an input's in every program are cut.

        Raises:
            TensorInputError: no program holds them; says what each one takes.
        """
        given = self._named(inputs)
        holding = [s for s in self.all if self._holds(s, given)]
        if not holding:
            self.fitting(given)
            return given, {}
        chosen = min(holding, key=lambda s: sum(_size(spec) for spec in s.inputs))
        full = {
            spec.name: np.pad(
                given[spec.name],
                [
                    (0, (wanted or 0) - found)
                    for wanted, found in zip(spec.shape, given[spec.name].shape, strict=True)
                ],
            )
            for spec in chosen.inputs
        }
        return full, {
            spec.name: tuple(
                self._cut(number, axis, chosen, given) for axis in range(len(spec.shape))
            )
            for number, spec in enumerate(chosen.outputs)
        }

    def _named(self, inputs: Tensors | NDArray[Any]) -> dict[str, NDArray[Any]]:
        specs = self.all[0].inputs
        if isinstance(inputs, np.ndarray) and len(specs) == 1:
            return {specs[0].name: inputs}
        if not isinstance(inputs, Mapping):
            check_inputs(specs, inputs)
        return {name: np.asarray(array) for name, array in inputs.items()}  # type: ignore[union-attr]

    def _holds(self, signature: Signature, given: Mapping[str, NDArray[Any]]) -> bool:
        if {s.name for s in signature.inputs} != set(given):
            return False
        for number, spec in enumerate(signature.inputs):
            array = given[spec.name]
            if array.ndim != len(spec.shape) or str(array.dtype) != spec.dtype:
                return False
            for axis, (wanted, found) in enumerate(zip(spec.shape, array.shape, strict=True)):
                extents = {s.inputs[number].shape[axis] for s in self.all}
                if found != wanted and (len(extents) == 1 or found > (wanted or 0)):
                    return False
        return True

    def _cut(
        self, output: int, axis: int, chosen: Signature, given: Mapping[str, NDArray[Any]]
    ) -> int:
        """Return how much of an axis of an output belongs to the inputs that were given."""
        extent = chosen.outputs[output].shape[axis] or 0
        if len({s.outputs[output].shape[axis] for s in self.all}) == 1:
            return extent
        for number, spec in enumerate(chosen.inputs):
            for place, full in enumerate(spec.shape):
                shares = {
                    (s.outputs[output].shape[axis] or 0) / (s.inputs[number].shape[place] or 1)
                    for s in self.all
                }
                if len(shares) == 1 and len({s.inputs[number].shape[place] for s in self.all}) > 1:
                    found: int = given[spec.name].shape[place]
                    return -(-extent * found // (full or 1))
        return extent


def cut(outputs: Tensors, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, NDArray[Any]]:
    """Return the first values of each output along each axis."""
    return {
        name: np.ascontiguousarray(array[tuple(slice(extent) for extent in shapes[name])])
        if name in shapes
        else array
        for name, array in outputs.items()
    }


def _size(spec: TensorSpec) -> int:
    return math.prod(extent or 0 for extent in spec.shape)
