"""A process that imports only MLflow: it loads a served model and prints its predictions."""

import json
import sys

import pandas as pd
from mlflow import pyfunc

if __name__ == "__main__":
    model = pyfunc.load_model(sys.argv[1])
    texts = json.loads(sys.argv[2])
    listed, framed = model.predict(texts), model.predict(pd.DataFrame({"text": texts}))
    assert listed.equals(framed)
    sys.stdout.write(listed.to_json(orient="records"))
