# The names that `labkit` offers, and where each lives: editors and type checkers read this file,
# and so does `__init__.py`, which imports a name when it is first used.

from labkit.data import Dataset as Dataset
from labkit.data import load_data as load_data
from labkit.errors import LabkitError as LabkitError
from labkit.operators import Operator as Operator
from labkit.operators import register_operator as register_operator
from labkit.show import plots as plots
from labkit.show.explorer import LayerExplorer as LayerExplorer
from labkit.show.panels import StudyPanel as StudyPanel
from labkit.show.search_panel import SearchPanel as SearchPanel
from labkit.show.serving import dashboard as dashboard
from labkit.show.tables import compare as compare
from labkit.show.tables import layer_table as layer_table
from labkit.show.tables import report_graph_analysis_pass as report_graph_analysis_pass
from labkit.study.config import load_config as load_config
from labkit.study.networks import load_best as load_best
from labkit.study.results import Results as Results
from labkit.study.runners import register_runner as register_runner
from labkit.study.search import Search as Search
from labkit.study.search import search as search
from labkit.study.space import count as count
from labkit.study.space import register_space as register_space
from labkit.study.verification import verify as verify
from labkit.training import TrainSettings as TrainSettings
from labkit.training import evaluate as evaluate
from labkit.training import train as train
from labkit.training import train_stack as train_stack
from labkit.transform import apply as apply
from labkit.transform import channel_groups as channel_groups
from labkit.transform import channel_multiplier_transform_pass as channel_multiplier_transform_pass
from labkit.transform import cost_of as cost_of
from labkit.transform import find_channels as find_channels
from labkit.transform import get_model as get_model
from labkit.transform import linear_multiplier_transform_pass as linear_multiplier_transform_pass
from labkit.transform import resolve as resolve
from labkit.transform import total_cost as total_cost
