"""What an operator is to labkit.

A kind of operator is a class that answers five questions: whose channels its layer has (`sides`),
what the axes of its output are made of (`flow`), what becomes of its parameters under other widths
(`carry`), what it costs (`flops`), and what it is in a stack of candidates (`stacked`).
"""

from __future__ import annotations

import copy
import math
import types
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch
from torch import nn
from torch.fx import Node

from labkit.errors import LabkitError
from labkit.operators import layout as lay
from labkit.operators.building import StackBuilder, Stacked
from labkit.operators.layout import Layout
from labkit.operators.nodes import Path, argument, describe, module_of
from labkit.operators.weights import IN, OUT, Axis, carried, in_place_of, resized, set_width

# What a tensor's axes are made of; of several tensors, a tuple of these.
Axes = list[Layout]
Modules = tuple[type[nn.Module], ...]
Functions = tuple[Callable[..., Any] | str, ...]
Shape = Sequence[int]


class Sum(NamedTuple):
    """A sum over channels; see `Call.sum`."""

    axis: Layout
    operands: Sequence[tuple[Node, int]]
    by_root: bool


@dataclass(frozen=True)
class Call:
    """One call of an operator, whose `flow` is asked for.

    Attributes:
        node: The call.
        module: The layer that it calls, or `None` for a function or method.
        inputs: The axes of each tensor that it reads, each tensor once.
        sides: The layer's own input and output channels, as `Operator.sides` gave them. Calls of
            one layer share them.
        axes: Those of every tensor of the network so far.
        mixing: What `mix` has collected.
        sums: What `sum` has collected.
        literals: What `literal` has collected.
        batches: What `batch` has collected.
        heads: Which axes of what it returns are known to be heads, by their indices: a number in
            the code, which may change.
    """

    node: Node
    module: nn.Module | None
    inputs: list[Any]
    sides: tuple[Layout, Layout] | None
    axes: Mapping[Node, Any]
    mixing: list[tuple[Layout, bool]] = field(default_factory=list)
    sums: list[Sum] = field(default_factory=list)
    literals: list[tuple[Path, Layout | list[Layout]]] = field(default_factory=list)
    batches: list[Layout] = field(default_factory=list)
    heads: Collection[int] = ()

    @property
    def x(self) -> Any:
        """The axes of the first tensor that it reads."""
        return self.inputs[0]

    @property
    def shape(self) -> Any:
        """The shape of what it returns, for two rows; a tuple of shapes for several tensors."""
        return self.node.meta["shape"]

    def argument(self, index: int, name: str, default: Any = None) -> Any:
        """Returns an argument of a function, or of a method, which counts its tensor as one."""
        return argument(self.node, index, name, default)

    def mix(self, axis: Layout, *, averages: bool = False) -> None:
        """Says that it computes something over channels, and not of each alone.

        Args:
            axis: The channels.
            averages: Whether channels copied equally often leave what it computes as it is.
        """
        self.mixing.append((axis, averages))

    def sum(self, axis: Layout, operands: Sequence[tuple[Node, int]], *, by_root: bool) -> None:
        """Says that it sums products of two tensors over channels.

        Args:
            axis: The channels.
            operands: The tensors, and which of their axes that is.
            by_root: Whether it divides by the root of their number.
        """
        self.sums.append(Sum(axis, operands, by_root))

    def batch(self, axis: Layout) -> None:
        """Says that it does the same for each entry of an axis, as an attention for its heads."""
        self.batches.append(axis)

    def literal(self, path: Path, value: Layout | list[Layout]) -> None:
        """Says that a size among its arguments follows a width.

        Args:
            path: Where it stands, e.g. `("args", 1)`.
            value: The axis that it is the size of; several for a list of sizes.
        """
        self.literals.append((path, value))


