"""The pass: plans against an independent calculation, and errors before anything is built."""

import copy
import itertools
import math
import warnings
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.fx import symbolic_trace

from labkit.errors import LabkitError
from labkit.transform.applying import (
    apply,
    channel_multiplier_transform_pass,
    initialise,
    linear_multiplier_transform_pass,
)
from labkit.transform.channels import find_channels
from labkit.transform.models import MODELS, get_model
from labkit.transform.plan import Plan, SkippedRequest, resolve
from tests.conftest import EXAMPLES

NOTHING = {"config": {"name": None}}


def request(name: str | None, channels: float | None = None, **multipliers: Any) -> dict[str, Any]:
    given = {f"{side}_multiplier": value for side, value in multipliers.items()}
    if channels is not None:
        given["channel_multiplier"] = channels
    return {"config": {"name": name, **given}}


def by_name(default: Any = NOTHING, **layers: Any) -> dict[str, Any]:
    return {"by": "name", "default": default, **layers}


def linear_widths(model: nn.Module) -> list[tuple[int, int]]:
    return [(m.in_features, m.out_features) for m in model.modules() if isinstance(m, nn.Linear)]


REPORT_FIRST = by_name(
    seq_blocks_2=request("output_only", 2),
    seq_blocks_4=request("both", 2),
    seq_blocks_6=request("input_only", 2),
)
REPORT_ASYMMETRIC = by_name(
    seq_blocks_2=request("output_only", 2),
    seq_blocks_4=request("both", input=2, output=4),
    seq_blocks_6=request("input_only", 4),
)


@pytest.mark.parametrize(
    ("pass_config", "widths"),
    [
        (REPORT_FIRST, [(16, 32), (32, 32), (32, 5)]),
        (REPORT_ASYMMETRIC, [(16, 32), (32, 64), (64, 5)]),
    ],
)
def test_the_reports_configurations_give_its_networks(
    pass_config: dict[str, Any], widths: list[tuple[int, int]]
) -> None:
    model = get_model("jsc-three-linear-layers")
    new, info = linear_multiplier_transform_pass(model, pass_config)
    assert linear_widths(new) == widths
    assert new(torch.randn(3, 16)).shape == (3, 5)
    assert type(new) is type(model)
    assert info.skipped == ()


def test_info_tells_widths_and_the_deciding_request() -> None:
    model = get_model("jsc-toy")
    _, info = linear_multiplier_transform_pass(
        model, by_name(seq_blocks_2=request("output_only", 2), seq_blocks_5=request("both", 4))
    )
    batch_norm = info.layers["seq_blocks_3"]
    assert (batch_norm["in"], batch_norm["new_in"], batch_norm["new_out"]) == (8, 32, 32)
    assert batch_norm["in_decided_by"] == "seq_blocks_5 input × 4"
    assert info.layers["seq_blocks_8"]["out_decided_by"] is None
    assert list(info.to_frame().index)[:2] == ["seq_blocks_0", "seq_blocks_1"]


@st.composite
def chains(draw: st.DrawFn) -> tuple[nn.Module, list[int], dict[str, Any]]:
    """A random chain, the widths between its linear layers, and a random configuration."""
    widths = draw(st.lists(st.integers(1, 12), min_size=2, max_size=6))
    layers: list[nn.Module] = []
    names = []

    def followers(width: int) -> None:
        makers: list[Callable[[], nn.Module]] = [
            lambda: nn.BatchNorm1d(width),
            lambda: nn.LayerNorm(width),
            lambda: nn.PReLU(width),
            nn.PReLU,
            nn.ReLU,
            nn.Tanh,
            nn.Dropout,
        ]
        layers.extend(make() for make in draw(st.lists(st.sampled_from(makers), max_size=3)))

    followers(widths[0])
    for before, after in itertools.pairwise(widths):
        names.append(str(len(layers)))
        layers.append(nn.Linear(before, after, bias=draw(st.booleans())))
        followers(after)

    multiplier = st.one_of(
        st.integers(1, 4), st.sampled_from([0.5, 0.3, 1.1, 2.5]), st.floats(0.01, 4)
    )
    asked = st.builds(
        request,
        st.sampled_from([None, "NA", "output_only", "input_only", "both"]),
        multiplier,
        input=multiplier,
        output=multiplier,
    )
    pass_config: dict[str, Any]
    if draw(st.booleans()):
        chosen = draw(st.lists(st.sampled_from(names), unique=True))
        # As users do: by fx name for some layers, by path for the others.
        keys = {n: f"_{n}" if draw(st.booleans()) else n for n in chosen}
        pass_config = by_name(draw(asked), **{keys[n]: draw(asked) for n in chosen})
    else:
        pass_config = {"by": "type", "default": draw(asked)}
        if draw(st.booleans()):
            pass_config["linear"] = draw(asked)
    return nn.Sequential(*layers), widths, pass_config


