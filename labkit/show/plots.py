"""All figures, each a pure function of results. None raises on the results of an honest search."""

from labkit.show.curves import hypervolume as hypervolume
from labkit.show.curves import training_curves as training_curves
from labkit.show.fronts import pareto_front as pareto_front
from labkit.show.fronts import widths_along_front as widths_along_front
from labkit.show.importance import width_importance as width_importance
from labkit.show.layers import layer_costs as layer_costs
from labkit.show.layers import network_drawing as network_drawing
from labkit.show.style import conditions as conditions
from labkit.show.style import save_image as save_image
