"""Random networks of all operators under random plans."""

import warnings
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.fx.passes.shape_prop import ShapeProp

from labkit.operators.base import scalable_modules
from labkit.operators.normalisation import BatchNorm
from labkit.transform.applying import channel_multiplier_transform_pass
from labkit.transform.channels import find_channels
from labkit.transform.cost import CONVENTIONS, cost_of, output_shapes, total_cost
from labkit.transform.graph import layer_nodes, trace
from labkit.transform.plan import SkippedRequest

Step = tuple[str, tuple[int, ...], Any]


class Program(nn.Module):
    """A network that runs a list of steps, each of which reads earlier values and adds new ones.

    What no step reads goes through a linear layer, and their sum is the output `[batch, 2]`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[Step] = []
        self.layers = nn.ModuleList()
        self.heads = nn.ModuleList()
        self.tensors = nn.ParameterList()

    def layer(self, module: nn.Module) -> int:
        """Adds a layer and returns its number."""
        self.layers.append(module)
        return len(self.layers) - 1

    def values(self, x: torch.Tensor) -> list[torch.Tensor]:
        values = [x]
        for step in self.steps:
            values += self.run(step, values)
        return values

    def run(self, step: Step, values: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        operator, sources, argument = step
        x, *others = (values[i] for i in sources)
        match operator:
            case "layer":
                return [self.layers[argument](x)]
            case "add":
                return [x + others[0]]
            case "mul":
                return [torch.mul(x, others[0].tanh())]
            case "cat":
                return [torch.cat([x, *others], 1)]
            case "chunk":
                parts = x.chunk(argument, dim=1)
                return [parts[i] for i in range(argument)]
            case "split":
                parts = torch.split(x, argument, dim=1)
                return [parts[i] for i in range(len(argument))]
            case "slice":
                start, stop = argument
                return [x[:, start:stop]]
            case "half":
                return [x[:, : x.size(1) // 2], x[:, x.size(1) // 2 :]]
            case "shuffle":
                batch, channels, height, width = x.shape
                x = x.view(batch, argument, channels // argument, height, width)
                return [x.transpose(1, 2).reshape(batch, channels, height, width)]
            case "pool":
                return [F.max_pool2d(x, 2) if argument else F.avg_pool2d(x, 2)]
            case "view":
                return [x.contiguous().view(-1, argument)]
            case "flatten":
                return [torch.flatten(x, 1) if argument else x.reshape(x.size(0), -1)]
            case "unflatten":
                return [x.reshape(x.size(0), argument, 2, 2)]
            case "mean":
                return [x.mean((2, 3))]
            case "scale":
                return [x * self.tensors[argument]]
            case "centre":
                return [x - (x.sum(1) / x.shape[1]).unsqueeze(1)]
            case "gate":
                squeeze, excite = argument
                gate = self.layers[squeeze](x.mean((2, 3), keepdim=True)).relu()
                return [x * self.layers[excite](gate).sigmoid()]
            case "channels last":
                x = self.layers[argument](x.permute(0, 2, 3, 1))
                return [x.permute(0, 3, 1, 2)]
        raise AssertionError(operator)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        values = self.values(x)
        used = {i for _, sources, _ in self.steps for i in sources}
        ends = [torch.flatten(v, 1) for i, v in enumerate(values) if i not in used]
        total = self.heads[0](ends[0])
        for head, end in zip(self.heads[1:], ends[1:]):
            total = total + head(end)
        return total


def divisors(n: int) -> st.SearchStrategy[int]:
    return st.sampled_from([d for d in range(1, n + 1) if n % d == 0])


IMAGE_STEPS = [
    "conv", "grouped", "depthwise", "transposed", "norm", "activation", "add", "mul", "cat",
    "chunk", "split", "slice", "half", "shuffle", "pool", "view", "flatten", "mean", "gate",
    "channels last", "scale", "centre",
]  # fmt: skip
FLAT_STEPS = [
    "linear", "norm", "activation", "add", "mul", "cat", "chunk", "split", "slice", "half",
    "unflatten", "scale", "centre",
]  # fmt: skip


@st.composite
def programs(draw: st.DrawFn) -> Program:  # noqa: PLR0915
    """A random network for images `[batch, 3, 8, 8]`."""
    program = Program()
    values = [torch.randn(2, 3, 8, 8)]
    width = st.integers(1, 6)

    def drawn(source: int) -> Step | None:  # noqa: PLR0915
        """A step that reads a value, or `None` if the one drawn does not suit it."""
        x = values[source]
        n, is_image = x.shape[1], x.ndim == 4
        operator = draw(st.sampled_from(IMAGE_STEPS if is_image else FLAT_STEPS))
        alike = [i for i, v in enumerate(values) if v.shape == x.shape]
        module: nn.Module
        match operator:
            case "linear":
                module = nn.Linear(n, draw(width))
            case "conv":
                module = nn.Conv2d(n, draw(width), 3, stride=draw(st.integers(1, 2)), padding=1)
            case "grouped" | "transposed":
                groups = draw(divisors(n))
                n_out = groups * draw(st.integers(1, 3))
                if operator == "grouped":
                    module = nn.Conv2d(n, n_out, 1, groups=groups, bias=False)
                elif x.shape[-1] > 4:
                    return None
                else:
                    module = nn.ConvTranspose2d(n, n_out, 2, stride=2, groups=groups)
            case "depthwise":
                module = nn.Conv2d(n, n * draw(st.integers(1, 2)), 3, padding=1, groups=n)
            case "norm" if is_image:
                norms = [nn.BatchNorm2d(n), nn.GroupNorm(draw(divisors(n)), n)]
                norms += [nn.InstanceNorm2d(n, affine=True)] if x.shape[-1] > 1 else []
                module = draw(st.sampled_from(norms))
            case "norm":
                module = draw(st.sampled_from([nn.BatchNorm1d(n), nn.LayerNorm(n)]))
            case "activation":
                makers = [nn.ReLU, nn.Tanh, nn.GELU, nn.PReLU, lambda: nn.PReLU(n), nn.Dropout]
                module = draw(st.sampled_from(makers))()
            case "add" | "mul":
                return operator, (source, draw(st.sampled_from(alike))), None
            case "cat":
                alike = [i for i, v in enumerate(values) if v.shape[2:] == x.shape[2:]]
                others = draw(st.lists(st.sampled_from(alike), min_size=1, max_size=2))
                return operator, (source, *others), None
            case "chunk" | "shuffle" if n > 1:
                return operator, (source,), draw(divisors(n))
            case "split" | "slice" if n > 1:
                cut = draw(st.integers(1, n - 1))
                if operator == "split":
                    return operator, (source,), [cut, n - cut]
                return operator, (source,), draw(st.sampled_from([(None, cut), (cut, None)]))
            case "half" if n > 1:
                return operator, (source,), None
            case "pool" if x.shape[-1] > 1:
                return operator, (source,), draw(st.booleans())
            case "view":
                return operator, (source,), x[0].numel()
            case "flatten":
                return operator, (source,), draw(st.booleans())
            case "unflatten" if n % 4 == 0:
                return operator, (source,), n // 4
            case "mean" | "centre":
                return operator, (source,), None
            case "scale":
                program.tensors.append(nn.Parameter(torch.ones(n, *[1] * (x.ndim - 2))))
                return operator, (source,), len(program.tensors) - 1
            case "gate":
                middle = draw(width)
                layers = nn.Conv2d(n, middle, 1), nn.Conv2d(middle, n, 1)
                return operator, (source,), tuple(map(program.layer, layers))
            case "channels last":
                return operator, (source,), program.layer(nn.LayerNorm(n))
            case _:
                return None
        return "layer", (source,), program.layer(module)

    for _ in range(draw(st.integers(4, 14))):
        # Mostly the newest value, so that networks get deep.
        newest = len(values) - 1
        source = draw(st.one_of(st.just(newest), st.integers(max(0, newest - 4), newest)))
        if (step := drawn(source)) is not None:
            program.steps.append(step)
            with torch.no_grad():
                values += program.run(step, values)
    used = {i for _, sources, _ in program.steps for i in sources}
    ends = [v for i, v in enumerate(values) if i not in used]
    program.heads.extend(nn.Linear(v[0].numel(), 2) for v in ends)
    return program


def made_as_if_trained(model: nn.Module) -> None:
    """Gives all parameters and statistics random values, as training would."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, BatchNorm.modules):
            nn.init.normal_(module.running_mean, std=0.3)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 1.5)  # type: ignore[arg-type]
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)


