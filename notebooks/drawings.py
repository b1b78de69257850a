"""The drawings of the lessons: small figures, made by code."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from labkit import Dataset
from labkit.show.style import (
    BLUE, GREEN, GREY, ORANGE, PURPLE, TEMPLATE, Figure, finished, text
)

SKY = "#56B4E9"
COLOURS = BLUE, ORANGE, GREEN, PURPLE, SKY
WIDE, HIGH = 13, 10  # of a panel with its margins; a drawing has 10 × 6


class Panel:
    """A place of a figure to draw in, from (0, 0) to (10, 6)."""

    def __init__(self, figure: Figure, left: float = 0, bottom: float = 0):
        self.figure, self.left, self.bottom = figure, left, bottom

    def box(self, x: float, y: float, wide: float, high: float, colour: str, fill: float = 1):
        ends = {"x0": self.left + x, "x1": self.left + x + wide}
        ends |= {"y0": self.bottom + y, "y1": self.bottom + y + high}
        line = {"color": colour, "width": 1}
        self.figure.add_shape(type="rect", **ends, line=line, fillcolor=colour, opacity=fill)

    def grid(self, x: float, y: float, rows: int, columns: int, colour: str, size: float = 0.5):
        for i in range(rows * columns):
            at = x + i % columns * size, y + i // columns * size
            self.box(*at, 0.8 * size, 0.8 * size, colour)

    def say(self, x: float, y: float, words: str, size: int = 12):
        at = {"x": self.left + x, "y": self.bottom + y}
        self.figure.add_annotation(**at, text=words, showarrow=False, font={"size": size})

    def arrow(self, x: float, y: float, to_x: float, to_y: float):
        self.figure.add_annotation(
            ax=self.left + x, ay=self.bottom + y, x=self.left + to_x, y=self.bottom + to_y,
            axref="x", ayref="y", text="", showarrow=True,
            arrowhead=2, arrowcolor=GREY, arrowwidth=2,
        )  # fmt: skip

    def line(self, xs: Sequence[float], ys: Sequence[float], colour: str, **look: str):
        xs, ys = self.left + np.array(xs), self.bottom + np.array(ys)
        self.figure.add_scatter(x=xs, y=ys, mode="lines", line={"color": colour, **look})

    def dots(self, points: Sequence[tuple[float, float]], colour: str, size: int = 9):
        xs, ys = np.array(points, float).T
        self.figure.add_scatter(
            x=self.left + xs, y=self.bottom + ys, mode="markers",
            marker={"color": colour, "size": size},
        )  # fmt: skip

    def axes(self):
        self.line([0, 0, 10], [6, 0, 0], GREY)


def panels(drawings: dict[str, Callable[[Panel], None]], columns: int = 3) -> Figure:
    """Returns drawings beside and below each other, each with its name above it."""
    figure = Figure()
    for i, (name, draw) in enumerate(drawings.items()):
        panel = Panel(figure, i % columns * WIDE, -(i // columns) * HIGH)
        draw(panel)
        panel.say(5, 7.2, f"<b>{name}</b>", 14)
    rows = -(-len(drawings) // columns)
    return bare(figure, [-1.5, columns * WIDE - 1.5], [HIGH * (1 - rows) - 1, 8], 200 * rows)


def bare(figure: Figure, x: Sequence[float], y: Sequence[float], height: int) -> Figure:
    """Returns a figure without axes: a drawing."""
    figure.update_traces(hoverinfo="skip")
    figure.update_xaxes(visible=False, range=x).update_yaxes(visible=False, range=y)
    margin = dict.fromkeys("lrtb", 10)
    return figure.update_layout(
        template=TEMPLATE, showlegend=False, height=height, margin=margin
    )


# The words of the glossary.


def the_network() -> Figure:
    """Returns what the words for a network mean."""

    def layer(p: Panel) -> None:
        p.grid(0, 1, 8, 1, SKY)
        p.box(2.5, 0.8, 4, 4.4, GREY, 0.4)
        p.grid(8, 2, 4, 1, BLUE)
        for x in (0.6, 6.7):
            p.arrow(x, 3, x + 1.3, 3)
        p.say(4.5, 3, "8 → 4")

    def width(p: Panel) -> None:
        p.grid(3, 1, 4, 1, BLUE, 1)
        p.say(6.5, 3, "4 channels")

    def multiplier(p: Panel) -> None:
        p.grid(1, 2, 4, 1, GREY)
        p.arrow(2.5, 3, 6, 3)
        p.say(4, 3.9, "× 2")
        p.grid(7, 1, 8, 1, BLUE)

    def group(p: Panel) -> None:
        for x, name in ((0, "writes"), (6.5, "reads")):
            p.box(x, 1, 3.5, 4, GREY, 0.4)
            p.say(x + 1.75, 3, name)
        p.grid(4.75, 1, 8, 1, BLUE)

    def plan(p: Panel) -> None:
        for y, name, n in ((4, "first", 16), (2.5, "second", 8)):
            p.say(2.5, y, name)
            p.box(5, y - 0.3, n / 4, 0.6, BLUE)
            p.say(5.8 + n / 4, y, str(n))

    def stack(p: Panel) -> None:
        for x, n in ((0, 2), (3.5, 4), (7, 3)):
            p.grid(x, 1.5, 4, 4, "#cccccc", 0.7)
            p.grid(x, 1.5, n, n, BLUE, 0.7)

    return panels({
        "layer": layer, "channels, width": width, "multiplier": multiplier,
        "group of channels": group, "plan": plan, "stack": stack,
    })  # fmt: skip


def the_cost() -> Figure:
    """Returns what the words for cost mean."""

    def mac(p: Panel) -> None:
        p.say(5, 3.5, "sum + w × x", 16)
        p.say(5, 1.8, "one multiply-accumulate")

    def flops(p: Panel) -> None:
        p.grid(1, 1, 8, 16, ORANGE)
        p.say(5, 0, "16 in × 8 out = 128")

    def bitops(p: Panel) -> None:
        p.grid(0.5, 1, 10, 10, PURPLE, 0.4)
        p.say(7.5, 3, "32 × 32 bits<br>at every w × x")

    def parameters(p: Panel) -> None:
        p.grid(0, 1, 8, 16, GREEN)
        p.grid(8.7, 1, 8, 1, SKY)
        p.say(4, 0, "weights")
        p.say(9, 0, "bias")

    drawings = {"MAC": mac, "FLOPs": flops, "bitops": bitops, "parameters": parameters}
    return panels(drawings, columns=2)


def the_training() -> Figure:
    """Returns what the words for training mean."""
    steps = np.linspace(0, 10, 30)

    def rises(start: float, end: float) -> np.ndarray:
        return end - (end - start) * np.exp(-steps / 2.5)

    def splits(p: Panel) -> None:
        for x, wide, colour, name in (
            (0, 7.6, BLUE, "training"), (7.8, 1, ORANGE, "valid."), (9, 1, GREEN, "test"),
        ):  # fmt: skip
            p.box(x, 2.5, wide, 1.5, colour)
            p.say(x + wide / 2, 4.8 if name == "valid." else 1.6, name)

    def epoch(p: Panel) -> None:
        p.axes()
        p.line(steps, rises(0.5, 5), BLUE)
        p.dots([(x, rises(0.5, 5)[int(2.9 * x)]) for x in (2, 4, 6, 8, 10)], BLUE)
        p.say(5, -0.8, "epochs")

    def seed(p: Panel) -> None:
        p.axes()
        for start, end, colour in ((0.3, 4.8, BLUE), (1, 5.5, ORANGE), (0.7, 4.3, GREEN)):
            p.line(steps, rises(start, end), colour)
        p.say(5, -0.8, "one network, three seeds")

    def deviation(p: Panel) -> None:
        p.axes()
        p.line([5, 5], [2, 5], BLUE)
        p.dots([(5, 3.5)], BLUE, 12)
        p.dots([(4, 3.1), (4, 5), (4, 2.4)], GREY)
        p.say(7.4, 3.5, "mean<br>± 1 std")

    return panels({
        "splits": splits, "epoch": epoch, "seed": seed, "standard deviation": deviation,
    }, columns=2)  # fmt: skip


def the_search() -> Figure:
    """Returns what the words for a search mean."""
    front = [(1, 1.2), (2.5, 3.2), (5, 4.2), (8.5, 5)]
    others = [(3.5, 1.8), (6, 3), (7.5, 3.6)]

    def staircase() -> tuple[list[float], list[float]]:
        xs, ys = zip(*front)
        return [*np.repeat(xs, 2)[1:], 10], [*np.repeat(ys, 2)]

    def trial(p: Panel) -> None:
        p.axes()
        p.dots([front[1]], BLUE, 12)
        p.say(5, -0.8, "cost: minimise")
        p.say(5.5, 3.2, "a network")

    def front_and_others(p: Panel) -> None:
        p.axes()
        p.line(*staircase(), BLUE)
        p.dots(front, BLUE)
        p.dots(others, GREY)

    def dominates(p: Panel) -> None:
        p.axes()
        p.box(2.5, 0, 7.5, 3.2, GREY, 0.25)
        p.dots([front[1]], BLUE, 12)
        p.dots(others[:2], GREY)
        p.say(7, 0.8, "dominated")

    def hypervolume(p: Panel) -> None:
        p.axes()
        xs, ys = staircase()
        shape = {"x": [*xs, 10, 1], "y": [*ys, 0, 0]}
        p.figure.add_scatter(
            x=p.left + np.array(shape["x"]), y=p.bottom + np.array(shape["y"]), mode="lines",
            fill="toself", line={"color": BLUE},
        )  # fmt: skip
        p.dots([(10, 0)], ORANGE, 11)

    def sampler(p: Panel) -> None:
        p.axes()
        p.dots([*front[:2], *others[:1]], GREY)
        p.arrow(6, 1.5, 6, 3.4)
        p.say(6, 4.3, "?", 18)
        p.say(6, 0.8, "which next?")

    def known(p: Panel) -> None:
        p.dots([(1, 4.5), (1, 1.5)], BLUE, 12)
        p.dots([(8, 3)], ORANGE, 12)
        for y in (4.5, 1.5):
            p.arrow(1.6, y, 7.4, 3)
        p.say(4.3, 0.2, "two requests, one network")

    return panels({
        "trial": trial, "dominated": dominates, "Pareto front": front_and_others,
        "hypervolume": hypervolume, "sampler": sampler, "look-up": known,
    })  # fmt: skip


# The lessons' own.


def widths_followed(table: pd.DataFrame) -> Figure:
    """Returns a chain of layers and the tensors between them, coloured by group of channels.

    Args:
        table: Of `labkit.layer_table`.
    """
    figure = Figure()
    layers = table.iloc[:-1]
    wide, group = int(layers["in"].iloc[0]), "data"
    tensors = [(wide, group)]
    for _, row in layers.iterrows():
        wide, group = (wide, group) if pd.isna(row["out"]) else (row["out"], row["group"])
        tensors.append((int(wide), group))
    last = tensors[-1][1]
    names = list(dict.fromkeys(group for _, group in tensors))
    panel, scale = Panel(figure), 5 / max(wide for wide, _ in tensors)
    for i, (wide, group) in enumerate(tensors):
        colour = GREY if group in ("data", last) else COLOURS[names.index(group) % len(COLOURS)]
        panel.box(4 * i, -wide * scale / 2, 0.8, wide * scale, colour)
        panel.say(4 * i + 0.4, wide * scale / 2 + 0.5, f"<b>{wide}</b>")
    for i, (name, row) in enumerate(layers.iterrows()):
        panel.box(4 * i + 1.5, -1, 1.8, 2, GREY, 0.3)
        # By turns higher and lower: side by side long names would overlap.
        panel.say(4 * i + 2.4, -3.6 - 1.6 * (i % 2), f"{text(name)}<br>{text(row['type'])}", 10)
    return bare(figure, [-1, 4 * len(layers) + 2], [-6, 3.8], 300)


def dominated() -> Figure:
    """Returns seven networks, the four of them that nothing dominates, and what one dominates."""
    front = pd.DataFrame({"cost": [400, 650, 1300, 3600], "quality": [0.64, 0.69, 0.71, 0.72]})
    others = pd.DataFrame({"cost": [850, 2000, 2600], "quality": [0.66, 0.70, 0.685]})
    figure = Figure()
    corner = {"x0": 650, "x1": 4000, "y0": 0.62, "y1": 0.69}
    figure.add_shape(type="rect", **corner, fillcolor=BLUE, opacity=0.12, line_width=0)
    for points, name, labels, colour, mode, place in (
        (front, "Pareto front", "ABCD", BLUE, "lines+markers+text", "top left"),
        (others, "dominated", "EFG", GREY, "markers+text", "bottom right"),
    ):
        figure.add_scatter(
            x=points["cost"], y=points["quality"], mode=mode, name=name, text=list(labels),
            textposition=place, line={"shape": "hv", "color": colour},
            marker={"size": 12, "color": colour},
        )  # fmt: skip
    figure.add_annotation(x=2900, y=0.635, text="what B dominates", showarrow=False)
    return finished(
        figure, title="Seven networks", height=380,
        xaxis={"title": "cost: less is better", "range": [200, 4000]},
        yaxis={"title": "accuracy: more is better", "range": [0.62, 0.74]},
    )  # fmt: skip


def tpe_step(widths: Sequence[int], values: Sequence[float], share: float = 0.25) -> Figure:
    """Returns how TPE chooses a width: by good trials, others, and the ratio of their densities.

    Args:
        widths: That were tried.
        values: What each achieved: more is better.
        share: Of the trials, how many count as good.
    """
    x, values = np.log2(widths), np.array(values)
    good = values >= np.quantile(values, 1 - share)
    at = np.linspace(x.min() - 0.5, x.max() + 0.5, 200)

    def density(trials: np.ndarray) -> np.ndarray:
        kernels = np.exp(-((at[:, None] - trials) ** 2) / (2 * 0.6**2))
        # A kernel of the whole range, Optuna's prior, keeps every width possible.
        return (kernels.sum(axis=1) + 0.3) / (len(trials) + 1)

    figure = Figure()
    for name, chosen, colour in (("good: l(x)", good, BLUE), ("others: g(x)", ~good, GREY)):
        figure.add_scatter(x=2**at, y=density(x[chosen]), name=name, line={"color": colour})
        figure.add_scatter(
            x=2 ** x[chosen], y=np.full(chosen.sum(), -0.06), mode="markers", showlegend=False,
            marker={"color": colour, "symbol": "line-ns-open", "size": 14, "line_width": 3},
        )  # fmt: skip
    ratio = density(x[good]) / density(x[~good])
    figure.add_scatter(
        x=2**at, y=ratio / ratio.max(), name="l(x) / g(x)", line={"color": ORANGE, "dash": "dash"}
    )
    best = 2 ** at[ratio.argmax()]
    figure.add_vline(x=best, line={"color": ORANGE, "width": 1})
    figure.add_annotation(x=np.log10(best), y=1.08, text="next", showarrow=False, xshift=22)
    return finished(
        figure, title="One step of TPE, on a space of one width", height=380,
        xaxis={"title": "width", "type": "log", "tickvals": sorted(set(widths))},
        yaxis={"title": "density, and their ratio (scaled)"},
    )  # fmt: skip


def by_class(data: Dataset, feature: str, bins: int = 150) -> Figure:
    """Returns how a feature is distributed in each class of the training split."""
    values = data.x_train[:, data.features.index(feature)].numpy()
    edges = np.linspace(*np.quantile(values, [0.001, 0.98]), bins + 1)
    figure = Figure()
    for label, (name, colour) in enumerate(zip(data.classes, COLOURS)):
        counts, _ = np.histogram(values[data.y_train.numpy() == label], edges, density=True)
        line = {"color": colour, "shape": "hvh"}
        figure.add_scatter(x=(edges[1:] + edges[:-1]) / 2, y=counts, name=text(name), line=line)
    return finished(
        figure, title=f"{text(feature)} of the five kinds of jet", height=360,
        xaxis={"title": "standard deviations from the mean of all jets"},
        yaxis={"title": "density"},
    )  # fmt: skip


def padded(shapes: Sequence[tuple[int, int]]) -> Figure:
    """Returns weight matrices in a stack: each fills a corner of the widest, the rest is zeros.

    Args:
        shapes: Outputs and inputs of each matrix.
    """
    rows, columns = np.max(shapes, axis=0)
    figure = Figure()
    for i, (high, wide) in enumerate(shapes):
        panel = Panel(figure, 1.15 * columns * i)
        panel.box(0, 0, columns, rows, GREY, 0.25)
        panel.box(0, 0, wide, high, BLUE)
        panel.say(columns / 2, rows * 1.15, f"{wide} → {high}", 11)
    right = 1.15 * columns * len(shapes)
    return bare(figure, [-0.05 * columns, right], [-0.1 * rows, 1.3 * rows], 220)
