"""Where records go: the terminal, CSV files, TensorBoard. Each logger registers itself in `LOGGERS`."""

from resnet_train.registry import import_modules

# These are called first, in this order, then those of other files.
import_modules(
    __name__,
    __path__,
    first=("console", "csv", "curves"),
    never=("events", "profile", "tensorboard"),  # `curves` and `jobs.train` import them if a run uses them
)