def attributes(module: Any) -> tuple[int, int]:
    """The widths that a layer says it has, and that its weight has."""
    match module:
        case nn.Linear():
            assert module.weight.shape == (module.out_features, module.in_features)
            return module.in_features, module.out_features
        case nn.Conv2d():
            n_in = module.in_channels // module.groups
            assert module.weight.shape[:2] == (module.out_channels, n_in)
            return module.in_channels, module.out_channels
        case nn.ConvTranspose2d():
            n_out = module.out_channels // module.groups
            assert module.weight.shape[:2] == (module.in_channels, n_out)
            return module.in_channels, module.out_channels
        case nn.LayerNorm():
            return (module.normalized_shape[0],) * 2
        case nn.GroupNorm():
            return (module.num_channels,) * 2
        case nn.PReLU():
            return (module.num_parameters,) * 2
    return (module.num_features,) * 2


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(program=programs(), data=st.data())
def test_random_networks_under_random_plans(program: Program, data: st.DataObject) -> None:
    made_as_if_trained(program)
    program.double().eval()
    x = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    before = program(x)

    channels = find_channels(program, x)
    names = [n.name for n, m in layer_nodes(channels.traced) if isinstance(m, scalable_modules())]
    names += [group.name for group in channels.free if group.name not in names]
    widening = data.draw(st.booleans())
    multipliers = st.sampled_from([1.5, 2, 3] if widening else [0.3, 0.5, 1, 1.5, 2])
    pass_config: dict[str, Any] = {"by": "name", "default": {"config": {"name": None}}}
    for name in data.draw(st.lists(st.sampled_from(names), unique=True)):
        side = data.draw(st.sampled_from(["output_only", "input_only", "both"]))
        request = {"name": side, "channel_multiplier": data.draw(multipliers)}
        pass_config[name] = {"config": request}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SkippedRequest)
        new, info = channel_multiplier_transform_pass(
            program, pass_config, example_input=x, weights="keep"
        )

    after = new(x)
    # A plan costs what its network does, although nothing is built for it.
    options = {"convention": data.draw(st.sampled_from(CONVENTIONS)), "batch_size": 3}
    old = program if options["convention"] == "reference" else None
    built = total_cost(new, shapes_from=old, example_input=x, **options)  # type: ignore[arg-type]
    assert cost_of(channels, info.plan, **options) == built  # type: ignore[arg-type]

    if widening and not info.inexact:
        torch.testing.assert_close(after, before, rtol=1e-9, atol=1e-9 * before.abs().max().item())
    assert after.shape == before.shape
    new.train()(x).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in new.parameters())
    traced = trace(new, x)
    for name, row in info.layers.items():
        module = new.get_submodule(
            str(next(n for n in traced.graph.nodes if n.name == name).target)
        )
        if any(hasattr(module, key) for key in ("weight", "num_features")) and not (
            isinstance(module, nn.PReLU) and module.num_parameters == 1
        ):
            assert attributes(module) == (row["new_in"], row["new_out"]), name
    ShapeProp(traced).propagate(x)
    shapes = output_shapes(new, x)
    for node in traced.graph.nodes:
        if node.name in shapes:
            assert node.meta["tensor_meta"].shape[1:] == shapes[node.name], node.name


