from labkit.transform.channels import *
from labkit.transform.channels import Channels, find_channels, channel_groups
from labkit.transform.plan import *
from labkit.transform.plan import Plan, apply, initialise, resolve, Weights
from labkit.transform.models import get_model
from labkit.transform.cost import total_cost
def cost_of(channels, plan=None, **o):
    import copy
    m = channels.traced
    n = apply(m, plan, channels=channels)
    return total_cost(n, example_input=channels.example_input, **o)
