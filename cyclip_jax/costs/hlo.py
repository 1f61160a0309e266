"""Reads from the text of a compiled program what it sends between devices and moves in memory.

`jax.jit(…).lower(…).compile().as_text()` is XLA's HLO after optimisation, the program of one
device, with the shapes of that device's part, as the compilers for CPU, GPU and TPU print it.
"""

import dataclasses
import math
import re

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")

_COMPUTATION = re.compile(r"(ENTRY )?%([^\s(]+) (?:\(.*\) -> .* )?\{$")
_INSTRUCTION = re.compile(r"\s+(ROOT )?%(\S+) = (.*)")
_ARRAY = re.compile(r"\b(pred|[a-z]+\d\w*)\[([\d,<=]*)\]")
# An array with its layout, which ends in the space that it lies in: f32[8,128]{1,0:T(8,128)S(1)}.
_PLACED = re.compile(r"\b(?:pred|[a-z]+\d\w*)\[[\d,<=]*\](?:\{[^}]*\})?")
_CALLED = re.compile(
    r"\b(?:calls|to_apply|body|condition|(?:true|false)_computation|branch_computations|"
    r"called_computations)=(?:\{([^}]*)\}|(%[^\s,]+))"
)
# {{0,1},{2,3}}, [2,2]<=[4], or mesh['a'=2,'b'=2], device_ids=(…) {'b'}.
_GROUPS = re.compile(
    r"\breplica_groups=(?:\{\{(?P<ids>[\d,]*)\}|\[\d+,(?P<size>\d+)\]<=|"
    r"mesh\[(?P<axes>[^]]*)\](?:, device_ids=\(.*?\))? \{(?P<names>[^}]*)\})"
)
_TRIP_COUNT = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
# Instructions that only name a value and move no data.
_FREE = (
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "after-all",
    "add-dependency",
)
_SLICES = ("dynamic-slice", "slice", "gather")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One instruction that exchanges data between devices.

    Attributes:
      kind: one of KINDS.
      shape: the shape of its result on one device, e.g. "f32[8,64]" or "(f32[8], f32[])".
      bytes: size of that result, summed over a tuple. For the bytes that travel see `received`.
      executions: how often a run of the program executes it.
      group: number of devices that take part in one exchange; 1 where the text names none.
    """

    kind: str
    shape: str
    bytes: int
    executions: int
    group: int

    @property
    def received(self) -> float:
        """The least number of bytes that a device receives, in all executions.

        Each of n devices needs (n − 1)/n of a gathered result from others; a sum of n parts that
        all devices need is that twice, once to add up and once to spread (Patarasuk and Yuan 2009,
        "Bandwidth optimal all-reduce algorithms for clusters of workstations").
        """
        others = self.group - 1
        share = {
            "all-gather": others / self.group,
            "all-to-all": others / self.group,
            "all-reduce": 2 * others / self.group,
            "reduce-scatter": others,
            "collective-permute": 1,
        }[self.kind]
        return share * self.bytes * self.executions


@dataclasses.dataclass(frozen=True)
class _Instruction:
    name: str
    shape: str
    opcode: str
    operands: str
    attributes: str
    is_root: bool

    def operand_names(self):
        return re.findall(r"%([^\s,()]+)", self.operands)

    def index(self):
        return int(_first(r"\bindex=(\d+)", self.attributes)[1])

    def called(self, attribute=""):
        """Names of the computations it calls, or of those behind one attribute."""
        matches = (m for m in _CALLED.finditer(self.attributes) if m[0].startswith(attribute))
        return [name for m in matches for name in re.findall(r"%([^\s,]+)", m[1] or m[2])]


class _Computation:
    def __init__(self, name):
        self.name, self.instructions = name, {}

    @property
    def root(self):
        return next(i for i in self.instructions.values() if i.is_root)


@dataclasses.dataclass(frozen=True)
class _Loop:
    """A while instruction, the computation it stands in, and the loop around that, or None."""

    instruction: _Instruction
    outside: _Computation
    around: object


def collectives(compiled_text: str) -> list[Collective]:
    """Every collective of a compiled program, with the number of its executions.

    A pair of start and done is one collective. So are the parts into which a TPU program splits one
    to run beside other work. What a TPU program writes as a fusion of an all-reduce and a slice is
    the reduce-scatter it stands for. All branches of a conditional count.

    Args:
      compiled_text: of a compiled program.

    Returns:
      A list of Collective, in the order of the text's control flow.

    Raises:
      ValueError: no program, or a collective in a loop whose trip count the text does not tell.
    """
    computations, entry = _parse(compiled_text)
    partitions = re.search(r"\bnum_partitions=(\d+)", compiled_text)
    everyone = int(partitions[1]) if partitions else 1
    found = []

    def record(kind, shape, times, instruction):
        group = _group_size(instruction) or everyone
        found.append(Collective(kind, _plain(shape), _bytes(shape), times, group))

    def visit(computation, times, loop):
        if computation.name.startswith("all-reduce-scatter"):  # a TPU fusion's
            summed = next(i for i in computation.instructions.values() if i.opcode in KINDS)
            record("reduce-scatter", computation.root.shape, times, summed)
            return
        for instruction in computation.instructions.values():
            kind = instruction.opcode.removesuffix("-start")
            if kind in KINDS and not _repeats(instruction, computation):
                record(kind, _result_shape(instruction, computation), times, instruction)
            elif instruction.opcode == "while":
                visit_loop(_Loop(instruction, computation, loop), times)
            elif not instruction.opcode.endswith(("-update", "-done")):
                for name in instruction.called():
                    visit(computations[name], times, None)

    def visit_loop(loop, times):
        trips = _trip_count(loop, computations)
        before = len(found)
        for name in loop.instruction.called():
            visit(computations[name], times if trips is None else times * trips, loop)
        if trips is None and len(found) > before:
            raise ValueError(
                f"%{loop.instruction.name} runs {found[-1].kind} an unknown number of times: its "
                "trip count is neither stated nor that of a counter with constant bounds"
            )

    visit(computations[entry], 1, None)
    return found


def summary(compiled_text: str) -> dict[str, tuple[int, int]]:
    """How many collectives of each kind a device executes in a run, and the bytes of their results.

    Args:
      compiled_text: as in `collectives`.

    Returns:
      {kind: (executions, bytes)} of the kinds that occur (see `Collective`).

    Raises:
      ValueError: as in `collectives`.
    """
    totals = {}
    for each in collectives(compiled_text):
        executions, size = totals.get(each.kind, (0, 0))
        totals[each.kind] = executions + each.executions, size + each.executions * each.bytes
    return totals


def memory_traffic(compiled_text: str) -> int:
    """Bytes that a device reads from and writes to its main memory in a run, as the text tells.

    Every instruction reads its operands and writes its result; a fusion is one instruction. Of what
    is sliced or updated in place the slice counts, of a loop all its runs, or one where the text
    does not tell, and of a conditional the branch that moves least. A TPU's on-chip memory, the
    padding of tiles and the scratch memory of a custom call do not count.

    Args:
      compiled_text: as in `collectives`.

    Raises:
      ValueError: the text is not that of a program.
    """
    computations, entry = _parse(compiled_text)

    def visit(computation, loop) -> int:
        total = 0
        for instruction in computation.instructions.values():
            if instruction.opcode == "while":
                inner = _Loop(instruction, computation, loop)
                trips = _trip_count(inner, computations)
                (body,) = instruction.called("body")
                total += (1 if trips is None else trips) * visit(computations[body], inner)
            elif instruction.opcode in ("call", "conditional", "async-start"):
                moved = [visit(computations[name], None) for name in instruction.called()]
                total += min(moved) if instruction.opcode == "conditional" else sum(moved)
            elif not instruction.opcode.startswith("async-"):
                total += _moved(instruction, computation, computations)
        return total

    return visit(computations[entry], None)


def largest_buffer(compiled_text: str) -> tuple[int, str]:
    """(elements, shape) of the largest array that any instruction of the program gives.

    Arrays inside a fusion count, though most of them are never held whole. So where no N×N buffer
    is found, none exists. Scratch memory of a custom call is not seen;
    `compiled.memory_analysis()` has the sum of everything.

    Args:
      compiled_text: as in `collectives`.

    Raises:
      ValueError: the text is not that of a program.
    """
    computations, _ = _parse(compiled_text)
    return max(
        (math.prod(dims), f"{dtype}[{','.join(map(str, dims))}]")
        for computation in computations.values()
        for instruction in computation.instructions.values()
        for dtype, dims in _arrays(instruction.shape)
    )


def _parse(text):
    """({name: _Computation}, name of the entry)."""
    computations, entry, computation = {}, None, None
    for line in text.splitlines():
        if header := _COMPUTATION.match(line):
            computation = computations[header[2]] = _Computation(header[2])
            entry = header[2] if header[1] else entry
        elif computation is not None and (match := _INSTRUCTION.match(line)):
            instruction = _parse_instruction(match[2], match[3], is_root=bool(match[1]))
            computation.instructions[instruction.name] = instruction
    if entry is None:
        raise ValueError("this is no text of a compiled program: it has no ENTRY computation")
    return computations, entry


def _parse_instruction(name, text, *, is_root):
    # Tuples nest, and layouts have parentheses of their own: {1,0:T(8,128)}.
    end = _closing(text, 0) + 1 if text.startswith("(") else text.index(" ")
    shape, rest = text[:end], text[end:].lstrip()
    opening = rest.index("(")
    closing = _closing(rest, opening)
    operands, attributes = rest[opening + 1 : closing], rest[closing + 1 :]
    return _Instruction(name, shape, rest[:opening], operands, attributes, is_root)


def _closing(text, opening):
    """Index of the parenthesis that closes the one at `opening`."""
    depth = 0
    for match in re.compile(r"[()]").finditer(text, opening):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return match.start()
    raise ValueError(f"unbalanced parentheses in {text[:200]!r}")


def _arrays(shape):
    """(dtype, dimensions) of an array's shape, or of each element of a tuple's."""
    for dtype, dims in _ARRAY.findall(shape):
        yield dtype, [int(dim.removeprefix("<=")) for dim in dims.split(",") if dim]


def _first(pattern, text):
    """The first match of a pattern that the text is sure to have."""
    match = re.search(pattern, text)
    if match is None:
        raise ValueError(f"no {pattern} in {text[:200]!r}")
    return match


def _plain(shape):
    """A shape without layouts and comments."""
    return re.sub(r"\{[^}]*\}|/\*.*?\*/", "", shape)


def _bytes(shape):
    """Bytes of a shape, of all elements of a tuple together."""
    total = 0
    for dtype, dims in _arrays(shape):
        bits = 8 if dtype == "pred" else int(_first(r"\d+", dtype)[0])
        total += math.ceil(math.prod(dims) * bits / 8)
    return total


def _group_size(instruction):
    """How many devices exchange data with one another, or None for all or nobody knows."""
    groups = _GROUPS.search(instruction.attributes)
    if groups is None:
        return None
    if groups["size"]:
        return int(groups["size"])
    if groups["ids"] is not None:
        return groups["ids"].count(",") + 1
    axes = dict(re.findall(r"'(\w+)'=(\d+)", groups["axes"]))
    # A part of an axis stands as 'a':(2)4, of which the last number is its size.
    names = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", groups["names"])
    return math.prod(int(part or axes[name]) for name, part in names)


def _moved(instruction, computation, computations):
    """Bytes that one instruction, which is no control flow, reads from and writes to memory."""
    opcode = instruction.opcode
    if opcode in _FREE or opcode.endswith("-update"):
        return 0
    operands = [
        computation.instructions[name]
        for name in instruction.operand_names()
        if name in computation.instructions
    ]
    if opcode == "dynamic-update-slice":
        return 2 * _in_memory(operands[1])
    written = 0 if opcode.endswith("-start") else _in_memory(instruction)
    if opcode.endswith("-done"):
        return written
    if opcode in _SLICES:
        return written + min(_in_memory(operands[0]), _bytes(instruction.shape))
    if opcode != "fusion":
        return written + sum(map(_in_memory, operands))
    (fused,) = (computations[name] for name in instruction.called("calls"))
    written = min(written, _written(fused.root, fused))
    return written + sum(
        min(_in_memory(operand), _read(_parameter(fused, number), fused, computations))
        for number, operand in enumerate(operands)
    )


def _in_memory(instruction):
    """Bytes of a result that lie in main memory, the space without a number."""
    return sum(
        _bytes(array[0]) for array in _PLACED.finditer(instruction.shape) if "S(" not in array[0]
    )


def _parameter(computation, number):
    return next(
        i
        for i in computation.instructions.values()
        if i.opcode == "parameter" and i.operands == str(number)
    )


def _read(parameter, fused, computations):
    """Bytes of a fusion's parameter that it reads: slices of it, if nothing else."""
    total = 0
    for user in fused.instructions.values():
        names = user.operand_names()
        if parameter.name not in names:
            continue
        if user.opcode in _SLICES and parameter.name == names[0]:
            total += _bytes(user.shape)
        elif user.opcode == "bitcast":
            total += _read(user, fused, computations)
        elif user.opcode == "fusion":
            (inner,) = (computations[name] for name in user.called("calls"))
            number = names.index(parameter.name)
            total += _read(_parameter(inner, number), inner, computations)
        elif user.opcode != "dynamic-update-slice" or parameter.name != names[0]:
            return _bytes(parameter.shape)
    return total


