"""A process that knows of MLflow alone: it loads what serves, and answers."""

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
