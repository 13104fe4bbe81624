"""What the cells of ``notebooks/dashboard.ipynb`` call, one function a cell."""

from nsm.dashboard.machine import HOME as HOME
from nsm.dashboard.machine import environment as environment
from nsm.dashboard.machine import gpu as gpu
from nsm.dashboard.plan import configure as configure
from nsm.dashboard.results import checkpoints as checkpoints
from nsm.dashboard.results import compare as compare
from nsm.dashboard.results import evaluate as evaluate
from nsm.dashboard.results import export as export
from nsm.dashboard.results import load as load
from nsm.dashboard.results import tensorboard as tensorboard
from nsm.dashboard.training import sweep as sweep
from nsm.dashboard.training import train as train
from nsm.dashboard.views import data as data
from nsm.dashboard.views import model as model
