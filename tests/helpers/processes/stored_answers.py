"""Answer texts from a home: `python -m tests.helpers.processes.stored_answers REGISTRY_URL BLOBS_URL < QUESTIONS`.

The questions are JSON: pairs of a list of texts and the name of their task, or null for the router. The answers are
printed as one JSON array.
"""

import json
import sys

from continual import Learner
from registry import Registry


def main() -> None:
    url, blobs = sys.argv[1:]
    with Registry.open(url, blobs) as registry:
        learner = Learner.open("backbone", registry, device="cpu", dtype="float32")
        answers = [
            answer.to_json() for texts, task in json.load(sys.stdin) for answer in learner.predict(texts, task=task)
        ]
    print(json.dumps(answers))


if __name__ == "__main__":
    main()