def expected_widths(names: list[str], widths: list[int], pass_config: dict[str, Any]) -> list[int]:
    """The report's rule on a chain, worked out on the list of widths alone."""
    new = list(widths)
    for i, name in enumerate(names):
        named = pass_config.get(name, pass_config.get(f"_{name}"))
        config = (named or pass_config.get("linear") or pass_config["default"])["config"]
        writes = {"input_only": [(i, "input")], "output_only": [(i + 1, "output")]}
        writes["both"] = writes["input_only"] + writes["output_only"]
        for position, side in writes.get(config["name"], []):
            if 0 < position < len(widths) - 1:
                exact = Fraction(str(float(config[f"{side}_multiplier"])))
                new[position] = math.ceil(widths[position] * exact)
    return new


@settings(max_examples=150, deadline=None)
@given(chains())
def test_random_chains_get_the_widths_of_an_independent_calculation(
    case: tuple[nn.Module, list[int], dict[str, Any]],
) -> None:
    model, widths, pass_config = case
    state = copy.deepcopy(model.state_dict())
    given_config = copy.deepcopy(pass_config)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SkippedRequest)
        new, info = linear_multiplier_transform_pass(model, pass_config)

    names = [name for name, m in model.named_modules() if isinstance(m, nn.Linear)]
    expected = expected_widths(names, widths, pass_config)
    assert linear_widths(new) == list(itertools.pairwise(expected))
    output = new(torch.randn(4, widths[0]))
    assert output.shape == (4, widths[-1])
    output.sum().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in new.parameters())

    assert pass_config == given_config
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    assert linear_widths(model) == list(itertools.pairwise(widths))
    # The plan is the network's name: resolving again gives an equal one, with an equal hash.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SkippedRequest)
        again = resolve(model, pass_config)
    assert again == info.resolution
    assert hash(again.plan) == hash(info.plan)
    assert [width for _, width in info.plan.widths] == expected[1:-1]


def test_different_configurations_of_one_network_resolve_to_equal_plans() -> None:
    model = get_model("jsc-toy")
    a = resolve(model, by_name(seq_blocks_2=request("output_only", 4)))
    b = resolve(
        model,
        by_name(seq_blocks_2=request("output_only", 2), seq_blocks_5=request("input_only", 4)),
    )
    assert a.plan == b.plan
    assert a.decided_by != b.decided_by


def test_products_are_exact_decimals() -> None:
    model = nn.Sequential(nn.Linear(4, 100), nn.ReLU(), nn.Linear(100, 2))
    assert math.ceil(100 * 1.1) == 111  # what binary arithmetic would give
    assert resolve(model, by_name(_0=request("output_only", 1.1))).plan.to_dict() == {"_0": 110}


@pytest.mark.parametrize("name", MODELS)
def test_named_networks_follow_a_plan_by_type(name: str) -> None:
    model, x = get_model(name), EXAMPLES[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SkippedRequest)
        new, _ = linear_multiplier_transform_pass(
            model,
            {"by": "type", "default": NOTHING, "linear": request("output_only", 2)},
            example_input=x,
        )
    old_widths, new_widths = linear_widths(model), linear_widths(new)
    assert [out for _, out in new_widths[:-1]] == [2 * out for _, out in old_widths[:-1]]
    assert new(x.expand(4, *x.shape[1:])).shape == (4, old_widths[-1][1])


def test_a_graph_module_is_taken_too() -> None:
    traced = symbolic_trace(get_model("jsc-toy"))
    new, _ = linear_multiplier_transform_pass(
        traced, by_name(seq_blocks_2=request("output_only", 2))
    )
    assert linear_widths(new)[0] == (16, 16)
    assert new(torch.randn(4, 16)).shape == (4, 5)