class Operator:
    """One kind of operator; every question has a safe default.

    Attributes:
        modules: The classes of layers that it is for; classes that inherit from them and keep their
            `forward` are, too, and so is a call of `super().forward`.
        functions: The functions, and the names of tensors' methods, that it is for.
        leaf: Whether its layers are one node of a traced graph also where a class of one's own
            inherits from them.
        scalable: Whether a configuration can scale its layers.
        matrix_product: Whether its backward pass computes two products, one for its input and one
            for its weights; it then costs twice its forward pass.
        tensors: Parameter or buffer → what its first axes are: `OUT`, one for each output channel;
            `IN`, one for each input channel, and summed over; `EACH`, one for each input channel,
            each used by itself; `None`, something else.
        attributes: Attribute of a layer → `IN` or `OUT`, the width that it has as a number.
        heads: Attribute that is the number of equal blocks, such as heads, that its output channels
            lie in, where that can change; it is set before `carry` is called.
        flops_each: What it costs for each element that it puts out, where that is a constant.
    """

    modules: ClassVar[Modules] = ()
    functions: ClassVar[Functions] = ()
    leaf: ClassVar[bool] = True
    scalable: ClassVar[bool] = False
    matrix_product: ClassVar[bool] = False
    tensors: ClassVar[Mapping[str, tuple[Axis | None, ...]]] = {}
    attributes: ClassVar[Mapping[str, Axis]] = {}
    heads: ClassVar[str | None] = None
    flops_each: ClassVar[int | None] = None

    @property
    def writes(self) -> bool:
        """Whether a layer's output channels are its own, and do not just follow its input."""
        return self.scalable

    def variant(self, module: nn.Module) -> Operator:
        """Returns the operator of a layer whose options make it another one."""
        return self

    def sides(self, module: Any) -> tuple[Layout, Layout] | None:
        """Returns a layer's own input and output channels, or `None` if it has none of its own."""
        return None

    def flow(self, call: Call) -> Any:
        """Returns what the axes of the output are made of: a list of layouts.

        Channels that must agree are joined (`layout.join`), those that cannot change are fixed
        (`layout.fix`).

        Returns:
            For several tensors a tuple of such lists; `None` where this is not known: all channels
            that the call meets then keep their widths, and messages name it.
        """
        return None

    def groups(self, module: Any) -> int:
        """Returns how many blocks a layer's weight is made of, each for a share of the channels."""
        return 1

    def carry(
        self, module: Any, inputs: torch.Tensor, outputs: torch.Tensor, noise: float = 0.0
    ) -> None:
        """Gives a layer other widths with the weights that it has; in place.

        Args:
            module: The layer.
            inputs: int `[new input channels]`, which of the old ones each copies.
            outputs: The same of its output.
            noise: Added to the weights that write a copied channel, so that training can tell it
                from its original: a share of their standard deviation.
        """
        for name, axes in self.tensors.items():
            tensor = getattr(module, name, None)
            if tensor is None:
                continue
            is_weight = isinstance(tensor, nn.Parameter) and tensor.ndim > 1
            new = carried(
                tensor.detach(), axes, inputs.to(tensor.device), outputs.to(tensor.device),
                groups=self.groups(module), noise=noise if is_weight else 0.0,
            )  # fmt: skip
            setattr(module, name, in_place_of(tensor, new))
        for name, axis in self.attributes.items():
            set_width(module, name, len(outputs if axis is OUT else inputs))

    def n_parameters(self, module: nn.Module, n_in: int, n_out: int) -> int:
        """Returns how many parameters a layer has with other widths."""
        if type(self).carry is not Operator.carry:
            empty: Any = {id(p): in_place_of(p, p.detach().to("meta")) for p in module.parameters()}
            module = copy.deepcopy(module, empty)
            inputs, outputs = (torch.zeros(n, dtype=torch.long) for n in (n_in, n_out))
            self.carry(module, inputs, outputs)
            return sum(parameter.numel() for parameter in module.parameters())
        groups = self.groups(module)
        return sum(
            math.prod(resized(parameter.shape, self.tensors.get(name, ()), n_in, n_out, groups))
            for name, parameter in module.named_parameters()
        )

    def norms(self, module: Any) -> torch.Tensor:
        """Returns `[output channels]`, the squared norm of all weights that write each."""
        total = torch.zeros(())
        for name, axes in self.tensors.items():
            tensor = getattr(module, name, None)
            if isinstance(tensor, nn.Parameter) and tensor.ndim > 1 and OUT in axes:
                blocks = tensor.detach().float().cpu().square().chunk(self.groups(module))
                dim = axes.index(OUT)
                total = total + torch.cat([b.movedim(dim, 0).flatten(1).sum(1) for b in blocks])
        return total

    def flops(self, node: Node, module: Any, read: Sequence[Shape], written: Shape) -> int | None:
        """Returns the FLOPs of one forward pass, a multiply-accumulate counted as 1.

        It must depend on nothing but shapes and options of the layer: under a plan it is asked with
        the layer as it was, and the shapes of the plan.

        Args:
            node: The call.
            module: The layer that it calls, or `None` for a function or method.
            read: The shape of each tensor that it reads.
            written: The shape of what it returns.

        Returns:
            By default `flops_each` for each element; `None` where this is not known: it then counts
            as 0, and `Cost.unknown` names it.
        """
        return None if self.flops_each is None else self.flops_each * math.prod(written)

    def example(self, module: Any, *args: Any, **kwargs: Any) -> Any:
        """Returns what a layer makes of tensors of which only the shapes matter."""
        return module(*args, **kwargs)

    def stacked(self, stack: StackBuilder, node: Node) -> Stacked | None:
        """Builds the operator's form in a stack, with a leading candidate axis.

        Args:
            stack: What is being built; see `labkit.operators.building`.
            node: The call.

        Returns:
            `None` where there is none: the network then trains alone.

        Raises:
            NotStackable: The same, with a reason.
        """
        return None


