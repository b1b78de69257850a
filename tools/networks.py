"""Print which well-known networks labkit and Torch-Pruning widen and shrink, as a Markdown table.

    pip install pytorchcv torch-pruning
    python tools/networks.py [NAME …]

Each network comes from pytorchcv, with random weights, and its BatchNorms get random statistics.
Every free channel group is widened by 1.5 with kept weights, which is exact if the outputs agree in
float64, or halved by each tool. Each cell is measured in a process of its own with a time limit,
since Torch-Pruning hangs on some. The reference is no column: it knows only chains of linear
layers, so it can do none of these.
"""

import argparse
import importlib
import multiprocessing
import warnings
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection

import torch
from torch import nn

from labkit.operators.normalisation import BatchNorm
from labkit.transform.applying import TransformInfo, channel_multiplier_transform_pass

# Network → the module of pytorchcv that has it.
NETWORKS = {
    "bn_vgg11": "vgg", "resnet18": "resnet", "preresnet18": "preresnet", "seresnet18": "seresnet",
    "resnext29_32x4d_cifar10": "resnext_cifar", "densenet121": "densenet", "dpn68": "dpn",
    "inceptionv3": "inceptionv3", "xception": "xception", "squeezenet_v1_1": "squeezenet",
    "mobilenet_w1": "mobilenet", "mobilenetv2_w1": "mobilenetv2",
    "mobilenetv3_small_w1": "mobilenetv3", "shufflenet_g3_w1": "shufflenet",
    "shufflenetv2_w1": "shufflenetv2", "efficientnet_b0": "efficientnet", "regnetx002": "regnet",
    "dla34": "dla", "nasnet_4a1056": "nasnet", "hrnet_w18_small_v1": "hrnet",
    "unet_cityscapes": "unet",
}  # fmt: skip
EXACT = 1e-9  # relative difference of outputs in float64


def network(name: str) -> nn.Module:
    """Returns a network with random statistics, in float64 and evaluation mode."""
    torch.manual_seed(0)
    model = getattr(importlib.import_module(f"pytorchcv.models.{NETWORKS[name]}"), name)()
    for module in model.modules():
        if isinstance(module, BatchNorm.modules):
            for tensor in (module.weight, module.running_var):
                nn.init.uniform_(tensor, 0.5, 1.5)
            for tensor in (module.bias, module.running_mean):
                nn.init.normal_(tensor, std=0.1)
    return model.double().eval()


def images(model: nn.Module) -> torch.Tensor:
    """Returns two random images of the size that a network is made for, at most 320 pixels wide."""
    height, width = (min(size, 320) for size in model.in_size)
    return torch.randn(2, 3, height, width, dtype=torch.float64)


def run(model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """Returns the outputs of a network."""
    with torch.no_grad():
        y = model(x)
    return [y] if isinstance(y, torch.Tensor) else list(y)


def labkit_scales(
    model: nn.Module, x: torch.Tensor, multiplier: float
) -> tuple[nn.Module, TransformInfo]:
    """Returns a network with all free groups scaled and weights kept."""
    request = {"name": "output_only", "channel_multiplier": multiplier}
    pass_config = {"by": "type", "default": {"config": request}}
    return channel_multiplier_transform_pass(model, pass_config, example_input=x, weights="keep")


def labkit_halves(model: nn.Module, x: torch.Tensor) -> nn.Module:
    """Returns a network with all free groups halved."""
    return labkit_scales(model, x, 0.5)[0]


def torch_pruning_halves(model: nn.Module, x: torch.Tensor) -> nn.Module:
    """Halves all layers but those that write the classes, with Torch-Pruning; in place."""
    import torch_pruning

    classifiers = [
        module
        for module in model.modules()
        if model.num_classes
        in (getattr(module, "out_features", None), getattr(module, "out_channels", None))
    ]
    torch_pruning.pruner.MagnitudePruner(
        model,
        x,
        importance=torch_pruning.importance.MagnitudeImportance(p=2),
        pruning_ratio=0.5,
        ignored_layers=classifiers,
    ).step()
    return model


def widened(name: str) -> str:
    """Says how far labkit's wider network is from the given one."""
    model = network(name)
    x = images(model)
    new, info = labkit_scales(model, x, 1.5)
    before, after = run(model, x), run(new, x)
    difference = max(float((a - b).norm() / b.norm()) for a, b in zip(after, before))
    exact = difference < EXACT
    if exact != (not info.inexact):
        return f"WRONG: {difference:.0e}, but: {info.inexact}"
    return f"exactly: {difference:.0e}" if exact else f"runs; not exact: {info.inexact[0]}"


def halved(name: str, halve: Callable[[nn.Module, torch.Tensor], nn.Module]) -> str:
    """Says which share of the parameters is left in a network that still runs."""
    model = network(name)
    x = images(model)
    shapes, size = [y.shape for y in run(model, x)], n_parameters(model)
    new = halve(model, x)
    after = run(new, x)
    works = shapes == [y.shape for y in after] and all(y.isfinite().all() for y in after)
    return f"yes: {n_parameters(new) / size:.0%}" if works else "NO: it does not run any more"


def n_parameters(model: nn.Module) -> int:
    """Returns the number of parameters."""
    return sum(p.numel() for p in model.parameters())


COLUMNS: dict[str, Callable[[str], str]] = {
    "labkit widens × 1.5": widened,
    "labkit shrinks × 0.5": partial(halved, halve=labkit_halves),
    "Torch-Pruning shrinks × 0.5": partial(halved, halve=torch_pruning_halves),
}


def measure(name: str, column: str, answer: Connection) -> None:
    """Sends what one cell of the table says."""
    warnings.simplefilter("ignore")
    try:
        answer.send(COLUMNS[column](name))
    except Exception as error:  # whatever the tool fails with is the result
        answer.send(f"no: {type(error).__name__}: {' '.join(str(error).split())[:200]}")


def cell(name: str, column: str, time_limit: float) -> str:
    """Returns what one cell of the table says, measured in a process of its own."""
    context = multiprocessing.get_context("spawn")
    answer, sender = context.Pipe(duplex=False)
    process = context.Process(target=measure, args=(name, column, sender))
    process.start()
    sender.close()
    try:
        return answer.recv() if answer.poll(time_limit) else f"no: hangs for {time_limit:g} s"
    except EOFError:
        return "no: the process died"
    finally:
        process.kill()
        process.join()


def main() -> None:
    """Prints the table row by row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="of networks; by default all")
    parser.add_argument("--time-limit", type=float, default=300, help="seconds a cell")
    arguments = parser.parse_args()
    unknown = set(arguments.names) - NETWORKS.keys()
    if unknown:
        parser.error(f"no such networks: {', '.join(sorted(unknown))}")
    print(f"| network | {' | '.join(COLUMNS)} |")
    print("|:--" * (len(COLUMNS) + 1) + "|")
    for name in arguments.names or NETWORKS:
        cells = [cell(name, column, arguments.time_limit) for column in COLUMNS]
        print(f"| {' | '.join([name, *cells])} |", flush=True)


if __name__ == "__main__":
    main()
