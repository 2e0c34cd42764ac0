"""The answers to a list of inputs: a list that is also a data frame, and a table in a notebook."""

from __future__ import annotations

from typing import TYPE_CHECKING

from continual.inference.predictor import Prediction

if TYPE_CHECKING:
    from pandas import DataFrame


class Predictions(list[Prediction]):
    """Predictions, one per input, in order.

    >>> learner.predict(["my card is lost"]).to_frame()[["task", "label", "score"]]      # doctest: +SKIP
    """

    def to_frame(self) -> DataFrame:
        """Return a row for each input, with the fields of `Prediction.to_json` and the input's further columns."""
        import pandas

        return pandas.DataFrame([prediction.to_json() for prediction in self])

    def _repr_html_(self) -> str:
        from continual.reports.html.notebook import answers_fragment

        return answers_fragment([prediction.to_json() for prediction in self])