def test_options_of_layers_survive() -> None:
    model = nn.Sequential(
        nn.Linear(4, 6, bias=False, dtype=torch.float64),
        nn.BatchNorm1d(6, eps=0.1, momentum=0.3, dtype=torch.float64),
        nn.Linear(6, 2, dtype=torch.float64),
    ).eval()
    model[0].weight.requires_grad_(False)
    new, _ = linear_multiplier_transform_pass(model, by_name(_0=request("output_only", 2)))
    linear, norm, _ = new
    assert linear.bias is None
    assert not linear.weight.requires_grad
    assert (norm.eps, norm.momentum, norm.running_var.dtype) == (0.1, 0.3, torch.float64)
    assert not norm.training
    assert new(torch.ones(1, 4, dtype=torch.float64)).shape == (1, 2)


@pytest.mark.parametrize(
    "asked", [request("input_only", 2), request("both", 0.5)], ids=["input", "both"]
)
def test_the_networks_input_stays_with_a_warning_or_raises(asked: dict[str, Any]) -> None:
    model = get_model("jsc-toy")
    pass_config = by_name(seq_blocks_2=asked)
    with pytest.warns(SkippedRequest, match=r"seq_blocks_2 input.*16.*network's input"):
        new, info = linear_multiplier_transform_pass(model, pass_config)
    assert linear_widths(new)[0][0] == 16
    assert len(info.skipped) == 1
    with pytest.raises(LabkitError, match=r"seq_blocks_2 input.*network's input"):
        linear_multiplier_transform_pass(model, pass_config, strict=True)


def test_the_networks_output_stays_with_a_warning() -> None:
    with pytest.warns(SkippedRequest, match="seq_blocks_8 output.*network's output"):
        resolve(get_model("jsc-toy"), by_name(seq_blocks_8=request("output_only", 2)))


def test_a_request_for_the_width_that_is_there_is_no_change() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plan = resolve(get_model("jsc-toy"), by_name(seq_blocks_8=request("both", 1))).plan
    assert plan.to_dict() == {"seq_blocks_2": 8, "seq_blocks_5": 8}


@pytest.mark.parametrize(
    ("pass_config", "message"),
    [
        ([], "expected a table"),
        ({"default": NOTHING}, "by: expected 'name' or 'type', got None"),
        ({"by": "glob", "default": NOTHING}, "by: expected .* got 'glob'"),
        ({"by": "name"}, "default: missing"),
        (by_name(seq_blocks_22=request("both", 2)), "seq_blocks_22: no such layer.*seq_blocks_2"),
        (
            by_name(seq_blocks_3=request("both", 2)),
            "seq_blocks_3: expected a layer that can be",
        ),
        (by_name(seq_blocks_2={"config": {}}), "seq_blocks_2.config: expected .*'name'"),
        (by_name(seq_blocks_2={"conf": {"name": None}}), "seq_blocks_2: expected"),
        (by_name(seq_blocks_2=request("out", 2)), "seq_blocks_2.config.name: .* got 'out'"),
        (by_name(seq_blocks_2=request(["both"], 2)), r"config.name: .* got \['both'\]"),  # type: ignore[arg-type]
        (by_name(seq_blocks_2=request("both")), "needs 'input_multiplier' or"),
        (by_name(seq_blocks_2=request("both", input=2)), "needs 'output_multiplier' or"),
        (
            by_name(seq_blocks_2={"config": {"name": "both", "chanel_multiplier": 2}}),
            "chanel_multiplier: unknown key; did you mean 'channel_multiplier'",
        ),
        *[
            (by_name(seq_blocks_2=request("output_only", value)), f"channel_multiplier: .*{text}")
            for value, text in [
                (0, "positive number, .* got 0"),
                (-2, "got -2"),
                (math.nan, "got nan"),
                (math.inf, "got inf"),
                ("2", "expected a number, got '2'"),
                (True, "expected a number, got True"),
            ]
        ],
        (by_name(seq_blocks_2=request("output_only", 1e9)), "at most 1048576"),
        (
            by_name(**{"seq_blocks_2": request("both", 2), "seq_blocks.2": request("both", 2)}),
            "named twice",
        ),
        ({"by": "type", "default": NOTHING, "conv2d": request("both", 2)}, "conv2d: no such op"),
        (
            {"by": "type", "default": NOTHING, "relu": request("both", 2)},
            "relu: only the operators lin",
        ),
    ],
)
def test_a_wrong_configuration_is_named(pass_config: Any, message: str) -> None:
    with pytest.raises(LabkitError, match=message):
        resolve(get_model("jsc-toy"), pass_config)


