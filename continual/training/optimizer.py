"""How a step down the gradient is taken: AdamW, warm-up and decay, gradients clipped."""

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from continual.errors import TrainingError

WARMUP_FRACTION = 0.1  # share of the steps in which the learning rate rises
MAX_GRAD_NORM = 1.0


class AdamWWithSchedule:
    """AdamW without weight decay, whose learning rate rises for a tenth of the steps and falls linearly to zero.

    done, moments: how far an earlier one came and what it then held, to go on as it would have.
    """

    def __init__(
        self,
        tensors: Iterable[Tensor],
        *,
        learning_rate: float,
        steps: int,
        done: int = 0,
        moments: Mapping[str, Tensor] | None = None,
    ) -> None:
        self._tensors, self._rate, self._steps = list(tensors), learning_rate, steps
        self._rise = max(math.ceil(WARMUP_FRACTION * steps), 1)
        self._adamw = torch.optim.AdamW(self._tensors, lr=learning_rate, weight_decay=0.0)
        self.done = done
        for key, value in (moments or {}).items():
            number, name = key.split("/")
            tensor = self._tensors[int(number)]
            own = "cpu" if name == "step" else tensor.device  # where AdamW itself keeps it
            self._adamw.state[tensor][name] = value.to(own, copy=True)

    def __call__(self, loss: Tensor) -> float:
        """One step down the gradient of `loss`; the loss as a number.

        Raises LearnError for a loss that is not finite, before anything is changed by it.
        """
        value = self.require_finite(loss)
        torch.autograd.backward(loss)
        self.step()
        return value

    def require_finite(self, loss: Tensor) -> float:
        """The loss as a number. Raises LearnError where it is none."""
        value = loss.item()
        if not math.isfinite(value):
            raise TrainingError(f"the training loss became {value} at step {self.done}; try a lower learning_rate")
        return value

    def zero_grad(self) -> None:
        """Take no gradient into account that was computed since the last step."""
        self._adamw.zero_grad(set_to_none=False)  # where gradients lie is for who made the tensors to say

    def step(self) -> None:
        """Go down the gradients that there are, and forget them."""
        torch.nn.utils.clip_grad_norm_(self._tensors, MAX_GRAD_NORM)
        for group in self._adamw.param_groups:
            group["lr"] = self._rate * self._share()
        self._adamw.step()
        self.zero_grad()
        self.done += 1

    @property
    def state_tensors(self) -> dict[str, Tensor]:
        """What AdamW remembers of each tensor, by its number; still in use, so the next step changes it."""
        known = ((number, self._adamw.state.get(tensor, {})) for number, tensor in enumerate(self._tensors))
        return {f"{number}/{name}": value for number, state in known for name, value in state.items()}

    def _share(self) -> float:
        """The share of the learning rate at which the next step is taken."""
        return min((self.done + 1) / self._rise, max(self._steps - self.done, 0) / max(self._steps - self._rise, 1))
