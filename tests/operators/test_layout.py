"""The algebra of axes against plain lists of channels."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labkit.operators import layout as lay
from labkit.operators.layout import Layout, Term, Var


def under(layout: Layout, factor: int) -> int:
    """The size of an axis where every width that may change is so many times as large."""
    return sum(
        term.inner * term.var.size * (1 if term.var.fixed else factor)
        for term in lay.expand(layout)
    )


def blocks(layout: Layout) -> list[tuple[int, int]]:
    """Width and block size of each term."""
    return [(term.var.size, term.inner) for term in lay.expand(layout)]


def test_flattening_makes_each_channel_a_block() -> None:
    channels, space = lay.width(3), lay.plain(16)
    flat = lay.product(channels, space)
    assert flat is not None
    assert blocks(flat) == [(3, 16)]
    assert (lay.size(flat), under(flat, 2)) == (48, 96)
    last = lay.product(space, channels)  # space first: the channels come 16 times
    assert last is not None
    assert blocks(last) == [(3, 1)] * 16
    assert under(last, 2) == 96
    assert lay.product(channels, space, lay.width(2)) is None
    both = lay.product(lay.plain(2), lay.plain(3))
    assert both is not None
    assert (lay.size(both), under(both, 5)) == (6, 6)
    one = lay.product(lay.plain(5))
    assert one is not None
    assert blocks(one) == [(5, 1)]


@pytest.mark.parametrize(
    ("width", "inner", "n", "expected"),
    [
        (3, 16, 16, [(3, 1)]),
        (3, 16, 4, [(3, 4)]),
        (6, 2, 4, [(3, 1)]),  # two channels make one
        (6, 4, 6, [(2, 2)]),  # lcm 12: three channels are two
        (5, 2, 10, [(1, 1)]),
    ],
)
def test_what_was_flattened_comes_apart(
    width: int, inner: int, n: int, expected: list[tuple[int, int]]
) -> None:
    flat = (Term(Var(width), inner),)
    outer = lay.without_inner(flat, n)
    assert blocks(outer) == expected
    assert lay.size(outer) * n == width * inner
    assert under(outer, 7) * n == under(flat, 7)


def test_what_cannot_come_apart_is_fixed() -> None:
    flat = (Term(Var(3), 2), Term(Var(5), 2))  # 16 elements in blocks of 4: one has parts of both
    outer = lay.without_inner(flat, 4)
    assert lay.size(outer) == 4
    assert not lay.free(flat)
    assert {t.var.fixed for t in flat} == {"its channels are cut in the middle"}


@pytest.mark.parametrize(
    ("a", "b", "width"),
    [((6, 4), (4, 6), 2), ((6, 4), (12, 2), 6), ((5, 3), (15, 1), 5), ((4, 1), (4, 1), 4)],
)
def test_joined_axes_share_a_width(a: tuple[int, int], b: tuple[int, int], width: int) -> None:
    one, other = (Term(Var(a[0]), a[1]),), (Term(Var(b[0]), b[1]),)
    lay.join(one, other)
    (s,), (t,) = lay.expand(one), lay.expand(other)
    assert s.var is t.var
    assert s.var.size == width
    assert lay.size(one) == lay.size(other) == a[0] * a[1]
    assert under(one, 3) == under(other, 3) == 3 * lay.size(one)


def test_joining_cuts_what_spans_several() -> None:
    whole, parts = lay.width(8), lay.width(3) + lay.width(5)
    lay.join(whole, parts)
    assert blocks(whole) == blocks(parts) == [(3, 1), (5, 1)]
    assert [t.var for t in lay.expand(whole)] == [t.var for t in lay.expand(parts)]


def test_a_block_is_cut_between_channels_or_within_all() -> None:
    between = (Term(Var(6), 4),)
    first, second = lay.split(between, [8, 16])
    assert (blocks(first), blocks(second)) == ([(2, 4)], [(4, 4)])
    assert lay.free(between)
    within = (Term(Var(6), 4, ordered=False),)
    first, second = lay.split(within, [6, 18])
    assert (blocks(first), blocks(second)) == ([(6, 1)], [(6, 3)])
    assert not any(term.ordered for term in (*first, *second))
    middle = (Term(Var(6), 4),)
    lay.split(middle, [3, 21])
    assert not lay.free(middle)


@given(st.lists(st.integers(1, 6), min_size=1, max_size=4), st.data())
def test_parts_put_together_are_the_whole(widths: list[int], data: st.DataObject) -> None:
    axis = tuple(itertools.chain(*map(lay.width, widths)))
    n = lay.size(axis)
    cuts = sorted(data.draw(st.lists(st.integers(0, n), max_size=3)))
    sizes = [b - a for a, b in itertools.pairwise([0, *cuts, n])]
    parts = lay.split(axis, sizes)
    assert [lay.size(part) for part in parts] == sizes
    assert sum(under(part, 3) for part in parts) == under(axis, 3) == 3 * n
    together = tuple(term for part in parts for term in part)
    assert [t.var for t in lay.expand(together)] == [t.var for t in lay.expand(axis)]


@pytest.mark.parametrize(("width", "n"), [(12, 3), (8, 8), (5, 1)])
def test_even_parts_have_one_width(width: int, n: int) -> None:
    axis = lay.width(width)
    part = lay.split_evenly(axis, n)
    assert blocks(part) == [(width // n, 1)]
    assert blocks(axis) == [(width // n, 1)] * n
    assert under(axis, 2) == 2 * width


def test_what_labkit_does_not_know_is_the_stronger_reason() -> None:
    axis = lay.width(4)
    lay.fix(axis, "first")
    lay.fix(axis, "second")
    assert axis[0].var.fixed == "first"
    lay.fix(axis, "not known", unknown=True)
    lay.fix(axis, "third")
    assert (axis[0].var.fixed, axis[0].var.unknown) == ("not known", True)


def test_a_fixed_width_fixes_what_defines_it() -> None:
    axis = lay.width(6)
    lay.fix(axis, "it is the network's input")
    part = lay.split_evenly(axis, 2)
    assert not lay.free(part)
    assert part[0].var.fixed == "it is the network's input"


def test_an_axis_that_is_joined_with_thousands_is_read_at_once() -> None:
    axis = lay.width(8)
    for _ in range(2000):
        lay.join(lay.width(8), axis)
    assert blocks(axis) == [(8, 1)]


def test_an_axis_is_cut_into_thousands_of_parts() -> None:
    axis = lay.width(2400)
    lay.split_evenly(axis, 1200)
    assert len(lay.expand(axis)) == 1200
    assert len(lay.variables(axis)) == 1


def test_single_elements_are_flattened_with_two_widths_whether_they_can_change_or_not() -> None:
    for one in (lay.width(1), lay.plain(1)):
        flat = lay.product(one, lay.width(3), lay.width(4))
        assert flat is not None
        assert (lay.size(flat), len(lay.variables(flat))) == (12, 3)