class Spectrum(nn.Module):
    """Has an operator between its layers whose effect on channels labkit cannot know."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.after = nn.Linear(4, 8), nn.Linear(5, 2)
        self.hidden, self.last = nn.Linear(2, 6), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.after(torch.fft.rfft(self.before(x)).real)
        return self.last(torch.relu(self.hidden(x)))


def test_an_unknown_operator_is_named_when_a_request_meets_it() -> None:
    with pytest.raises(LabkitError, match=r"before output.*fft_rfft"):
        linear_multiplier_transform_pass(Spectrum(), by_name(before=request("output_only", 2)))
    with pytest.raises(LabkitError, match=r"after input.*getattr"):
        linear_multiplier_transform_pass(Spectrum(), by_name(after=request("input_only", 2)))


def test_layers_away_from_an_unknown_operator_can_be_scaled() -> None:
    new, _ = linear_multiplier_transform_pass(Spectrum(), by_name(hidden=request("output_only", 2)))
    assert new(torch.randn(3, 4)).shape == (3, 3)


class Residual(nn.Module):
    """`stem` and `block` add up, so their outputs share a width; `gate` has one channel."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block = nn.Linear(4, 8), nn.Linear(8, 8)
        self.gate, self.head = nn.Linear(8, 1), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        x = x + torch.tanh(self.block(x))
        return self.head(x * torch.sigmoid(self.gate(x)))


def test_widths_follow_the_dataflow_through_sums() -> None:
    new, info = linear_multiplier_transform_pass(
        Residual(), by_name(block=request("output_only", 3))
    )
    assert info.plan.to_dict() == {"stem": 24}
    assert new(torch.randn(5, 4)).shape == (5, 2)
    with pytest.raises(LabkitError, match="gate output.*broadcast"):
        resolve(Residual(), by_name(gate=request("output_only", 2)), strict=True)


class Shared(nn.Module):
    """One layer called twice, and one weight in two layers."""

    def __init__(self, tied: bool):
        super().__init__()
        self.first, self.again, self.last = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 2)
        self.decoder = nn.Linear(6, 6)
        if tied:
            self.decoder.weight = self.again.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.decoder(self.again(self.again(self.first(x)))))


def test_a_module_called_twice_keeps_one_width() -> None:
    new, info = linear_multiplier_transform_pass(
        Shared(tied=False), by_name(again=request("output_only", 2))
    )
    assert info.plan.to_dict() == {"first": 12, "decoder": 6}
    assert new(torch.randn(3, 4)).shape == (3, 2)


def test_tied_weights_are_not_untied() -> None:
    with pytest.raises(LabkitError, match="again.* shares its weight"):
        resolve(Shared(tied=True), by_name(again=request("output_only", 2)))


def test_channels_name_what_fixes_them() -> None:
    fixed = {group.name: group.fixed for group in find_channels(get_model("jsc-toy")).groups}
    assert fixed == {
        "seq_blocks_0 input": "it is the network's input",
        "seq_blocks_2": None,
        "seq_blocks_5": None,
        "seq_blocks_8": "it is the network's output",
    }


