"""Rules for operators that move data: channels are merged, split, permuted, joined and picked."""

from __future__ import annotations

from collections.abc import Mapping

from graphopt.analysis.channels.factors import Expr, Mismatch
from graphopt.analysis.channels.linear import UNKNOWN, broadcast
from graphopt.analysis.channels.op import Op, Unknown, total
from graphopt.analysis.channels.values import Dim, Element, Value, elements


def flatten(op: Op) -> None:
    """All axes before ``axis`` become one, all others another."""
    x = op.axes(0)
    axis = int(op.attr("axis", 1))
    axis = axis + len(x) if axis < 0 else axis
    op.emit([_product(x[:axis]), _product(x[axis:])])


def _product(axes: list[Expr]) -> Expr:
    return tuple(factor for expr in axes for factor in expr)


def transpose(op: Op) -> None:
    """Axes in another order."""
    x = op.axes(0)
    perm = op.attr("perm") or range(len(x) - 1, -1, -1)
    op.emit([x[int(p)] for p in perm])


def squeeze(op: Op) -> None:
    """Axes of size 1 vanish."""
    x = op.axes(0)
    named = op.ints(1, "axes")
    if named is None and (op.has(1) or any(op.size(e) is None for e in x)):
        raise Unknown(f"{op.where} drops axes known only at run time")
    gone = {a % len(x) for a in named} if named else {a for a, e in enumerate(x) if op.size(e) == 1}
    op.emit([expr for a, expr in enumerate(x) if a not in gone])


def unsqueeze(op: Op) -> None:
    """Axes of size 1 appear."""
    x = op.axes(0)
    named = op.ints(1, "axes")
    if named is None:
        raise Unknown(f"{op.where} adds axes known only at run time")
    rank = len(x) + len(named)
    new = {a % rank for a in named}
    rest = iter(x)
    op.emit([() if a in new else next(rest) for a in range(rank)])


def concat(op: Op) -> None:
    """Inputs end to end along ``axis``, equal along the others."""
    inputs = [op.axes(i) for i in range(len(op.node.inputs))]
    axis = int(op.attr("axis", 1)) % len(inputs[0])
    out = list(inputs[0])
    for other in inputs[1:]:
        for a, expr in enumerate(other):
            if a != axis:
                op.same(out[a], expr)
    pieces = [x[axis] for x in inputs]
    if any(op.size(p) is None for p in pieces):
        op.freeze_all(pieces, f"{op.where} joins it with an axis of unknown size")
        out[axis] = op.fresh(axis)
    else:
        out[axis] = total(pieces)
    op.emit(out)


