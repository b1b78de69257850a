"""Training a network, alone or many at once."""

from labkit.training.loop import Trained as Trained
from labkit.training.loop import check_fit as check_fit
from labkit.training.loop import train as train
from labkit.training.losses import LOSSES as LOSSES
from labkit.training.metrics import MAIN_METRIC as MAIN_METRIC
from labkit.training.metrics import METRICS as METRICS
from labkit.training.metrics import Metric as Metric
from labkit.training.metrics import Metrics as Metrics
from labkit.training.metrics import direction_of as direction_of
from labkit.training.metrics import evaluate as evaluate
from labkit.training.metrics import main_of as main_of
from labkit.training.metrics import own_functions as own_functions
from labkit.training.metrics import selected as selected
from labkit.training.settings import TrainSettings as TrainSettings
from labkit.training.stack import fit_stack as fit_stack
from labkit.training.stack import stack_width as stack_width
from labkit.training.stack import step_seconds as step_seconds
from labkit.training.stack import train_stack as train_stack