def test_models_that_cannot_be_traced_are_refused() -> None:
    class Branches(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if x.sum() > 0 else -x

    for model, message in [
        (Branches(), "cannot trace Branches"),
        (nn.Sequential(nn.LazyLinear(3)), "not initialised"),
        ("jsc-toy", "expected a torch.nn.Module"),
        ([1], "expected a torch.nn.Module, got list"),
    ]:
        with pytest.raises(LabkitError, match=message):
            resolve(model, by_name())  # type: ignore[arg-type]


def test_a_plan_of_another_network_is_refused() -> None:
    plan = resolve(get_model("jsc-toy"), by_name()).plan
    with pytest.raises(LabkitError, match="another network"):
        apply(get_model("jsc-three-linear-layers"), plan)
    assert str(plan) == "seq_blocks_2: 8, seq_blocks_5: 8"


def test_the_identity_plan_changes_nothing() -> None:
    model = initialise(get_model("jsc-s"), 3).eval()
    new = apply(model, resolve(model, by_name()))
    x = torch.randn(7, 16)
    assert torch.equal(new(x), model(x))


def test_initialise_depends_on_the_seed_alone() -> None:
    model = get_model("jsc-toy")
    plan = Plan((("seq_blocks_2", 12), ("seq_blocks_5", 3)))
    model_a, model_b, model_c = (apply(model, plan) for _ in range(3))
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    a = initialise(model_a, seed=5).state_dict()
    assert torch.equal(torch.random.get_rng_state(), state)  # the global generator is left alone
    torch.manual_seed(2)
    b = initialise(model_b, seed=5).state_dict()
    c = initialise(model_c, seed=6).state_dict()
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert not torch.equal(a["seq_blocks.2.weight"], c["seq_blocks.2.weight"])


@pytest.mark.parametrize("value", [10**400, 1e300, math.inf, math.nan, 0, -1])
def test_multipliers_beyond_all_widths_are_refused(value: float) -> None:
    config = {"by": "name", "default": {"config": {"name": "both", "channel_multiplier": value}}}
    with pytest.raises(LabkitError, match=r"^default\.config\.channel_multiplier: expected"):
        resolve(get_model("jsc-toy"), config)


@pytest.mark.parametrize("name", [["both"], [["both"]], {"a": 1}, 5])
def test_a_request_is_no_list(name: Any) -> None:
    config = {"by": "name", "default": {"config": {"name": name, "channel_multiplier": 2}}}
    with pytest.raises(LabkitError, match=r"^default\.config\.name: expected one of"):
        resolve(get_model("jsc-toy"), config)
    with pytest.raises(LabkitError, match=r"^by: expected 'name' or 'type', got"):
        resolve(get_model("jsc-toy"), config | {"by": name})


@pytest.mark.parametrize("width", [2 * 10**8, 10**30, 0, -8, 2.0, "8", True, 8j])
def test_widths_that_no_layer_can_have(width: Any) -> None:
    model = get_model("jsc-toy")
    channels = find_channels(model, torch.zeros(1, 16))
    plan = Plan(tuple((group.name, width) for group in channels.free))
    with pytest.raises(LabkitError, match=r"^plan: .*: expected a positive multiple of 1, at most"):
        apply(model, plan, channels=channels)
    with pytest.raises(LabkitError, match="^plan: expected a Plan, got"):
        apply(model, width, channels=channels)


def test_a_network_that_does_not_fit_into_memory_is_not_begun() -> None:
    model = nn.Sequential(nn.Linear(2, 8), nn.Linear(8, 8), nn.Linear(8, 2))
    plan = Plan((("_0", 2**20), ("_1", 2**20)))
    with pytest.raises(LabkitError, match=r"^plan: its network takes 4,3..\.. GB; .* are free"):
        apply(model, plan, example_input=torch.zeros(1, 2))


@pytest.mark.parametrize("options", [{"seed": "a"}, {"noise": math.nan}, {"weights": ["keep"]}])
def test_options_of_apply_are_named(options: dict[str, Any]) -> None:
    model = get_model("jsc-toy")
    channels = find_channels(model, torch.zeros(1, 16))
    plan = Plan(tuple((group.name, 4) for group in channels.free))
    [key] = options
    with pytest.raises(LabkitError, match=f"^{key}: expected"):
        apply(model, plan, channels=channels, **options)


@pytest.mark.parametrize("multiplier", [0.5, 0.01])
def test_noise_where_a_width_shrinks(multiplier: float) -> None:
    model = get_model("jsc-toy")
    request = {"name": "output_only", "channel_multiplier": multiplier}
    config = {"by": "name", "default": {"config": request}}
    with warnings.catch_warnings(action="ignore"):
        kept, noisy = (
            channel_multiplier_transform_pass(
                model, config, example_input=torch.zeros(1, 16), weights="keep", noise=noise, seed=0
            )[0]
            for noise in (0.0, 0.1)
        )
    # Nothing was copied, so there is nothing to tell apart.
    for a, b in zip(kept.parameters(), noisy.parameters(), strict=True):
        assert torch.equal(a, b)


def test_noise_where_there_is_one_weight() -> None:
    model = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))
    wide = apply(model, Plan((("_0", 3),)), weights="keep", noise=0.1, seed=0)
    first, *copied = wide[0].weight.flatten().tolist()
    assert first == model[0].weight.item()
    assert 0 < abs(copied[0] - first) < abs(first)