def split(op: Op) -> None:
    """One axis cut into consecutive pieces."""
    x = op.axes(0)
    axis = int(op.attr("axis", 0)) % len(x)
    count = len(op.node.outputs)
    size = op.size(x[axis])
    given = op.ints(1, "split")
    if size is None or (given is None and op.has(1)):
        raise Unknown(f"{op.where} cuts by sizes known only at run time")
    step = -(-size // count)
    sizes = given or [min(step, size - step * i) for i in range(count)]
    pieces = op.cut(x[axis], sizes)
    target: int | str = "split" if op.facts.model.opset < 13 else 1
    op.edit(target, pieces, drop="num_outputs")
    for index, piece in enumerate(pieces):
        op.emit([*x[:axis], piece, *x[axis + 1 :]], index)


def slice_(op: Op) -> None:
    """A range of each named axis."""
    x = op.axes(0)
    legacy = op.facts.model.opset < 10
    starts, ends = (op.attr("starts"), op.attr("ends")) if legacy else (op.ints(1), op.ints(2))
    axes = op.ints(3, "axes")
    steps = op.ints(4)
    if starts is None or ends is None or (axes is None and op.has(3)) or (steps is None and op.has(4)):
        _slice_unknown(op, axes)
        return
    named = [a % len(x) for a in (axes or range(len(starts)))]
    out, start_edit, end_edit = list(x), list(starts), list(ends)
    for i, axis in enumerate(named):
        piece = _slice_axis(op, x[axis], axis, (starts[i], ends[i], steps[i] if steps else 1))
        if piece is None:
            out[axis] = op.fresh(axis)
        elif piece[1] != x[axis]:
            head, out[axis] = piece
            start_edit[i], end_edit[i] = head, total([head, out[axis]]) if head else out[axis]
    if start_edit != list(starts) or end_edit != list(ends):
        op.edit("starts" if legacy else 1, start_edit)
        op.edit("ends" if legacy else 2, end_edit)
    op.emit(out)


def _slice_unknown(op: Op, axes: list[int] | None) -> None:
    x = op.axes(0)
    if axes is None:
        raise Unknown(f"{op.where} picks a range known only at run time")
    out = list(x)
    for axis in axes:
        op.freeze(x[axis % len(x)], f"{op.where} picks a range known only at run time")
        out[axis % len(x)] = op.fresh(axis % len(x))
    op.emit(out)


def _slice_axis(op: Op, expr: Expr, axis: int, span: tuple[int, int, int]) -> tuple[Expr, Expr] | None:
    """(what lies before, what is picked), or ``None``: a new axis that is never sliced."""
    size = op.size(expr)
    start, end, step = span
    if size is not None and step == 1:
        first, last = (min(max(v + size if v < 0 else v, 0), size) for v in (start, end))
        if (first, last) == (0, size):
            return (), expr
        if first < last and not op.atoms.is_frozen(expr):
            sizes = [s for s in (first, last - first, size - last) if s]
            pieces = op.cut(expr, sizes)
            return (pieces[0], pieces[1]) if first else ((), pieces[0])
    elif size is None and step == 1 and start == 0 and end >= 2**31 - 1:
        return (), expr
    op.freeze(expr, f"{op.where} picks some of its entries")
    return None


def pad(op: Op) -> None:
    """Entries added before and after; on a channel axis they are channels of their own."""
    x = op.axes(0)
    amounts = _pads(op, len(x))
    out: list[Expr] = []
    edits: list[int | Expr] = list(amounts[0] + amounts[1])  # type: ignore[arg-type]
    for axis, expr in enumerate(x):
        before, after = amounts[0][axis], amounts[1][axis]
        if before == after == 0:
            out.append(expr)
        elif before is None or after is None or op.atoms.is_frozen(expr) or not _zero_fill(op):
            op.freeze(expr, f"{op.where} extends it")
            out.append(op.fresh(axis))
        elif before < 0 or after < 0:
            op.freeze(expr, f"{op.where} crops it")
            out.append(op.fresh(axis))
        else:
            head, tail = op.atoms.new(before), op.atoms.new(after)
            out.append(total([part for part, n in ((head, before), (expr, 1), (tail, after)) if n]))
            edits[axis] = head if before > 1 else before
            edits[len(x) + axis] = tail if after > 1 else after
    if edits != list(amounts[0] + amounts[1]):
        op.edit("pads" if op.facts.model.opset < 11 else 1, edits)
    op.emit(out)


def _pads(op: Op, rank: int) -> tuple[list[int | None], list[int | None]]:
    given = op.attr("pads")
    numbers: list[int | None]
    if given is not None:
        numbers = [int(v) for v in given]
    else:
        value = op.value(1)
        if value is None:
            raise Unknown(f"{op.where} pads by an amount known only at run time")
        numbers = [op.element(value, i) for i in range(value.size)]
    axes = op.ints(3) or list(range(rank))
    before: list[int | None] = [0] * rank
    after: list[int | None] = [0] * rank
    for i, axis in enumerate(axes):
        before[axis % rank], after[axis % rank] = numbers[i], numbers[len(axes) + i]
    return before, after


def _zero_fill(op: Op) -> bool:
    """Whether padding a channel axis means channels of zeros, written in a way that can be edited."""
    if op.attr("mode", "constant") != "constant" or op.has(3) or float(op.attr("value", 0.0)) != 0.0:
        return False
    if not op.has(2):
        return True
    use = op.use(2)
    return use is not None and not use.value.any()


def dead_pad(op: Op, seen: Mapping[int, float]) -> float:
    """Zeros beside zeros; another constant only where nothing is added."""
    value = seen.get(0, 0.0)  # an atom that only the padding holds: zeros
    if not _zero_fill(op) and op.attr("mode", "constant") == "constant":
        return UNKNOWN
    if value == 0.0 or op.attr("mode", "constant") != "constant":
        return value
    before, after = _pads(op, len(op.axes(0)))
    return UNKNOWN if any(n != 0 for n in before + after) else value


def expand(op: Op) -> None:
    """Broadcast to a given shape."""
    x = op.axes(0)
    shape = op.value(1)
    if shape is None:
        raise Unknown(f"{op.where} takes a shape known only at run time")
    target: list[Expr] = []
    for element in elements(shape):
        expr = element.expr if isinstance(element, Dim) else op.atoms.new(element)
        op.freeze(expr, f"{op.where} broadcasts to it")
        target.append(expr)
    op.emit(broadcast(op, [x, target]))


def tile(op: Op) -> None:
    """Repeats along axes."""
    x = op.axes(0)
    repeats = op.ints(1)
    if repeats is None:
        raise Unknown(f"{op.where} repeats as often as is known only at run time")
    for expr, times in zip(x, repeats, strict=True):
        if times != 1:
            op.freeze(expr, f"{op.where} repeats it")
    op.emit([e if n == 1 else op.fresh(a) for a, (e, n) in enumerate(zip(x, repeats, strict=True))])


def resize(op: Op) -> None:
    """Spatial axes change size; batch and channels pass through."""
    x = op.axes(0)
    shape = op.out_shape()
    if op.attr("axes") is not None:
        named = {int(a) % len(x) for a in op.attr("axes")}
        same = [a not in named for a in range(len(x))]
    else:
        same = [shape is not None and _stays(op, shape[a], x[a], a) for a in range(len(x))]
    out = [x[a] if same[a] else op.fresh(a) for a in range(len(x))]
    for axis, expr in enumerate(x):
        if not same[axis]:
            op.freeze(expr, f"{op.where} resizes it")
    sizes = op.value(3)
    if sizes is not None and op.attr("axes") is None:
        _edit_sizes(op, sizes, out)
    op.emit(out)


def _stays(op: Op, after: int | str | None, expr: Expr, axis: int) -> bool:
    return isinstance(after, int) and op.size(expr) == after if axis else True


def _edit_sizes(op: Op, sizes: Value, out: list[Expr]) -> None:
    template: list[int | Expr] = []
    for axis, element in enumerate(elements(sizes)):
        if isinstance(element, Dim) and op.atoms.resolve(element.expr) == op.atoms.resolve(out[axis]):
            continue
        template.append(out[axis])
    if len(template) == sizes.size and all(op.size(e) is not None for e in out):
        op.edit(3, template)
    else:
        for axis, element in enumerate(elements(sizes)):
            if not isinstance(element, Dim):
                op.freeze(out[axis], f"its size is written into the computed sizes of {op.where}")


def depth_to_space(op: Op) -> None:
    """Channels are blocks of pixels: [b², C'] (DCR) or [C', b²] (CRD)."""
    x = op.axes(0)
    block = int(op.attr("blocksize")) ** 2
    pixels = op.atoms.new(block)
    op.freeze(pixels, f"{op.where} turns it into pixels")
    channels = op.atoms.new(op.fixed(x[1]) // block)
    crd = op.attr("mode", "DCR") == "CRD"
    op.same(x[1], channels + pixels if crd else pixels + channels)
    op.freeze_all(x[2:], "a spatial axis")
    op.emit([x[0], channels, op.fresh(2), op.fresh(3)])


def space_to_depth(op: Op) -> None:
    """Blocks of pixels become channels: [b², C]."""
    x = op.axes(0)
    pixels = op.atoms.new(int(op.attr("blocksize")) ** 2)
    op.freeze(pixels, f"{op.where} makes it from pixels")
    op.freeze_all(x[2:], "a spatial axis")
    op.emit([x[0], pixels + x[1], op.fresh(2), op.fresh(3)])


def reshape(op: Op) -> None:
    """Products merged and split; numbers in the target shape follow."""
    x = op.axes(0)
    value = op.value(1) if op.attr("shape") is None else None
    target = list(op.attr("shape")) if op.attr("shape") is not None else _elements(op, value)
    try:
        out = _match(op, x, target)
    except Mismatch:
        raise Unknown(f"{op.where} lays its channels out anew") from None
    op.emit(out)
    _edit_shape(op, x, out, target)


def _elements(op: Op, value: Value | None) -> list[Element]:
    found: list[Element] = [] if value is None else elements(value)
    if value is None or None in found:
        shape = op.out_shape()
        if shape is None or sum(not isinstance(s, int) for s in shape) > 1:
            raise Unknown(f"{op.where} takes a shape known only at run time")
        # What inference knows stands for the shape; it cannot be edited, and _edit_shape freezes what it holds.
        return [e if isinstance(e, int) and e > 0 else None for e in shape]
    return found


def _match(op: Op, x: list[Expr], target: list[Element]) -> list[Expr]:
    """The output axes: the input's factors are dealt out from the left, then from the right, the rest is the -1."""
    wanted = [_wanted(op, x, position, element) for position, element in enumerate(target)]
    rest = op.atoms.resolve(_product(x))
    out: list[Expr | None] = [None] * len(target)
    free = wanted.index(None) if None in wanted else len(wanted)
    for position in range(free):
        out[position], rest = take(op, rest, wanted[position], front=True)
    for position in range(len(wanted) - 1, free, -1):
        out[position], rest = take(op, rest, wanted[position], front=False)
    if free < len(wanted):
        out[free] = rest
    elif rest:
        raise Mismatch
    return [expr if expr is not None else () for expr in out]


def _wanted(op: Op, x: list[Expr], position: int, element: Element) -> Expr | int | None:
    if isinstance(element, Dim):
        return op.atoms.resolve(element.expr)
    if element is None or element == -1:
        return None
    if element == 0 and not op.attr("allowzero", 0):
        return op.atoms.resolve(x[position])
    return element


def take(op: Op, rest: Expr, want: Expr | int | None, *, front: bool) -> tuple[Expr, Expr]:
    """The first (last) factors of ``rest`` that make up ``want``, and what remains."""
    if want is None:
        raise Mismatch
    if not isinstance(want, int):
        width = len(want)
        piece = rest[:width] if front else rest[len(rest) - width :]
        if piece == want:
            return piece, (rest[width:] if front else rest[: len(rest) - width])
        size = op.size(want)
        if size is None:
            raise Mismatch
        want = size
    taken: Expr = ()
    while want > 1:
        if not rest:
            raise Mismatch
        size = op.size(rest[:1] if front else rest[-1:])
        if size is None:
            raise Mismatch
        if size > want:
            rest = op.atoms.split_product(rest, want) if front else op.atoms.split_inner(rest, want)
            continue
        if want % size:
            raise Mismatch
        want //= size
        taken = taken + rest[:1] if front else rest[-1:] + taken
        rest = rest[1:] if front else rest[:-1]
    return taken, rest


def _edit_shape(op: Op, x: list[Expr], out: list[Expr], target: list[Element]) -> None:
    """Say how the numbers of the target shape follow, or freeze what cannot be followed."""
    template: list[int | Expr] = []
    inferred = 0
    for position, element in enumerate(target):
        if element is None or isinstance(element, Dim):
            copied = position < len(x) and op.atoms.resolve(x[position]) == op.atoms.resolve(out[position])
            template.append(0 if copied and not op.attr("allowzero", 0) else -1)
            inferred += template[-1] == -1
        elif element > 0:
            template.append(out[position])
        else:
            template.append(element)
            inferred += template[-1] == -1
    if inferred <= 1:
        op.edit("shape" if op.attr("shape") is not None else 1, template)
        return
    op.freeze_all(out, f"its size is written into the computed shape of {op.where}")
