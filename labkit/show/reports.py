"""The report of the reference's analysis pass."""

from __future__ import annotations

from collections import Counter
from typing import Any

from torch import nn

from labkit.transform.graph import layer_nodes, trace


def report_graph_analysis_pass(model: nn.Module) -> tuple[nn.Module, dict[str, Any]]:
    """Prints a network's graph, the count of each kind of node, and its layers.

    Args:
        model: A network that torch.fx can trace; it is not changed.

    Returns:
        The same network, and an empty dict, as every analysis pass of the reference does.
    """
    traced = trace(model)
    kinds = ("placeholder", "get_attr", "call_function", "call_method", "call_module", "output")
    counted = Counter(node.op for node in traced.graph.nodes)
    layers = [module for _, module in layer_nodes(traced)]
    print(traced.graph)
    print("Network overview:")
    print({kind: counted[kind] for kind in kinds})
    print("Layer types:")
    print("[" + ",\n ".join(map(str, layers)) + "]")
    return model, {}
