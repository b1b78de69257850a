"""Training a network, alone or many at once."""

from labkit.training.loop import Trained as Trained
from labkit.training.loop import check_fit as check_fit
from labkit.training.loop import train as train
from labkit.training.metrics import Metrics as Metrics
from labkit.training.metrics import evaluate as evaluate
from labkit.training.settings import TrainSettings as TrainSettings
from labkit.training.stack import fit_stack as fit_stack
from labkit.training.stack import stack_width as stack_width
from labkit.training.stack import step_seconds as step_seconds
from labkit.training.stack import train_stack as train_stack
