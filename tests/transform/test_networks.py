"""The general pass on small networks of each kind: wider, narrower, and with the weights kept."""

import copy
import re
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torch_pruning
from torch import nn
from torch.fx import GraphModule
from torch.utils.flop_counter import FlopCounterMode

from labkit.errors import LabkitError
from labkit.operators.products import Convolution, Linear, TransposedConvolution
from labkit.transform.applying import TransformInfo, apply, channel_multiplier_transform_pass
from labkit.transform.channels import channel_groups, find_channels
from labkit.transform.cost import total_cost
from labkit.transform.models import get_model
from labkit.transform.plan import SkippedRequest, resolve
from tests.networks import CASES, Inputs, network, outputs

IDENTITY = {"by": "name", "default": {"config": {"name": None}}}


class Image(nn.Module):
    """`[rows, channels · 6]` → `[rows, channels, 2, 3]`."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.view(x.size(0), -1, 2, 3)


def everywhere(multiplier: float) -> dict[str, Any]:
    request = {"config": {"name": "output_only", "channel_multiplier": multiplier}}
    return {"by": "type", "default": request}


def one(layer: str, multiplier: float) -> dict[str, Any]:
    request = {"config": {"name": "output_only", "channel_multiplier": multiplier}}
    return {**IDENTITY, layer: request}


def scaled(
    model: nn.Module, pass_config: dict[str, Any], inputs: Inputs, **options: Any
) -> tuple[nn.Module, TransformInfo]:
    with warnings.catch_warnings(action="ignore", category=SkippedRequest):  # of the output
        return channel_multiplier_transform_pass(
            model, pass_config, example_input=inputs, **options
        )


def train_a_little(model: nn.Module, inputs: Inputs, steps: int = 5) -> list[float]:
    """Trains towards fixed labels; returns the losses."""
    model.train()
    labels = torch.arange(len(inputs[0])) % 2
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(steps):
        loss = F.cross_entropy(outputs(model, inputs).flatten(1), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def in_double(name: str, batch: int = 8) -> tuple[nn.Module, Inputs]:
    model, inputs = network(name, batch)
    return model.double(), tuple(x.double() if x.is_floating_point() else x for x in inputs)


def widths(module: nn.Module) -> tuple[int, int] | None:
    """The widths that a layer itself says it has."""
    match module:
        case nn.Linear():
            return module.in_features, module.out_features
        case nn.Conv1d() | nn.Conv2d() | nn.ConvTranspose2d():
            return module.in_channels, module.out_channels
        case nn.BatchNorm1d() | nn.BatchNorm2d() | nn.InstanceNorm2d():
            return module.num_features, module.num_features
        case nn.GroupNorm():
            return module.num_channels, module.num_channels
    return None


@pytest.mark.parametrize("multiplier", [2, 1.5, 0.5])
@pytest.mark.parametrize("name", CASES)
def test_a_scaled_network_runs_and_has_the_planned_widths(name: str, multiplier: float) -> None:
    model, inputs = network(name)
    model.train()
    state = copy.deepcopy(model.state_dict())
    new, info = scaled(model, everywhere(multiplier), inputs)

    assert new.training
    y = outputs(new, inputs)
    assert y.shape == outputs(copy.deepcopy(model), inputs).shape
    y.sum().backward()
    assert all(parameter.grad is not None for parameter in new.parameters())
    assert model.training
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())

    channels = find_channels(model, inputs)
    assert channels.free
    for node in channels.traced.graph.nodes:
        if node.op == "call_module" and node.name in info.layers:
            row = info.layers[node.name]
            given, now = (m.get_submodule(str(node.target)) for m in (model, new))
            if widths(given) is not None:
                assert (row["in"], row["out"]) == widths(given)
                assert (row["new_in"], row["new_out"]) == widths(now)
    # Each group that can change has the multiple of the unit that is the next from above.
    for group in channels.free:
        expected = -(-group.width * multiplier // group.multiple) * group.multiple
        assert info.plan.to_dict()[group.name] == expected, group


@pytest.mark.parametrize("name", CASES)
def test_the_identity_changes_nothing_before_or_after_a_plan(name: str) -> None:
    model, inputs = network(name)
    same, info = scaled(model, IDENTITY, inputs, weights="keep", strict=True)
    assert torch.equal(outputs(same.eval(), inputs), outputs(model.eval(), inputs))
    assert type(same) is type(model)
    assert info.inexact == ()
    new, _ = scaled(model, everywhere(2), inputs)
    again, _ = scaled(new, IDENTITY, inputs)
    assert torch.equal(outputs(again.eval(), inputs), outputs(new.eval(), inputs))


@pytest.mark.parametrize("name", CASES)
def test_layers_with_weights_cost_what_pytorchs_counter_says(name: str) -> None:
    model, inputs = network(name)
    new, _ = scaled(model, everywhere(1.5), inputs)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        new.eval()(*inputs)
    with warnings.catch_warnings(action="ignore"):  # of operators that cost nothing here
        cost = total_cost(new, batch_size=len(inputs[0]), example_input=inputs)
    kinds = [k.__name__ for o in (Linear, Convolution, TransposedConvolution) for k in o.modules]
    assert 2 * sum(c.flops for c in cost.layers if c.type in kinds) == counter.get_total_flops()
    assert cost.parameters == sum(p.numel() for p in new.parameters())


@pytest.mark.parametrize("multiplier", [2, 1.5])
@pytest.mark.parametrize("name", CASES)
def test_a_trained_network_that_grows_computes_what_it_did(name: str, multiplier: float) -> None:
    model, inputs = in_double(name)
    train_a_little(model, inputs)
    new, info = scaled(model, everywhere(multiplier), inputs, weights="keep")
    before, after = outputs(model.eval(), inputs), outputs(new.eval(), inputs)
    assert sum(p.numel() for p in new.parameters()) > sum(p.numel() for p in model.parameters())
    if info.inexact:
        groups = [group.name for group in find_channels(model, inputs).free]
        each = {name: one(name, multiplier)[name] for name in groups}
        with pytest.raises(LabkitError, match="cannot be kept exactly"):
            scaled(model, {**IDENTITY, **each}, inputs, weights="keep", strict=True)
    else:
        torch.testing.assert_close(after, before, rtol=1e-9, atol=1e-9)
    losses = train_a_little(new, inputs, 10)
    assert losses[-1] < losses[0]


def test_few_networks_grow_inexactly_and_it_is_said_why() -> None:
    reasons = {}
    for name in CASES:
        model, inputs = network(name)
        for multiplier in (2, 1.5):
            _, info = scaled(model, everywhere(multiplier), inputs, weights="keep")
            if info.inexact:
                reasons[name, multiplier] = " ".join(info.inexact)
    assert {name for name, _ in reasons} <= {"norms", "shufflenet", "shufflenet2"}
    assert "GroupNorm) averages over channels, which are not all copied" in reasons["norms", 1.5]


def test_what_mixes_channels_that_do_not_grow_is_exact() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.Softmax(1), nn.Linear(6, 8), nn.Linear(8, 2))
    x = torch.randn(3, 4)
    _, info = scaled(model, one("_2", 2), (x,), weights="keep", strict=True)
    assert info.inexact == ()
    _, info = scaled(model, one("_0", 2), (x,), weights="keep")
    assert info.inexact == ("'_1' (Softmax) computes over channels, whose number grows",)


def test_noise_tells_copies_apart() -> None:
    model, inputs = in_double("resnet")
    train_a_little(model, inputs)
    plan = everywhere(2)
    plain, _ = scaled(model, plan, inputs, weights="keep")
    noisy, _ = scaled(model, plan, inputs, weights="keep", noise=1e-3, seed=1)
    again, _ = scaled(model, plan, inputs, weights="keep", noise=1e-3, seed=1)
    for name, weight in plain.named_parameters():
        twins = dict(noisy.named_parameters())[name]
        assert torch.equal(twins, dict(again.named_parameters())[name])
        if weight.ndim == 4:
            half = len(weight) // 2
            assert torch.equal(weight[:half], weight[half:])
            assert torch.equal(twins[:half], weight[:half])  # originals stay
            assert not torch.equal(twins[:half], twins[half:])
    difference = outputs(noisy.eval(), inputs) - outputs(plain.eval(), inputs)
    assert 0 < difference.abs().max() < 0.1


def test_a_narrower_layer_keeps_its_largest_channels() -> None:
    model = nn.Sequential(nn.Conv2d(2, 4, 1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 9, 3)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([3.0, 1.0, 4.0, 2.0])[:, None, None, None])
    x = torch.randn(5, 2, 3, 3, dtype=torch.float64)
    new, _ = scaled(model, one("_0", 0.5), (x,), weights="keep")
    kept = torch.tensor([0, 2])
    assert torch.equal(new[0].weight, model[0].weight[kept])
    features = model[1](model[0](x))[:, kept].flatten(1)
    columns = model[3].weight.view(3, 4, 9)[:, kept].flatten(1)
    torch.testing.assert_close(new(x), F.linear(features, columns, model[3].bias))


def test_a_channel_of_several_features_is_kept_by_all_of_their_weights() -> None:
    """A linear layer writes four channels of an image, each of 2 × 3 features."""
    linear, conv = nn.Linear(3, 24), nn.Conv2d(4, 2, 1)
    model = nn.Sequential(linear, Image(), conv).double()
    with torch.no_grad():  # the second is the smallest but for one of its features
        norms = torch.full((4, 6), 2.0).mul_(torch.tensor([1.5, 0.1, 2.0, 1.0])[:, None])
        norms[1, 0] = 4.5
        linear.weight.copy_(norms.flatten()[:, None])
    x = torch.randn(5, 3, dtype=torch.float64)
    new, _ = scaled(model, one("_0", 0.5), (x,), weights="keep")
    kept = torch.tensor([0, 2])
    assert torch.equal(
        new.get_submodule("0").weight.view(2, 6, 3), linear.weight.view(4, 6, 3)[kept]
    )
    images = linear(x).view(5, 4, 2, 3)[:, kept]
    torch.testing.assert_close(new(x), F.conv2d(images, conv.weight[:, kept], conv.bias))


def test_a_fresh_network_is_what_its_seed_says() -> None:
    model, inputs = network("resnet")
    a, b, c = (scaled(model, everywhere(2), inputs, seed=seed)[0] for seed in (1, 1, 2))
    states = [m.state_dict() for m in (a, b, c)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert not all(torch.equal(states[0][key], states[2][key]) for key in states[0])


def test_numbers_in_the_code_follow_and_computed_sizes_need_no_new_code() -> None:
    for name, kind in [("vgg", True), ("dpn", True), ("dpn by size", False), ("resnet", False)]:
        model, inputs = network(name)
        new, _ = scaled(model, everywhere(2), inputs)
        assert isinstance(new, GraphModule) == kind, name
        assert type(new).__name__ == ("VGG" if name == "vgg" else type(model).__name__)
        assert set(new.state_dict()) == set(model.state_dict())


def test_channels_never_fold_into_the_batch() -> None:
    class Folds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 8, 1), nn.Linear(64, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(self.conv(x).view(-1, 64))  # two rows of every image

    x = torch.randn(3, 3, 4, 4)
    with pytest.raises(LabkitError, match=r"conv output × 2.*'view' \(view\)"):
        scaled(Folds(), one("conv", 2), (x,))
    new, info = scaled(Folds(), everywhere(2), (x,))
    assert new(x).shape == (6, 5)
    assert "conv output × 2: skipped, the width stays 8" in info.skipped[0]


class Between(nn.Module):
    """Something between two linear layers."""

    def __init__(self, what: Callable[[torch.Tensor], torch.Tensor]):
        super().__init__()
        self.first, self.last, self.what = nn.Linear(4, 8), nn.Linear(8, 2), what

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.what(self.first(x)))


@pytest.mark.parametrize(
    ("what", "name"),
    [
        (lambda x: torch.einsum("bc,bc,bd->bd", x, x, x), "einsum"),
        (lambda x: torch.fft.fft(x).real, "fft"),
        (lambda x: x.cumsum(1), "cumsum"),
        (nn.RNNCell(8, 8), "RNNCell"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_labkit_does_not_know_is_fixed_and_named(
    what: Callable[[torch.Tensor], torch.Tensor], name: str
) -> None:
    model, x = Between(what), torch.randn(3, 4)
    with pytest.raises(LabkitError, match=f"first output × 2.*{name}"):
        scaled(model, one("first", 2), (x,))
    new, info = scaled(model, everywhere(2), (x,))
    assert new(x).shape == (3, 2)
    assert re.search(f"labkit does not know what .*{name}", info.skipped[0])
    assert "it is the network's output" in info.skipped[1]
    with pytest.raises(LabkitError, match=name):
        channel_multiplier_transform_pass(model, everywhere(2), example_input=x, strict=True)


def test_grouped_convolutions_round_up_and_say_so() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=4), nn.Conv2d(8, 2, 1))
    x = torch.randn(1, 3, 8, 8)
    new, info = scaled(model, one("_0", 1.1), (x,))
    assert (new[0].out_channels, new[1].groups, new[1].in_channels) == (12, 4, 12)
    assert info.resolution.decided_by["_0"] == "_0 output × 1.1, rounded up to a multiple of 4"
    plan = resolve(model, IDENTITY, example_input=x).plan
    wrong = type(plan)(tuple((name, 9) for name, _ in plan.widths))
    with pytest.raises(LabkitError, match="_0: expected a positive multiple of 4, .*got 9"):
        apply(model, wrong, example_input=x)


def test_a_mode_that_new_code_could_not_follow_is_refused() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 4, 1), nn.Linear(16, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = F.dropout(self.conv(x), training=self.training)
            return self.fc(x.view(-1, 4 * 4))

    with pytest.raises(LabkitError, match=r"'dropout' .* use nn\.Dropout"):
        scaled(Net(), one("conv", 2), (torch.randn(1, 3, 2, 2),))


def test_groups_are_a_table_for_people() -> None:
    table = channel_groups(get_model("resnet8"), torch.zeros(1, 3, 32, 32))
    assert table.loc["stem", "writers"] == "stem, stages_0_conv2"
    assert table.loc["stages_1_conv2", "readers"] == "stages_2_conv1, stages_2_shortcut_0"
    assert table["fixed"].to_dict()["head"] == "it is the network's output"
    assert (table["fixed"] == "").sum() == 6


def test_parts_of_a_split_layer_are_groups_of_their_own() -> None:
    class Split(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.a, self.b = nn.Linear(4, 6), nn.Linear(2, 3), nn.Linear(4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            a, b = self.first(x).split([2, 4], dim=1)
            return self.a(a) + self.b(b)

    x = torch.randn(3, 4, dtype=torch.float64)
    model = Split().double()
    new, info = scaled(model, one("first[2:6]", 2), (x,), weights="keep", strict=True)
    assert info.plan.to_dict() == {"first[0:2]": 2, "first[2:6]": 8}
    assert (new.first.out_features, new.a.in_features, new.b.in_features) == (10, 2, 8)
    torch.testing.assert_close(new(x), model(x), rtol=1e-12, atol=1e-12)


# Those that Torch-Pruning takes: it does not know Embedding, hangs on channel shuffles, and breaks
# networks that slice channels.
PRUNABLE = sorted(
    CASES.keys() - {"text", "shufflenet", "shufflenet2", "dpn", "dpn by size", "concrete"}
)


def by_torch_pruning(model: nn.Module, inputs: Inputs, path: str, kept: int) -> nn.Module:
    """Returns the network in which a layer puts out so many channels, and all others follow."""
    model = copy.deepcopy(model)
    graph = torch_pruning.DependencyGraph().build_dependency(model, example_inputs=inputs)
    layer = model.get_submodule(path)
    match layer:
        case nn.Linear():
            prune, n = torch_pruning.prune_linear_out_channels, layer.out_features
        case nn.ConvTranspose2d() | nn.Conv2d():
            prune, n = torch_pruning.prune_conv_out_channels, layer.out_channels
        case _:
            raise AssertionError(layer)
    graph.get_pruning_group(layer, prune, idxs=list(range(kept, n))).prune()
    return model


@pytest.mark.parametrize("name", PRUNABLE)
def test_torch_pruning_shrinks_to_the_same_widths(name: str) -> None:
    model, inputs = network(name)
    channels = find_channels(model, inputs)
    paths = {node.name: str(node.target) for node in channels.traced.graph.nodes}
    compared = 0
    for group in channels.free:
        # Parts of a layer are what it cannot shrink alone, and it halves what comes in groups.
        if group.name not in paths or group.multiple > 1 or group.width < 2:
            continue
        kept = group.width // 2
        pass_config = one(group.name, kept / group.width)
        ours, _ = scaled(model, pass_config, inputs)
        theirs = by_torch_pruning(model, inputs, paths[group.name], kept)
        try:
            theirs.eval()(*inputs)
        except RuntimeError:  # it has broken the network, as it does with GroupNorm and PReLU
            continue
        modules = dict(theirs.named_modules())
        for path, module in ours.named_modules():
            assert widths(module) == widths(modules[path]), (group.name, path)
        compared += 1
    assert compared