class Dealt(nn.Module):
    """Features of two layers, or of one layer twice, become an image."""

    def __init__(self, widths: list[int], order: list[int]):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(5, width) for width in widths)
        self.order, self.n_channels = order, sum(widths[i] for i in order) // 4
        self.conv = nn.Conv2d(self.n_channels, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = [layer(x) for layer in self.layers]
        y = torch.cat([features[i] for i in self.order], 1)
        return self.conv(y.view(-1, self.n_channels, 2, 2)).mean((2, 3))


@pytest.mark.parametrize(
    ("widths", "order", "scaled"), [([2, 6], [0, 1], [2, 6]), ([8], [0, 0], [16])]
)
def test_features_that_share_a_channel_of_an_image_stay(
    widths: list[int], order: list[int], scaled: list[int]
) -> None:
    model, x = Dealt(widths, order).double(), torch.randn(3, 5, dtype=torch.float64)
    request = {"name": "output_only", "channel_multiplier": 2}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SkippedRequest)
        new, _ = channel_multiplier_transform_pass(
            model,
            {"by": "type", "default": {"config": request}},
            example_input=x,
            weights="keep",
        )
    assert [m.out_features for m in new.modules() if isinstance(m, nn.Linear)] == scaled
    torch.testing.assert_close(new(x), model(x), rtol=1e-9, atol=1e-9)
