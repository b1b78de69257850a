"""What each operator does to channels: its output's shape where the widths before it double."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from labkit.transform import Channels, Plan, apply, find_channels

X = torch.zeros(2, 3, 5, 4)
Function = Callable[..., Any]


class Around(nn.Module):
    """A convolution of 4 channels, something, and a linear layer that reads all that comes out."""

    def __init__(self, what: Function, n_out: int):
        super().__init__()
        self.stem, self.what, self.head = nn.Conv2d(3, 4, 1), what, nn.Linear(n_out, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.flatten(self.what(self.stem(x)), 1))


class First(nn.Module):
    """The first of several tensors that a layer returns."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)[0]


def around(what: Function) -> tuple[nn.Module, Channels]:
    with torch.no_grad():
        n_out = torch.flatten(what(torch.zeros(2, 4, 5, 4)), 1).shape[1]
    model = Around(what, n_out)
    return model, find_channels(model, X)


@pytest.mark.parametrize(
    ("what", "shape"),
    [
        (nn.ReLU(), (8, 5, 4)),
        (nn.Dropout2d(), (8, 5, 4)),
        (lambda x: x + 1, (8, 5, 4)),
        (lambda x: x.clamp(min=0) / 2, (8, 5, 4)),
        # Operands of fewer axes are aligned at the last one, whichever comes first.
        (lambda x: x + x.amax((0, 2, 3))[:, None, None], (8, 5, 4)),
        (lambda x: x.amax((0, 2, 3)).unsqueeze(-1).unsqueeze(-1) * x, (8, 5, 4)),
        (lambda x: x.permute(0, 2, 3, 1) + x.amax((0, 2, 3)), (5, 4, 8)),
        (lambda x: x.amax((0, 1, 2)) - x, (8, 5, 4)),
        (lambda x: x.amax(2, keepdim=True) * x[:, :, :2], (8, 2, 4)),  # broadcast over space
        (nn.Softmax(1), (8, 5, 4)),
        (lambda x: F.log_softmax(x, dim=2), (8, 5, 4)),
        (nn.MaxPool2d(2), (8, 2, 2)),
        (nn.AdaptiveAvgPool2d((1, 3)), (8, 1, 3)),
        (lambda x: F.max_pool1d(x.flatten(2), 4), (8, 5)),
        (lambda x: F.max_pool3d(x.unsqueeze(-1), (2, 2, 1)), (8, 2, 2, 1)),
        (lambda x: F.avg_pool3d(x.unsqueeze(2), (1, 5, 2)), (8, 1, 1, 2)),
        (lambda x: F.avg_pool2d(x, 3, 1), (8, 3, 2)),
        (nn.ZeroPad2d((1, 0, 0, 2)), (8, 7, 5)),
        (nn.Upsample(scale_factor=3), (8, 15, 12)),
        (lambda x: F.interpolate(x, scale_factor=2), (8, 10, 8)),
        (lambda x: F.pad(x, (1, 2)), (8, 5, 7)),
        (lambda x: F.pad(x, (0, -1, -1, 0)), (8, 4, 3)),
        (lambda x: F.pad(x, (0, 0, 0, 0, 1, 2)), (11, 5, 4)),  # zeros beside the channels
        (nn.Flatten(), (160,)),
        (nn.Flatten(2), (8, 20)),
        (lambda x: x.flatten(1, 2), (40, 4)),
        (lambda x: x.view(2, 4, 20), (8, 20)),
        (lambda x: x.view((2, 4, 20)), (8, 20)),
        (lambda x: torch.reshape(x, shape=(2, 4, -1)), (8, 20)),
        (lambda x: x.reshape(x.size(0), 2, 2, 20), (2, 4, 20)),  # the first that can
        (lambda x: x.reshape(x.size(0), 2, x.size(1) // 2, 20), (2, 4, 20)),  # as the code says
        (lambda x: x.reshape(x.size(0), -1, 2, 20), (4, 2, 20)),
        (lambda x: x.transpose(1, 3), (4, 5, 8)),
        (lambda x: torch.permute(x, (0, 2, 3, 1)), (5, 4, 8)),
        (lambda x: x.permute(0, 2, -1, 1), (5, 4, 8)),
        (lambda x: x.unsqueeze(1), (1, 8, 5, 4)),
        (lambda x: x.unsqueeze(-1), (8, 5, 4, 1)),
        (lambda x: x.unsqueeze(dim=-2), (8, 5, 1, 4)),
        (lambda x: x.mean(2, keepdim=True).squeeze(2), (8, 4)),
        (lambda x: x.mean(3, True).squeeze(), (8, 5)),
        (lambda x: x.mean((2, 3), keepdim=True).expand(2, 4, 6, 7), (8, 6, 7)),
        (lambda x: x.mean((2, 3), keepdim=True).expand(-1, -1, 6, 7), (8, 6, 7)),
        (lambda x: x.mean((2, 3), True).expand_as(x), (8, 5, 4)),
        (lambda x: x.mean((2, 3)), (8,)),
        (lambda x: x.sum(-1), (8, 5)),
        (lambda x: torch.norm(x, 2, (2, 3)), (8,)),
        (lambda x: torch.linalg.vector_norm(x, dim=1, keepdim=True), (1, 5, 4)),
        (lambda x: torch.sum(x, 1), (5, 4)),
        (lambda x: torch.amax(x, 1, keepdim=True), (1, 5, 4)),
        (lambda x: torch.cat([x, x], 1), (16, 5, 4)),
        (lambda x: torch.cat(x.chunk(2, 1), 1), (8, 5, 4)),
        (lambda x: torch.cat([x, x], -1), (8, 5, 8)),
        (lambda x: x.chunk(2, 1)[0], (4, 5, 4)),
        (lambda x: torch.chunk(x, 2, dim=2)[1], (8, 2, 4)),
        (lambda x: x.split([2, 3], dim=2)[1], (8, 3, 4)),
        (lambda x: x.split(2, dim=1)[0], (4, 5, 4)),
        (lambda x: torch.split(x, split_size_or_sections=2, dim=1)[1], (4, 5, 4)),
        (lambda x: x.split(split_size=2, dim=1)[1], (4, 5, 4)),
        (lambda x: x.split(split_size=[1, 3], dim=1)[1], (6, 5, 4)),
        (lambda x: x.transpose(0, 1).chunk(2)[1].transpose(0, 1), (4, 5, 4)),
        (lambda x: x.transpose(0, 1).split([3, 1])[0].transpose(0, 1), (6, 5, 4)),
        (lambda x: torch.cat((x.split([1, 3], 1)[1], x), 1), (14, 5, 4)),
        (lambda x: x.chunk(4, -3)[3], (2, 5, 4)),
        (lambda x: x.flatten(1).chunk(2, 1)[1], (80,)),  # two channels of 20, each of them twice
        (lambda x: x.flatten(1).split([20, 60], 1)[1], (120,)),
        (lambda x: x.split([1, 0, 3], -3)[2], (6, 5, 4)),
        (lambda x: x[:, 1:3], (4, 5, 4)),
        (lambda x: x.transpose(0, 1)[1:3].transpose(0, 1), (4, 5, 4)),
        (lambda x: x[:, -1:], (2, 5, 4)),
        (lambda x: x[:, :-1:1], (6, 5, 4)),
        (lambda x: x[:][:, 3:], (2, 5, 4)),
        (lambda x: x.flatten(1)[:, 20:], (120,)),
        (lambda x: x[..., 1:, :], (8, 4, 4)),
        (lambda x: x[..., :2, :, :], (4, 5, 4)),
        (lambda x: x.permute(0, 2, 3, 1)[:, ..., 1:3], (5, 4, 4)),
        (lambda x: x[:, :, torch.tensor([0, 3, 3])], (8, 3, 4)),
        (lambda x: torch.stack(list(x.permute(2, 0, 1, 3)), 2), (8, 5, 4)),
        (lambda x: x + torch.outer(torch.arange(5.0), torch.ones(4)), (8, 5, 4)),
        (lambda x: x[:, None, ..., 2], (1, 8, 5)),
        (lambda x: x[:, :, 1], (8, 4)),
        (lambda x: x[:, :, 1:3, None], (8, 2, 1, 4)),
        (lambda x: x[..., 0], (8, 5)),
        (lambda x: x[:, : x.size(1) // 2], (4, 5, 4)),
        (lambda x: x.transpose(2, 3) @ x, (8, 4, 4)),
        (lambda x: torch.matmul(x.flatten(2), x.flatten(2).mT), (8, 8)),
        (lambda x: x.flatten(2).transpose(1, 2).bmm(x.flatten(2)), (20, 20)),
        (lambda x: x.permute(0, 2, 3, 1) @ x.mean((0, 2, 3)), (5, 4)),
        (lambda x: x.mean((0, 2, 3)) @ x.transpose(1, 2), (5, 4)),
        (lambda x: torch.einsum("bchw,bdhw->bcd", x, x), (8, 8)),
        (lambda x: torch.einsum("b c h w, b c v w -> b h v c", [x, x]), (5, 5, 8)),
        (lambda x: torch.einsum("...hw,...wk->...hk", x, x.transpose(2, 3)), (8, 5, 5)),
        (lambda x: F.scaled_dot_product_attention(x, x, x), (8, 5, 4)),
        (lambda x: F.scaled_dot_product_attention(x.mT, x.mT[:, :, :1], x.mT[:, :, :1]), (8, 4, 5)),
        (lambda x: torch.stack([x, 2 * x], 1), (2, 8, 5, 4)),
        (lambda x: torch.stack(x.unbind(3), -1), (8, 5, 4)),
        (lambda x: torch.concatenate([x, x], 1), (16, 5, 4)),
        (lambda x: torch.cat([torch.tensor([]), x], 2), (8, 5, 4)),
        (lambda x: torch.where(x > 0, x, -x), (8, 5, 4)),
        (lambda x: x.where(x > 0, -x), (8, 5, 4)),
        (lambda x: torch.addcmul(x, x, x), (8, 5, 4)),
        (F.normalize, (8, 5, 4)),
        (lambda x: torch.roll(x, (1, 2), dims=(2, 3)), (8, 5, 4)),
        (lambda x: x.flip(2), (8, 5, 4)),
        (lambda x: x.index_select(2, torch.tensor([0, 2, 2])), (8, 3, 4)),
        (lambda x: x.repeat(1, 3, 1, 2), (24, 5, 8)),
        (lambda x: x.flatten(1).unflatten(1, (4, 20)), (8, 20)),
        (lambda x: x.flatten(1).unflatten(1, (-1, 4, 5)), (8, 4, 5)),
        (nn.Unflatten(2, (5, 1)), (8, 5, 1, 4)),
        (nn.Unflatten(1, (-1, 2)), (4, 2, 5, 4)),
        (nn.PixelShuffle(2), (2, 10, 8)),
        (lambda x: F.pixel_unshuffle(x[:, :, :4], 2), (32, 2, 2)),
        (lambda x: x.repeat_interleave(3, 1), (24, 5, 4)),
        (lambda x: torch.repeat_interleave(x, 2, dim=-1), (8, 5, 8)),
        (lambda x: x.max(2)[0], (8, 4)),
        (lambda x: torch.min(x, dim=-1, keepdim=True)[1].float(), (8, 5, 1)),
        (lambda x: torch.max(x, -x), (8, 5, 4)),
        (lambda x: x.swapaxes(1, 2), (5, 8, 4)),
        (lambda x: x.flatten(2).reshape_as(x), (8, 5, 4)),
        (lambda x: x.mean((0, 2, 3)).expand(2, 5, -1), (5, 8)),
        (lambda x: x.mean((0, 2, 3)).expand(2, 5, 4), (5, 8)),
        (lambda x: x * torch.arange(4.0)[None].gather(1, torch.tensor([[0, 1, 1, 3]])), (8, 5, 4)),
        (lambda x: x.to(torch.float64).type_as(x), (8, 5, 4)),
        (nn.Softmax2d(), (8, 5, 4)),
        (nn.GLU(1), (4, 5, 4)),
        (lambda x: F.glu(x, 2 - 3), (8, 5, 2)),
        (nn.RMSNorm(4), (8, 5, 4)),
        (nn.ChannelShuffle(2), (8, 5, 4)),
        (nn.GroupNorm(2, 4), (8, 5, 4)),
        (nn.Conv2d(4, 8, 3, groups=4), (16, 3, 2)),  # depthwise, two for each
        (nn.ConvTranspose2d(4, 4, 2, 2, groups=4), (8, 10, 8)),
    ],
)
def test_the_shape_follows_the_width(what: Function, shape: tuple[int, ...]) -> None:
    model, channels = around(what)
    widths = {group.name: 2 * group.width for group in channels.free}
    assert widths
    read = channels.traced.graph.find_nodes(op="call_function", target=torch.flatten)[-1].args[0]
    got = [a if isinstance(a, int) else a.width_in(widths) for a in channels.shapes[read.name]]
    assert tuple(got) == (2, *shape)
    # The network that is built has just these shapes.
    new = apply(model, Plan(tuple(widths.items())), channels=channels)
    traced = find_channels(new, X).traced
    node = traced.graph.find_nodes(op="call_function", target=torch.flatten)[-1].args[0]
    assert node.meta["shape"] == (2, *shape)


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        (lambda x: x.view(-1, 4), "'view'"),  # channels in the rows
        (lambda x: x.view(-1).view(2, 4, 20), "'view'"),
        (lambda x: x + x.mean(), "'mean'"),
        (lambda x: x[:, [0, 2]], "'getitem'"),
        (lambda x: x[:, torch.tensor([0, 2])], "'getitem'"),
        (lambda x: x[torch.tensor([0, 1]), :, torch.tensor([0, 2])], "'getitem'"),
        (lambda x: x[:, ::2], "'getitem'"),
        (lambda x: x[:, 1], "'getitem'"),
        (lambda x: x.chunk(3, 1)[0], "'chunk'"),
        (lambda x: x.flatten(1).chunk(7, 1)[0], "'chunk'"),  # 12 each, but 8 at last
        (lambda x: x[:, 1:4:2], "'getitem'"),
        (lambda x: x[:, 0 : x.size(0)], "'getitem'"),
        (lambda x: F.max_pool3d(x.unsqueeze(1), 1), "'max_pool3d'"),
        (lambda x: F.pad(x, (0, 0, 0, 0, -1, 0)), "'pad'"),
        (lambda x: F.max_pool2d(x.transpose(1, 3), 2), "'max_pool2d'"),
        (lambda x: x.transpose(1, 2).expand(2, 5, 4, 4).unfold(1, 2, 2), "'unfold'"),
        (lambda x: x.roll(1, 1), "'roll'"),
        (lambda x: torch.flip(x, (1, 2)), "'flip'"),
        (lambda x: x.index_select(1, torch.tensor([0, 2])), "'index_select'"),
        (lambda x: x.unbind(1)[0], "'unbind'"),
        (lambda x: x.gather(3, (x > 0).to(torch.long)), "'gather'"),
        (lambda x: x.max(1)[0], "(max)"),
        (lambda x: x.flatten(0, 1).repeat_interleave(2)[None], "'flatten'"),
        (lambda x: torch.einsum("bijk,bijk,bijk->bi", x, x, x), "'einsum'"),
        (lambda x: torch.einsum("bcii->bci", x[..., :4, :]), "'einsum'"),
        (nn.Unflatten(1, (2, 2)), "Unflatten"),
        (nn.LayerNorm((5, 4)), "LayerNorm"),
    ],
)
def test_what_cannot_follow_keeps_its_width_and_is_named(what: Function, reason: str) -> None:
    fixed = [group for group in around(what)[1].groups if group.name == "stem"]
    assert fixed[0].unknown
    assert reason in str(fixed[0].fixed)


PARTS: dict[str, Function] = {
    "chunk": lambda x: x.chunk(2, 1)[1],
    "chunk and all": lambda x: torch.cat([x.chunk(2, 1)[1], x], 1),
    "chunk of blocks": lambda x: x.flatten(1).chunk(2, 1)[1],
    "split": lambda x: x.split([1, 3], 1)[1],
    "split of blocks": lambda x: x.flatten(1).split([20, 60], 1)[1],
    "split by size": lambda x: x.split(3, 1)[1],
    "slice": lambda x: x[:, 1:3],
    "slice from the end": lambda x: x[:, -1:],
    "slice of blocks": lambda x: x.flatten(1)[:, 20:],
    "slice of space": lambda x: x[:, :, 1:3, -1],
    "bias": lambda x: x.permute(0, 2, 3, 1) * x.amax((0, 2, 3)),
    "shuffle": nn.ChannelShuffle(2),
    "transpose": lambda x: x.transpose(1, 3),
    "blocks": lambda x: x.permute(0, 2, 1, 3).flatten(2),
}


@pytest.mark.parametrize("name", PARTS)
def test_a_part_is_that_of_the_same_channels(name: str) -> None:
    """Each group of its own width, of copies of its channels: the logits are what they were."""
    model, channels = around(PARTS[name])
    model.eval()
    plan = Plan(tuple((group.name, (i + 2) * group.width) for i, group in enumerate(channels.free)))
    wider = apply(model, plan, channels=channels, weights="keep").eval()
    x = torch.randn(2, *X.shape[1:], generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(wider(x), model(x))


def test_operands_of_fewer_axes_share_the_width() -> None:
    class Biased(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 4, 1), nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            bias = self.b(x.mean((2, 3))).amax(0)  # [channels]
            image = bias.unsqueeze(-1).unsqueeze(-1) + self.a(x)
            return self.c(image.transpose(1, 3) - bias)

    channels = find_channels(Biased(), X)
    (group,) = channels.free
    for side in (channels.outputs["a"], channels.outputs["b"], channels.inputs["c"]):
        assert side.width_in({group.name: 7}) == 7


def test_what_is_broadcast_over_channels_keeps_its_width() -> None:
    class Gate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.gate, self.b = nn.Linear(3, 4), nn.Linear(3, 1), nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(self.a(x) * self.gate(x))

    channels = find_channels(Gate(), torch.zeros(1, 3))
    assert [group.name for group in channels.free] == ["a"]
    gate = next(group for group in channels.groups if group.name == "gate")
    assert gate.fixed == "it is broadcast over channels in 'mul' (_operator.mul)"


def test_a_layer_with_a_tensor_of_its_own_keeps_its_widths() -> None:
    class Masked(nn.Linear):
        def __init__(self) -> None:
            super().__init__(4, 3)
            self.register_buffer("mask", torch.ones(3, 4))

    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), Masked(), nn.Linear(3, 2))
    reasons = {group.name: group.fixed for group in find_channels(model).groups}
    assert reasons["_0"] == reasons["_2"] == "labkit does not know what 'mask' of '_2' follows"


def test_a_layer_whose_forward_calls_the_known_one_is_that_in_its_graph() -> None:
    class Two(nn.Linear):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return super().forward(x + y)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.two, self.c = (
                nn.Linear(3, 4), nn.Linear(3, 4), Two(4, 5), nn.Linear(5, 2),
            )  # fmt: skip

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.c(self.two(self.a(x), self.b(x)))

    groups = {group.name: group for group in find_channels(Net(), torch.zeros(1, 3)).free}
    assert groups["a"].writers == ("a", "b")
    assert groups["a"].readers == ("two",)
    assert groups["two"].width == 5


def test_a_literal_is_where_it_stands() -> None:
    _, channels = around(lambda x: x.view(2, 4, 20)[:, 1:3])
    found = {(lit.node, lit.path): lit.value for lit in channels.literals}
    assert set(found) == {
        ("view", ("args", 2)),
        ("getitem", ("args", 1, 1, "start")),
        ("getitem", ("args", 1, 1, "stop")),
    }
    widths = {group.name: 3 * group.width for group in channels.free}
    values = [side.width_in(widths) for side in found.values()]  # type: ignore[union-attr]
    assert values == [12, 3, 9]


def test_the_sizes_of_a_split_follow_the_widths() -> None:
    def what(x: torch.Tensor) -> torch.Tensor:
        one, three = x.split([1, 3], 1)
        return torch.cat([three, one], 1)[:, :3]

    _, channels = around(what)
    widths = {group.name: (i + 2) * group.width for i, group in enumerate(channels.free)}
    found = {(lit.node, lit.path): lit.value for lit in channels.literals}
    sizes = found["split", ("args", 1)]
    assert isinstance(sizes, tuple)
    assert [size.width_in(widths) for size in sizes] == list(widths.values())
    stop = next(value for (node, _), value in found.items() if node.startswith("getitem"))
    assert stop.width_in(widths) == widths[channels.free[1].name]  # type: ignore[union-attr]
