"""Provide routes: where each value of a plan comes from and goes to, as stages are told.

A stage is a bundle of the plan and has a number. The programs of a plan are cut in the same way:
each request passes through every stage. Stages send values to each other; what goes to or comes
from a relayed stage, which a server of another protocol computes, passes through the host.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from edgec.compiler.errors import BundleError
from edgec.compiler.ir.signature import Signature, TensorSpec
from edgec.compiler.split.plan import Plan, PlannedProgram, PlannedStage

HOST = 0xFF
MOST_STAGES = 64


@dataclass(frozen=True)
class Feed:
    """A feed is an input of a stage that the host sends.

    Attributes:
        stage: number of the stage.
        program: number of the program in its bundle.
        value: number of the input.
    """

    stage: int
    program: int
    value: int


@dataclass(frozen=True)
class ProgramRoutes:
    """The routes of a program say what the host has to do with it.

    Attributes:
        feeds: what the host sends, by the name of the value.
        received: what stages send to the host, by the number that the value has there.
        relayed: inputs and outputs of each relayed stage, by its number.
    """

    feeds: Mapping[str, tuple[Feed, ...]]
    received: tuple[TensorSpec, ...]
    relayed: Mapping[int, Signature]


@dataclass(frozen=True)
class Routes:
    """Routes are what host and stages need to know of a plan.

    Attributes:
        bundles: names of the stages' bundles, by number.
        devices: the device of each.
        consumers: numbers of the stages that a stage sends to, by its number.
        programs: what the host does, by number of the plan's program.
        tables: what a stage's ROUTES holds behind the addresses, by its number.
    """

    bundles: tuple[str, ...]
    devices: tuple[str, ...]
    consumers: tuple[tuple[int, ...], ...]
    programs: tuple[ProgramRoutes, ...]
    tables: tuple[bytes, ...]

    def payload(self, stage: int, addresses: Sequence[str]) -> bytes:
        """Return the payload of ROUTES for a stage, with the address of every stage by number."""
        consumers = self.consumers[stage]
        payload = bytes((stage, len(consumers)))
        for number in consumers:
            text = addresses[number].encode()
            payload += bytes((number, len(text))) + text
        return payload + self.tables[stage]


def make_routes(
    plan: Plan,
    signatures: Mapping[str, Mapping[str, Signature]],
    relayed: Collection[str] = (),
) -> Routes:
    """Return the routes of a plan.

    Args:
        plan: the plan.
        signatures: of each stage's bundle: the signature of each program by its name.
        relayed: bundles that the host calls itself.

    Raises:
        BundleError: the plan does not fit its bundles, or is more than stages can do.
    """
    bundles = tuple(plan.bundles)
    if len(bundles) > MOST_STAGES:
        raise BundleError(f"the plan has {len(bundles)} stages; there may be {MOST_STAGES}")
    for program in plan.programs:
        for value in program.values:
            if value.zstd:
                raise BundleError(
                    f"value {value.name} of the plan travels in zstd, which stages do not read; "
                    "take zstd out of plan.json, and for fewer bytes compile with --cut-encoding"
                )
        used = [stage.bundle for stage in program.stages]
        if sorted(used) != sorted(bundles):
            raise BundleError(
                f"program {program.name!r} of the plan does not run each of its bundles "
                f"({', '.join(bundles)}) once, but {', '.join(used)}"
            )
    cuts = [_Cut(program, bundles, signatures, relayed) for program in plan.programs]
    consumers = tuple(
        tuple(sorted({number for cut in cuts for number in cut.consumers(bundle)}))
        for bundle in bundles
    )
    # Programs of a bundle that the plan does not use have an empty row.
    rows = {bundle: [b"\0"] * len(signatures[bundle]) for bundle in bundles}
    for cut in cuts:
        for bundle, outlets in zip(bundles, consumers, strict=True):
            rows[bundle][cut.numbers[bundle]] = cut.row(bundle, outlets)
    return Routes(
        bundles,
        tuple(plan.bundles.values()),
        consumers,
        tuple(cut.routes for cut in cuts),
        tuple(b"".join(rows[bundle]) for bundle in bundles),
    )


class _Cut:
    """A cut is one program of a plan with the signatures of its stages.

    Attributes:
        numbers: number of the program in each bundle.
        routes: what the host does.
    """

    def __init__(
        self,
        program: PlannedProgram,
        bundles: Sequence[str],
        signatures: Mapping[str, Mapping[str, Signature]],
        relayed: Collection[str],
    ) -> None:
        self._bundles = list(bundles)
        self._direct = [bundle for bundle in bundles if bundle not in relayed]
        self.numbers: dict[str, int] = {}
        self._signatures: dict[str, Signature] = {}
        for stage in program.stages:
            number, signature = _program_of(stage, signatures)
            self.numbers[stage.bundle], self._signatures[stage.bundle] = number, signature
        received = {tensor.name: tensor.spec for tensor in program.outputs}
        for bundle in relayed:
            received |= {spec.name: spec for spec in self._signatures[bundle].inputs}
        self._received = list(received)
        self.routes = ProgramRoutes(
            self._feeds(),
            tuple(received.values()),
            {self._bundles.index(bundle): self._signatures[bundle] for bundle in relayed},
        )

    def _producer(self, value: str) -> str | None:
        """Return the bundle that sends a value; None for the host."""
        for bundle in self._direct:
            if any(spec.name == value for spec in self._signatures[bundle].outputs):
                return bundle
        return None

    def _readers(self, value: str) -> list[tuple[str, int]]:
        """Return the bundles that are sent a value, and the number that it has there."""
        return [
            (bundle, place)
            for bundle in self._direct
            for place, spec in enumerate(self._signatures[bundle].inputs)
            if spec.name == value
        ]

    def consumers(self, bundle: str) -> set[int]:
        """Return the numbers of the stages that a stage sends to."""
        if bundle not in self._direct:
            return set()
        return {
            self._bundles.index(reader)
            for spec in self._signatures[bundle].outputs
            for reader, _ in self._readers(spec.name)
        }

    def row(self, bundle: str, outlets: Sequence[int]) -> bytes:
        """Return what a stage is told of this program; see `read_routes` in stage.c."""
        row = bytearray((1,))
        for spec in self._signatures[bundle].inputs:
            producer = self._producer(spec.name)
            row.append(HOST if producer is None else self._bundles.index(producer))
        for spec in self._signatures[bundle].outputs:
            targets = []
            if spec.name in self._received:
                targets.append((0, 0, self._received.index(spec.name)))
            for reader, place in self._readers(spec.name):
                outlet = 1 + outlets.index(self._bundles.index(reader))
                targets.append((outlet, self.numbers[reader], place))
            row.append(len(targets))
            row += bytes(byte for target in targets for byte in target)
        return bytes(row)

    def _feeds(self) -> dict[str, tuple[Feed, ...]]:
        """Return what the host sends: inputs of the model, and what relayed stages compute."""
        names = {
            spec.name
            for bundle in self._direct
            for spec in self._signatures[bundle].inputs
            if self._producer(spec.name) is None
        }
        return {
            name: tuple(
                Feed(self._bundles.index(bundle), self.numbers[bundle], place)
                for bundle, place in self._readers(name)
            )
            for name in sorted(names)
        }


def _program_of(
    stage: PlannedStage, signatures: Mapping[str, Mapping[str, Signature]]
) -> tuple[int, Signature]:
    """Return the number and signature of a stage's program in its bundle."""
    known = signatures[stage.bundle]
    names = list(known)
    name = names[0] if len(names) == 1 and not stage.program else stage.program
    if name not in known:
        raise BundleError(f"bundle {stage.bundle} of the plan has no program {stage.program!r}")
    signature = known[name]
    for kind, wanted, specs in (
        ("inputs", stage.inputs, signature.inputs),
        ("outputs", stage.outputs, signature.outputs),
    ):
        found = [spec.name for spec in specs]
        if sorted(found) != sorted(wanted):
            raise BundleError(
                f"bundle {stage.bundle} has the {kind} {', '.join(found)}, and the plan says "
                f"{', '.join(wanted)}; compile the plan again"
            )
    return names.index(name), signature
