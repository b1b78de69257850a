from labkit.transform.applying import Weights, apply, initialise
from labkit.transform.channels import Channels, channel_groups, find_channels
from labkit.transform.cost import total_cost
from labkit.transform.models import get_model
from labkit.transform.plan import Plan, Resolution, resolve
def cost_of(channels, plan=None, **o):
    if not isinstance(channels, Channels): channels = find_channels(channels, o.pop("example_input", None))
    o.pop("example_input", None)
    m = channels.traced
    if o.get("convention") == "reference": o["shapes_from"] = m
    n = apply(m, plan, channels=channels) if plan is not None else m
    return total_cost(n, example_input=channels.example_input, **o)