class Layer(Operator):
    """An operator whose layers have channels of their own, on one axis of what they read.

    Attributes:
        fixes_space: Whether what is behind that axis must not be channels.
    """

    fixes_space: ClassVar[bool] = True

    def axis(self, module: Any, ndim: int) -> int:
        """Returns on which axis of its input a layer has its channels: by default the last one."""
        return ndim - 1

    def sides(self, module: Any) -> tuple[Layout, Layout] | None:
        """Returns the widths that `attributes` names; with one alone, it is that of both sides."""
        groups = self.groups(module)  # a width stays a multiple of their number
        axes = {
            axis: lay.width(getattr(module, name) // groups) * groups
            for name, axis in self.attributes.items()
        }
        return (axes.get(IN, axes[OUT]), axes[OUT]) if OUT in axes else None

    def flow(self, call: Call) -> Any:
        """Joins that axis with the layer's input channels, and makes it the output channels."""
        if call.sides is None or len(call.inputs) != 1 or not isinstance(call.x, list):
            return None
        x, (before, after) = call.x, call.sides
        axis = self.axis(call.module, len(x))
        lay.join(x[axis], before)
        for space in x[axis + 1 :] if self.fixes_space else ():
            lay.fix(space, f"it is space to {describe(call.node)}")
        return [
            after if i == axis else kept if lay.size(kept) == size else lay.plain(size)
            for i, (kept, size) in enumerate(zip(x, call.shape))
        ]


_modules: dict[type[nn.Module], Operator] = {}
_functions: dict[Callable[..., Any] | str, Operator] = {}
Kind = TypeVar("Kind", bound=type[Operator])


def register_operator(kind: Kind) -> Kind:
    """Makes an operator known: tracing, channels, weights, cost and stacks ask it from now on.

    Its layers become single nodes of a traced graph, and so do its functions where they are global
    names of the module whose code calls them.

    Example:
        >>> @register_operator
        ... class Scaling(Operator):
        ...     functions = (scale,)
        ...     flops_each = 1
        ...     def flow(self, call):
        ...         return call.x

    Args:
        kind: A subclass of `Operator`; it takes over what another one was registered for.

    Returns:
        The same class.

    Raises:
        LabkitError: It is no such class, or is for nothing.
    """
    if not (isinstance(kind, type) and issubclass(kind, Operator)):
        raise LabkitError(f"register_operator: expected a subclass of Operator, got {kind!r}")
    if not (kind.modules or kind.functions):
        raise LabkitError(f"{kind.__name__}: expected modules or functions that it is for")
    operator = kind()
    _modules.update(dict.fromkeys(kind.modules, operator))
    _functions.update(dict.fromkeys(kind.functions, operator))
    return kind


def operator_of(called: Node | nn.Module | Callable[..., Any] | str) -> Operator | None:
    """Returns the operator of a call in a graph, a layer, a function, or a method by its name.

    `None` is that of which labkit knows nothing.
    """
    if isinstance(called, Node):
        if called.op not in ("call_module", "call_function", "call_method"):
            return None
        called = module_of(called) or called.target
    if not isinstance(called, nn.Module):
        return _functions.get(called)
    kind = kind_of(called)
    if kind is None or type(called).forward is not kind.forward or "forward" in vars(called):
        return None
    return _modules[kind].variant(called)


def inherited(module: nn.Module) -> Operator:
    """Returns the operator of the class that a module inherits from, whatever its own code does."""
    kind = _known_class(module)
    return Operator() if kind is None else _modules[kind]


def _known_class(module: nn.Module) -> type[nn.Module] | None:
    return next((kind for kind in type(module).__mro__ if kind in _modules), None)


def kind_of(module: nn.Module) -> type[nn.Module] | None:
    """Returns the known class that a layer is of, or inherits all from but its `forward`."""
    kind = _known_class(module)
    for name in ("__call__", "_conv_forward"):
        if getattr(type(module), name, None) is not getattr(kind, name, None):
            return None
    return kind


def scalable_modules() -> Modules:
    """Returns the classes of layers that a configuration can scale."""
    return tuple(kind for kind, operator in _modules.items() if operator.scalable)


def leaf_functions() -> tuple[Callable[..., Any], ...]:
    """Returns the functions, other than PyTorch's, that are one node of a traced graph each."""
    return tuple(
        function
        for function in _functions
        if isinstance(function, types.FunctionType) and not function.__module__.startswith("torch")
    )
