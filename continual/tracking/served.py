"""What MLflow keeps as the code of a model: which class answers. The class is this package's."""

from mlflow.models import set_model

from continual.tracking.model import DeltaModel

set_model(DeltaModel())
