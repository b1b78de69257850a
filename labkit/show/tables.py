"""What a network looks like: its graph, its layers and what each costs, before and after."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pandas as pd
from torch import nn

from labkit.transform.channels import find_channels
from labkit.transform.cost import total_cost
from labkit.transform.graph import layer_nodes, trace
from labkit.transform.groups import ChannelGroup

# Lines that show on a light page and on a dark one; colours are the page's.
TABLE_STYLE = """<style>
.labkit table {border-collapse: collapse}
.labkit :is(th, td) {padding: 0.2em 0.8em; text-align: right; border: none}
.labkit tr :is(th, td) {border-bottom: 1px solid rgba(128, 128, 128, 0.3)}
.labkit thead tr th {text-align: right}
.labkit tbody th {text-align: left}
</style>"""


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


def layer_table(model: nn.Module, **cost_options: Any) -> pd.DataFrame:
    """Returns one row a layer, and a total.

    Args:
        model: The network.
        **cost_options: As `labkit.total_cost` takes them; by default one sample, forward.

    Returns:
        A table indexed by fx name with the columns type, in, out (channels; missing where a layer
        has none), group (of the channels that it puts out; see `find_channels`), parameters,
        flops, bitops, and share (of all FLOPs, 0 to 1).
    """
    cost = total_cost(model, **cost_options)
    channels = find_channels(model, cost_options.get("example_input"))

    def groups_of(layer: str) -> tuple[ChannelGroup, ...]:
        side = channels.outputs.get(layer)
        return side.groups if side is not None else ()

    rows = {
        layer.name: {
            "type": layer.type,
            "in": getattr(channels.inputs.get(layer.name), "width", None),
            "out": getattr(channels.outputs.get(layer.name), "width", None),
            "group": ", ".join(group.name for group in groups_of(layer.name)),
            "parameters": layer.parameters,
            "flops": layer.flops,
            "bitops": layer.bitops,
            "share": layer.flops / max(cost.total_flops, 1),
        }
        for layer in cost.layers
    }
    rows["total"] = {
        "type": "",
        "group": "",
        "parameters": cost.parameters,
        "flops": cost.total_flops,
        "bitops": cost.total_bitops,
        "share": 1.0,
    }
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("layer")
    return table.astype({"in": "Int64", "out": "Int64"})


def compare(before: nn.Module, after: nn.Module, **cost_options: Any) -> pd.DataFrame:
    """Returns two networks' layer tables side by side, with the ratio of their FLOPs.

    Args:
        before: A network.
        after: The same network with other widths.
        **cost_options: As `labkit.total_cost` takes them; under `reference` the shapes of
            both come from `before`.

    Returns:
        A table indexed by fx name whose columns are pairs (`in`, `out`, `parameters`, `flops`) ×
        (`before`, `after`), and `flops` `ratio`. Its `attrs` name the `convention`.
    """
    if cost_options.get("convention") == "reference":
        cost_options.setdefault("shapes_from", before)
    columns = ["in", "out", "parameters", "flops"]
    tables = {
        when: layer_table(model, **cost_options)[columns]
        for when, model in (("before", before), ("after", after))
    }
    joined = pd.concat(tables, axis=1).swaplevel(axis=1)
    joined["flops", "ratio"] = joined["flops", "after"] / joined["flops", "before"]
    order = [(c, when) for c in columns for when in ("before", "after")] + [("flops", "ratio")]
    compared = joined[order]
    compared.attrs["convention"] = cost_options.get("convention", "inference")
    return compared


def html_table(table: pd.DataFrame) -> str:
    """Returns a table for a page or a panel: whole numbers as such, others with four digits."""
    # The name of the index goes into the corner: on its own it would take a line.
    corner = [table.index.name, *[None] * (table.columns.nlevels - 1)]
    table = table.set_axis(table.columns.set_names(corner), axis=1).rename_axis(index=None)
    html = table.apply(_as_text).to_html(border=0)
    return f'{TABLE_STYLE}<div class="labkit" style="overflow-x: auto">{html}</div>'


def _as_text(column: pd.Series) -> pd.Series:
    if not pd.api.types.is_numeric_dtype(column):
        return column.astype(object).fillna("")
    digits = 0 if (column.dropna() % 1 == 0).all() else 4
    shown = ["" if pd.isna(value) else f"{value:,.{digits}f}" for value in column]
    return pd.Series(shown, column.index, dtype=object)
