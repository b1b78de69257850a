"""Sizes as sums of unknown widths: what each axis of a tensor is made of.

An axis is a `Layout`, a row of `Term`s side by side. A term is a `Var`, a width that may change,
each of whose channels lies there as a block of `inner` elements: flattening `[x, 4, 4]` gives
`x · 16`, concatenating gives `x + y`, and a convolution in 32 groups reads `x + x + … + x`. Two
widths that were flattened, as the heads of an attention and what each has, are a variable with
`factors`; it is one only as long as both can change.

Two axes that must agree are joined: where they differ, a variable is defined by the others or cut
in two. What cannot be expressed is fixed, so that no width is ever wrong.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace


class Var:
    """A width.

    Attributes:
        size: How wide it is now.
        fixed: Why it cannot change, or `None`.
        unknown: It is fixed because labkit does not know what some node does.
        factors: The two axes that were flattened to it, if any.
        equals: The layout that it turned out to be; then it is no variable any more.
    """

    def __init__(self, size: int, fixed: str | None = None, unknown: bool = False):
        self.size, self.fixed, self.unknown = size, fixed, unknown
        self.factors: tuple[Layout, Layout] | None = None
        self.equals: Layout | None = None

    def fix(self, why: str, unknown: bool = False) -> None:
        """Keeps the width as it is."""
        # What labkit does not know is the stronger reason: a request for it is an error.
        if self.fixed is None or (unknown and not self.unknown):
            self.fixed, self.unknown = why, unknown

    def define(self, layout: Layout) -> None:
        """Says what the variable is made of."""
        self.equals = layout
        if self.fixed is not None:
            fix(layout, self.fixed, self.unknown)


@dataclass(frozen=True)
class Term:
    """A variable whose channels are blocks of `inner` elements.

    Attributes:
        var: The variable.
        inner: Elements a channel.
        ordered: Whether each channel's elements lie together; otherwise only their number is known.
    """

    var: Var
    inner: int = 1
    ordered: bool = True

    @property
    def size(self) -> int:
        """The elements."""
        return self.var.size * self.inner


Layout = tuple[Term, ...]


def constant(size: int, why: str, unknown: bool = False) -> Layout:
    """Returns an axis that cannot change."""
    return (Term(Var(size, why, unknown)),)


def width(size: int) -> Layout:
    """Returns an axis of channels whose number may change."""
    return (Term(Var(size)),)


def plain(size: int) -> Layout:
    """Returns an axis that has no channels, such as space."""
    return constant(size, "it is no axis of channels")


def size(layout: Iterable[Term]) -> int:
    """Returns the elements of an axis."""
    return sum(term.size for term in layout)


def expand(layout: Iterable[Term]) -> Layout:
    """Returns the layout in terms of variables that are not defined by others."""
    terms: list[Term] = []
    for term in layout:
        if (definition := _definition(term.var)) is None:
            terms.append(term)
            continue
        flat: list[Term] = []
        rest = [*reversed(definition)]
        while rest:  # a loop, as definitions can be thousands deep
            part = rest.pop()
            if (inner := _definition(part.var)) is None:
                flat.append(part)
            else:
                rest += _within(part, reversed(inner))
        term.var.equals = tuple(flat)  # chains of definitions are followed once
        terms += _within(term, flat)
    return tuple(terms)


def _definition(var: Var) -> Layout | None:
    if var.factors and var.equals is None and not all(map(free, var.factors)):
        var.equals = product(*var.factors)
    chain = [var]
    while len(parts := chain[-1].equals or ()) == 1:
        chain.append(parts[0].var)
    for each in reversed(chain[:-2]):
        [part] = each.equals or ()
        each.equals = tuple(_within(part, part.var.equals or ()))
    return var.equals


def _within(term: Term, parts: Iterable[Term]) -> Iterator[Term]:
    """Yields what a term is made of, as blocks like its own."""
    for part in parts:
        yield Term(part.var, part.inner * term.inner, part.ordered and term.ordered)


def variables(layout: Layout) -> set[Var]:
    """Returns the widths that an axis is made of, also those of products."""
    found = {term.var for term in expand(layout)}
    return found.union(*(variables(f) for var in found for f in var.factors or ()))


def free(layout: Layout) -> bool:
    """Returns whether any part of an axis can change."""
    return any(term.var.fixed is None for term in expand(layout))


def fix(layout: Iterable[Term], why: str, unknown: bool = False) -> None:
    """Keeps an axis as it is."""
    for term in expand(layout):
        for factor in term.var.factors or ():
            fix(factor, why, unknown)
        if not term.var.factors:
            term.var.fix(why, unknown)


def join(a: Layout, b: Layout) -> None:
    """Makes two axes of equal size one and the same; of others it raises a `ValueError`."""
    if size(a) != size(b):
        raise ValueError(f"axes of {size(a)} and {size(b)} elements cannot be one")
    rest_a, rest_b = list(a), list(b)
    while rest_a:
        rest_a[:1], rest_b[:1] = expand(rest_a[:1]), expand(rest_b[:1])
        s, t = rest_a[0], rest_b[0]
        if s.size == t.size:
            _equate(s, t)
            del rest_a[0], rest_b[0]
        elif s.size < t.size:
            rest_b[:1] = [part for half in split((t,), [s.size, t.size - s.size]) for part in half]
        else:
            rest_a[:1] = [part for half in split((s,), [t.size, s.size - t.size]) for part in half]


def _equate(s: Term, t: Term) -> None:
    """Makes two terms of equal size one and the same."""
    if s.var is t.var:
        return
    ordered = s.ordered and t.ordered
    if s.var.factors and not (t.var.factors or s.inner % t.inner):
        t.var.define((Term(s.var, s.inner // t.inner, ordered),))
    elif t.var.factors and not (s.var.factors or t.inner % s.inner):
        s.var.define((Term(t.var, t.inner // s.inner, ordered),))
    elif s.var.factors or t.var.factors:
        _equate_products(s, t)
    elif s.inner % t.inner == 0:
        t.var.define((Term(s.var, s.inner // t.inner, ordered),))
    elif t.inner % s.inner == 0:
        s.var.define((Term(t.var, t.inner // s.inner, ordered),))
    else:
        least = math.lcm(s.inner, t.inner)
        common = Var(s.size // least)
        s.var.define((Term(common, least // s.inner, ordered),))
        t.var.define((Term(common, least // t.inner, ordered),))


def _equate_products(s: Term, t: Term) -> None:
    """Makes two terms of equal size one, of which one at least is of a product."""
    a, b = s.var.factors or (), t.var.factors or ()
    if s.inner == t.inner and list(map(size, a)) == list(map(size, b)):
        for factor, other in zip(a, b):
            join(factor, other)
        t.var.equals = (replace(s, inner=1, ordered=s.ordered and t.ordered),)
        return
    why = "it is a product of two widths, and is cut in other ways elsewhere"
    fix((s, t), why)
    join((s,), (t,))


def split(layout: Layout, sizes: Sequence[int]) -> list[Layout]:
    """Cuts an axis into consecutive parts."""
    parts: list[Layout] = []
    rest = list(expand(layout))
    for wanted in sizes:
        part: list[Term] = []
        missing = wanted
        while missing:
            rest[:1] = expand(rest[:1])
            term = rest[0]
            if term.size > missing:
                rest[:1] = _cut(term, missing)
                continue
            part.append(rest.pop(0))
            missing -= term.size
        parts.append(tuple(part))
    return [expand(part) for part in parts]


def _cut(term: Term, at: int) -> list[Term]:
    var, inner = term.var, term.inner
    if var.factors is not None:
        outer, block = var.factors
        if at % (inner * size(block)) or not term.ordered:
            fix((term,), "its channels are cut in the middle")
        else:
            first = at // (inner * size(block))
            halves = split(outer, [first, size(outer) - first])
            var.equals = tuple(t for half in halves for t in product(half, block) or ())
        return list(expand((term,)))
    if at % inner == 0 and term.ordered:
        left, right = Var(at // inner), Var(var.size - at // inner)
        var.define((Term(left), Term(right)))
        return [Term(left, inner), Term(right, inner)]
    if at % var.size == 0:  # such as half of each channel's elements, whichever they are
        first = at // var.size
        return [Term(var, first, ordered=False), Term(var, inner - first, ordered=False)]
    var.fix("its channels are cut in the middle")
    whole = Term(Var(term.size, var.fixed, var.unknown))
    return _cut(whole, at)


def split_evenly(layout: Layout, n: int) -> Layout:
    """Cuts an axis into n parts that have the same widths, and returns one of them."""
    first, *others = split(layout, [size(layout) // n] * n)
    for other in others:
        join(first, other)
    return expand(first)


def product(*axes: Layout) -> Layout | None:
    """Returns axes as one, the last running fastest.

    `None` where more can change than two neighbours.
    """
    at, *others = [i for i, axis in enumerate(axes) if free(axis)] or [0]
    for axis in axes if others else ():
        if size(axis) == 1 and free(axis):
            fix(axis, "it is one alone, and is flattened with others")
            return product(*axes)
    if others == [at + 1]:
        both = Var(size(axes[at]) * size(axes[at + 1]))
        both.factors = axes[at], axes[at + 1]
        axes = *axes[:at], (Term(both),), *axes[at + 2 :]
    elif others:
        return None
    outer, inner = (math.prod(map(size, part)) for part in (axes[:at], axes[at + 1 :]))
    return tuple(replace(t, inner=t.inner * inner) for t in expand(axes[at])) * outer


def factor(layout: Layout, n: int) -> tuple[Layout, Layout]:
    """Returns an axis as n blocks of equal size: their number and their size may both change."""
    blocks, block = width(n), width(size(layout) // n)
    join(layout, product(blocks, block) or ())
    return expand(blocks), expand(block)


def without_inner(layout: Layout, n: int) -> Layout:
    """Returns the layout of an axis `[layout, n]` that was flattened."""
    parts: list[Term] = []
    cut: list[Term] = []  # terms whose channels do not make whole ones of the axis by themselves
    rest = list(layout)
    while rest:
        rest[:1] = expand(rest[:1])  # a variable that comes twice may be defined by now
        term = rest.pop(0)
        common = math.gcd(term.inner, n)
        if term.var.factors and common < n:
            fix(term.var.factors[1], "it is the size of a block, as a number")
            rest[:0] = expand((term,))
            continue
        block = n // common  # channels that make one of the axis
        if not cut and term.var.size % block == 0:
            var = term.var
            if block > 1:
                var = Var(term.var.size // block)
                term.var.define((Term(var, block),))
            parts.append(Term(var, term.inner // common, term.ordered))
            continue
        cut.append(term)
        if size(cut) % n == 0:
            why = "its channels are cut in the middle"
            fix(cut, why)
            parts.append(Term(Var(size(cut) // n, why)))
            cut = []
    return tuple(parts)
