"""Time the steps of a real training run: whole, in parts, and beside their matrix products alone."""

from typing import Any, NamedTuple

from lightning import Callback, LightningModule, Trainer
from torch_geometric.data import Batch

from benchmarks.products import Product, ProductRecorder, multiply
from benchmarks.stopwatch import Stopwatch, now, replaced
from nsm.models.hierarchy import NSM
from nsm.module import NSMModule

BATCHES = "batch making"
LAYERS = "encoder, relational layers"
WHY = "WHY, coupling"
WHAT = "WHAT, inverse coupling"
READOUT = "readout, loss"
BACKWARD = "backward"
OPTIMISER = "clip, optimiser"
METRICS = "metrics, logging"
PARTS = (BATCHES, LAYERS, WHY, WHAT, READOUT, BACKWARD, OPTIMISER, METRICS)
WARMUP = 3


class Step(NamedTuple):
    """One step as it runs, what its products take alone right after it, and the next step in parts."""

    seconds: float
    products: float
    watched: float
    parts: dict[str, float]


class StepMeter(Callback):
    """Collects :class:`Step` s in :attr:`steps` and stops the run after ``rounds`` of them.

    Steps with a full batch are timed, and not the first of an epoch, which also starts the loader. The products are
    those of one step of the warm-up; batches are large enough for the next ones to be alike.
    """

    def __init__(self, *, rounds: int, batch_size: int, device: str) -> None:
        self.rounds, self.batch_size, self.device = rounds, batch_size, device
        self.stopwatch = Stopwatch(device)
        self.recorder = ProductRecorder()
        self.steps: list[Step] = []
        self._warm = 0
        self._plain: tuple[float, float] | None = None
        self._start = 0.0

    @property
    def products(self) -> list[Product]:
        """The matrix products of one step."""
        return self.recorder.products

    def fit(self, trainer: Trainer, module: NSMModule, datamodule: Any) -> None:
        """Train until the rounds are measured."""
        assert isinstance(module.model, NSM)
        undeclared: Any = trainer  # Lightning sets its list of callbacks from elsewhere
        undeclared.callbacks.append(self)
        with (
            self.stopwatch.watch(parts_of(trainer, module, datamodule)),
            replaced(trainer.strategy, "optimizer_step", self._record),
        ):
            trainer.fit(module, datamodule=datamodule)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        seconds = now(self.device) - self._start
        if batch_idx > 0 and batch.num_graphs == self.batch_size:
            self._take(seconds)
        trainer.should_stop = len(self.steps) >= self.rounds
        self._begin()

    def _begin(self) -> None:
        self._start = now(self.device)
        if self._plain is not None:
            self.stopwatch.start()

    def _take(self, seconds: float) -> None:
        if self._warm < WARMUP:
            self._warm += 1
            if self._warm == WARMUP:
                multiply(self.products)
        elif self._plain is None:
            start = now(self.device)
            multiply(self.products)
            self._plain = seconds, now(self.device) - start
        else:
            self.steps.append(Step(*self._plain, seconds, self.stopwatch.stop()))
            self._plain = None

    def _record(self, optimizer_step: Any, *args: Any, **kwargs: Any) -> Any:
        """Forward, backward and update: Lightning makes them all within ``optimizer_step``."""
        if self._warm != WARMUP - 1:
            return optimizer_step(*args, **kwargs)
        self.recorder.products = []
        with self.recorder:
            return optimizer_step(*args, **kwargs)


def parts_of(trainer: Trainer, module: NSMModule, datamodule: Any) -> list[tuple[Any, str, str]]:
    """What to watch in a run of the hierarchy: (object, method, part), the outer ones less what is within them."""
    model, strategy = module.model, trainer.strategy
    return [
        (datamodule.train_set, "__getitems__", BATCHES),
        (strategy, "batch_to_device", BATCHES),
        (model, "ascend", LAYERS),
        *((why, "forward", WHY) for why in model.why),
        *((coupling, "forward", WHY) for coupling in model.couplings),
        (model, "forward", WHAT),  # the way down and its error
        (model.readout, "forward", READOUT),
        (module, "task_loss", READOUT),
        (module, "training_step", METRICS),
        (strategy, "backward", BACKWARD),
        (strategy, "optimizer_step", OPTIMISER),
    ]
