"""What labkit knows of each kind of operator: one class a kind, one module a family."""

import labkit.runtime  # noqa: F401 — first, since it loads torch
from labkit.operators import attention as attention
from labkit.operators import elementwise as elementwise
from labkit.operators import functional as functional
from labkit.operators import joining as joining
from labkit.operators import normalisation as normalisation
from labkit.operators import pooling as pooling
from labkit.operators import products as products
from labkit.operators import recurrent as recurrent
from labkit.operators import shaping as shaping
from labkit.operators.base import Call as Call
from labkit.operators.base import Layer as Layer
from labkit.operators.base import Operator as Operator
from labkit.operators.base import operator_of as operator_of
from labkit.operators.base import register_operator as register_operator
from labkit.operators.base import scalable_modules as scalable_modules
from labkit.operators.building import NotStackable as NotStackable
from labkit.operators.layout import width as width
from labkit.operators.stacking import Stack as Stack
from labkit.operators.weights import EACH as EACH
from labkit.operators.weights import IN as IN
from labkit.operators.weights import OUT as OUT