def _written(root, fused):
    """Bytes that a fusion writes: of what is updated in place, the update."""
    operands = [fused.instructions[name] for name in root.operand_names()]
    if root.opcode == "tuple":
        return sum(_written(operand, fused) for operand in operands)
    if root.opcode == "bitcast":
        return _written(operands[0], fused)
    return _bytes((operands[1] if root.opcode == "dynamic-update-slice" else root).shape)


def _result_shape(instruction, computation):
    """A collective's result; the start of a pair gives its operands and semaphores as well."""
    while not instruction.opcode.endswith("-done"):
        if instruction.opcode in KINDS:
            return instruction.shape
        instruction = next(
            user
            for user in computation.instructions.values()
            if instruction.name in user.operand_names()
            and user.opcode.endswith(("-done", "-update"))
        )
    return instruction.shape


def _repeats(instruction, computation):
    """Whether a collective is a later part of one that a TPU fusion has begun before."""
    return '"async_collective_fusion_config"' in instruction.attributes and not any(
        '"AsyncCollectiveStart"' in other.attributes for other in computation.instructions.values()
    )


def _trip_count(loop, computations):
    """How often a loop's body runs, or None; CPU and GPU programs state it, TPU programs do not."""
    stated = _TRIP_COUNT.search(loop.instruction.attributes)
    if stated:
        return int(stated[1])
    (condition,) = (computations[name] for name in loop.instruction.called("condition"))
    (body,) = (computations[name] for name in loop.instruction.called("body"))
    comparison = condition.root
    if comparison.opcode != "compare" or "direction=LT" not in comparison.attributes:
        return None
    counter, bound = comparison.operand_names()
    position = _position(counter, condition)
    if position is None:
        return None
    start = _initial(position, loop, computations)
    bound = _constant(bound, condition, loop, computations)
    step = _step(position, body, loop, computations)
    if start is None or bound is None or step is None or step < 1:
        return None
    return max(0, math.ceil((bound - start) / step))


