"""The code that MLflow stores with a model; the class itself is imported from this package."""

from mlflow.models import set_model

from continual.tracking.model import DeltaModel

set_model(DeltaModel())
