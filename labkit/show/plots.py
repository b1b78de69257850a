"""All figures, each a pure function of results. None raises on the results of an honest search."""

from labkit.show.curves import hypervolume, training_curves
from labkit.show.fronts import pareto_front, widths_along_front
from labkit.show.importance import width_importance
from labkit.show.layers import layer_costs, network_drawing
from labkit.show.style import conditions, save_image

__all__ = [
    "conditions",
    "hypervolume",
    "layer_costs",
    "network_drawing",
    "pareto_front",
    "save_image",
    "training_curves",
    "width_importance",
    "widths_along_front",
]