def _step(position, body, loop, computations):
    """What a loop's body adds to an element of its state, or None."""
    added = _handed_on(position, body)
    if added is None or added.opcode != "add":
        return None
    left, right = added.operand_names()
    if _position(left, body) != position:
        left, right = right, left
    if _position(left, body) != position:
        return None
    return _constant(right, body, loop, computations)


def _position(name, computation):
    """Which element of a computation's tuple parameter an instruction reads, or None."""
    instruction = _original(name, computation)
    if instruction.opcode != "get-tuple-element":
        return None
    (source,) = instruction.operand_names()
    is_parameter = computation.instructions[source].opcode == "parameter"
    return instruction.index() if is_parameter else None


def _original(name, computation):
    """The instruction of which another is but a copy."""
    instruction = computation.instructions[name]
    while instruction.opcode in ("copy", "copy-start", "copy-done", "bitcast", "convert"):
        instruction = computation.instructions[instruction.operand_names()[0]]
    return instruction


def _initial(position, loop, computations):
    """The integer with which an element of a loop's state begins, or None."""
    (state,) = loop.instruction.operand_names()
    state = loop.outside.instructions[state]
    if state.opcode != "tuple":
        return None
    return _constant(state.operand_names()[position], loop.outside, loop.around, computations)


def _constant(name, computation, loop, computations):
    """The integer that an instruction in the body or condition of a loop gives, or None."""
    instruction = _original(name, computation)
    if instruction.opcode == "constant":
        return int(instruction.operands)
    position = _position(name, computation)
    if position is None or loop is None:
        return None
    (body,) = (computations[name] for name in loop.instruction.called("body"))
    handed_on = _handed_on(position, body)
    # Only what the loop does not change is still what it began with.
    if handed_on is None or _position(handed_on.name, body) != position:
        return None
    return _initial(position, loop, computations)


def _handed_on(position, body):
    """The instruction that gives the next iteration an element of its state, or None."""
    if body.root.opcode != "tuple":
        return None
    return _original(body.root.operand_names()[position], body)
