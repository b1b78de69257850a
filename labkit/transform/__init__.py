"""From a configuration to a plan of widths, and from a plan to a network and its cost."""

from labkit.transform.applying import TransformInfo as TransformInfo
from labkit.transform.applying import Weights as Weights
from labkit.transform.applying import apply as apply
from labkit.transform.applying import (
    channel_multiplier_transform_pass as channel_multiplier_transform_pass,
)
from labkit.transform.applying import initialise as initialise
from labkit.transform.applying import (
    linear_multiplier_transform_pass as linear_multiplier_transform_pass,
)
from labkit.transform.channels import channel_groups as channel_groups
from labkit.transform.channels import find_channels as find_channels
from labkit.transform.cost import CONVENTIONS as CONVENTIONS
from labkit.transform.cost import Cost as Cost
from labkit.transform.cost import LayerCost as LayerCost
from labkit.transform.cost import cost_of as cost_of
from labkit.transform.cost import output_shapes as output_shapes
from labkit.transform.cost import total_cost as total_cost
from labkit.transform.graph import layer_nodes as layer_nodes
from labkit.transform.graph import trace as trace
from labkit.transform.groups import ChannelGroup as ChannelGroup
from labkit.transform.groups import Channels as Channels
from labkit.transform.groups import Side as Side
from labkit.transform.models import MODELS as MODELS
from labkit.transform.models import get_model as get_model
from labkit.transform.plan import Plan as Plan
from labkit.transform.plan import Resolution as Resolution
from labkit.transform.plan import SkippedRequest as SkippedRequest
from labkit.transform.plan import resolution_of as resolution_of
from labkit.transform.plan import resolve as resolve
