"""What people look at: tables, figures, panels, pages.

Here is what needs neither plotly nor Jupyter. Figures are in `labkit.show.plots`, panels in
`labkit.show.explorer`, `labkit.show.panels` and `labkit.show.search_panel`, the dashboard in
`labkit.show.serving`.
"""

from labkit.show.tables import compare as compare
from labkit.show.tables import layer_table as layer_table
from labkit.show.tables import report_graph_analysis_pass as report_graph_analysis_pass
from labkit.table import html_table as html_table
