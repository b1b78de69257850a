"""Tables and a report of a network, layer by layer."""

from collections import Counter
from typing import Any

import pandas as pd
from torch import nn

from labkit.table import Table
from labkit.transform import Channels, Plan, Resolution, cost_of, find_channels, total_cost
from labkit.transform.graph import layer_nodes, trace
from labkit.transform.plan import widths_of

COMPARED = ("in", "out", "parameters", "flops")


def layer_table(
    network: nn.Module | Channels,
    plan: Plan | Resolution | None = None,
    *,
    shapes_from: nn.Module | None = None,
    **cost_options: Any,
) -> pd.DataFrame:
    """Returns one row a layer, and a total.

    Args:
        network: A network, or its channels, found before: then nothing is traced.
        plan: The widths to show it with; by default its own. Nothing is built.
        shapes_from: As `labkit.total_cost` takes it.
        **cost_options: As `labkit.cost_of` takes them; by default one sample, forward.

    Returns:
        A table indexed by fx name with the columns type, in, out (channels; missing where a layer
        has none), group (of the channels that it puts out; see `find_channels`), parameters,
        flops, bitops, and share (of all FLOPs, 0 to 1): missing where labkit does not know them.

    Example:
        >>> channels = find_channels(model)
        >>> layer_table(channels, resolve(channels, pass_config))
    """
    channels = find_channels(network, cost_options.pop("example_input", None))
    if shapes_from is None:
        cost = cost_of(channels, plan, **cost_options)
    else:
        cost_options |= {"shapes_from": shapes_from, "example_input": channels.example_input}
        cost = total_cost(channels.traced, **cost_options)
    widths = widths_of(channels, plan)
    rows = []
    for layer in cost.layers:
        before, after = channels.inputs.get(layer.name), channels.outputs.get(layer.name)
        rows.append(
            {
                "type": layer.type,
                "in": None if before is None else before.width_in(widths),
                "out": None if after is None else after.width_in(widths),
                "group": "" if after is None else ", ".join(g.name for g in after.groups),
                "parameters": layer.parameters,
                "flops": layer.flops if layer.known else None,
                "bitops": layer.bitops if layer.known else None,
                "share": layer.flops / max(cost.total_flops, 1) if layer.known else None,
            }
        )
    sums = {"parameters": cost.parameters, "flops": cost.total_flops, "bitops": cost.total_bitops}
    rows.append({"type": "", "group": "", "share": 1.0, **sums})
    names = pd.Index([*(layer.name for layer in cost.layers), "total"], name="layer")
    return Table(rows, index=names).astype({"in": "Int64", "out": "Int64"})


def compare(
    before: nn.Module | Channels, after: nn.Module | Plan | Resolution | None, **cost_options: Any
) -> pd.DataFrame:
    """Returns two networks' layer tables side by side, with the ratio of their FLOPs.

    Args:
        before: A network, or its channels, found before.
        after: Its new widths, for which nothing is built, or `None` for its own; or the same
            network with other widths.
        **cost_options: As `labkit.cost_of` takes them; under `reference` the shapes of both come
            from `before`.

    Returns:
        A table indexed by fx name whose columns are pairs (`in`, `out`, `parameters`, `flops`) ×
        (`before`, `after`), and `flops` `ratio`. Its `attrs` name the `convention`.

    Example:
        >>> compare(channels, resolve(channels, pass_config))
    """
    channels = find_channels(before, cost_options.get("example_input"))
    convention = cost_options.get("convention", "inference")
    if isinstance(after, nn.Module):
        shapes_from = channels.traced if convention == "reference" else None
        table = layer_table(after, shapes_from=shapes_from, **cost_options)
    else:
        table = layer_table(channels, after, **cost_options)
    tables = {"before": layer_table(channels, **cost_options), "after": table}
    joined = pd.concat(tables, axis=1).swaplevel(axis=1)
    joined["flops", "ratio"] = joined["flops", "after"] / joined["flops", "before"]
    order = [(c, when) for c in COMPARED for when in tables]
    compared = joined[[*order, ("flops", "ratio")]]
    compared.attrs["convention"] = convention
    return compared


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
