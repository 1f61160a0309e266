"""What a compiled program sends between devices, and its largest buffer, read from its text.

`jax.jit(…).lower(…).compile().as_text()` is XLA's HLO after optimisation, the program of one
device: shapes are of that device's part. Read are the forms that CPU, GPU and TPU compilers print.
"""

import dataclasses
import math
import re

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")

_COMPUTATION = re.compile(r"(ENTRY )?%([^\s(]+) (?:\(.*\) -> .* )?\{$")
_INSTRUCTION = re.compile(r"\s+(ROOT )?%(\S+) = (.*)")
_ARRAY = re.compile(r"\b(pred|[a-z]+\d\w*)\[([\d,<=]*)\]")
_CALLED = re.compile(
    r"\b(?:calls|to_apply|body|condition|(?:true|false)_computation|branch_computations|"
    r"called_computations)=(?:\{([^}]*)\}|(%[^\s,]+))"
)
_TRIP_COUNT = re.compile(r'"known_trip_count":\{"n":"(\d+)"')


@dataclasses.dataclass(frozen=True)
class Collective:
    """One instruction that exchanges data between devices.

    Attributes:
      kind: one of KINDS.
      shape: of its result on one device, e.g. "f32[8,64]" or "(f32[8], f32[])".
      bytes: size of that result, summed over a tuple. It is not what travels: an all-gather over n
        devices receives (n − 1)/n of it, an all-reduce about twice that, a reduce-scatter n − 1
        times the result.
      executions: how often a run of the program executes it.
    """

    kind: str
    shape: str
    bytes: int
    executions: int


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
        """Of a get-tuple-element."""
        return int(re.search(r"\bindex=(\d+)", self.attributes)[1])

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


def collectives(compiled_text):
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
    found = []

    def record(kind, shape, times):
        found.append(Collective(kind, _plain(shape), _bytes(shape), times))

    def visit(computation, times, loop):
        if computation.name.startswith("all-reduce-scatter"):  # a TPU fusion's
            record("reduce-scatter", computation.root.shape, times)
            return
        for instruction in computation.instructions.values():
            kind = instruction.opcode.removesuffix("-start")
            if kind in KINDS and not _repeats(instruction, computation):
                record(kind, _result_shape(instruction, computation), times)
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


def summary(compiled_text):
    """Per kind, how many collectives a device executes in a run, and the bytes of their results.

    Returns:
      {kind: (executions, bytes)}, the kinds that occur. Args, errors and what bytes mean: as
      `collectives` and `Collective`.
    """
    totals = {}
    for each in collectives(compiled_text):
        executions, size = totals.get(each.kind, (0, 0))
        totals[each.kind] = executions + each.executions, size + each.executions * each.bytes
    return totals


def largest_buffer(compiled_text):
    """(elements, shape) of the largest array that any instruction of the program gives.

    Those inside a fusion count, though most are never held whole: that no N×N buffer exists is
    certain where none is found. Scratch memory of a custom call is not seen;
    `compiled.memory_analysis()` has the sum of all.

    Raises:
      ValueError: no program.
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


def _plain(shape):
    """A shape without layouts and comments."""
    return re.sub(r"\{[^}]*\}|/\*.*?\*/", "", shape)


def _bytes(shape):
    """Bytes of a shape, of all elements of a tuple together."""
    total = 0
    for dtype, dims in _arrays(shape):
        bits = 8 if dtype == "pred" else int(re.search(r"\d+", dtype)[0])
        total += math.ceil(math.prod(dims) * bits / 8)
    return total


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
    if None in (start, bound, step) or step < 1:
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
