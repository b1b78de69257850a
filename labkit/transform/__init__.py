"""From a configuration to a plan of widths, and from a plan to a network and its cost."""
