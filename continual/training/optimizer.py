"""AdamW with linear warm-up and decay, and clipped gradients."""

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from continual.errors import TrainingError
from continual.training.pruning import PRUNING, BudgetedPruning

WARMUP_FRACTION = 0.1  # of the steps: the learning rate rises
MAX_GRAD_NORM = 1.0


class AdamWWithSchedule:
    """AdamW without weight decay, with linear warm-up and decay.

    The learning rate rises for a tenth of the steps, then falls to zero.

    Args:
        tensors: The leaves to train, of any shape.
        learning_rate: The peak of the schedule.
        steps: Steps of the whole schedule.
        done: Steps taken before, by an earlier optimizer that this one continues.
        state: `state_tensors` of that earlier optimizer.
        pruning: Sets some of the values to zero behind each step, by budgets of their forms.
    """

    def __init__(
        self,
        tensors: Iterable[Tensor],
        *,
        learning_rate: float,
        steps: int,
        done: int = 0,
        state: Mapping[str, Tensor] | None = None,
        pruning: BudgetedPruning | None = None,
    ) -> None:
        self._tensors, self._learning_rate, self._steps = list(tensors), learning_rate, steps
        self._warmup_steps = max(math.ceil(WARMUP_FRACTION * steps), 1)
        self._adamw = torch.optim.AdamW(self._tensors, lr=learning_rate, weight_decay=0.0)
        self.done, self._pruning = done, pruning
        for key, value in (state or {}).items():
            if key.startswith(PRUNING):
                continue
            index, name = key.split("/")
            tensor = self._tensors[int(index)]
            device = "cpu" if name == "step" else tensor.device  # where AdamW itself keeps it
            self._adamw.state[tensor][name] = value.to(device, copy=True)

    def __call__(self, loss: Tensor) -> float:
        """Take one step down the gradient of a scalar loss; return the loss.

        Raises:
            TrainingError: The loss is not finite; nothing is changed.
        """
        value = self.require_finite(loss)
        torch.autograd.backward(loss)
        self.step()
        return value

    def require_finite(self, loss: Tensor) -> float:
        """Return a scalar loss as a number.

        Raises:
            TrainingError: The loss is not finite.
        """
        value = loss.item()
        if not math.isfinite(value):
            raise TrainingError(f"the training loss became {value} at step {self.done}; try a lower learning_rate")
        return value

    def zero_grad(self) -> None:
        """Discard the gradients computed since the last step."""
        self._adamw.zero_grad(set_to_none=False)  # gradients may be views of memory that others allocated

    def step(self) -> None:
        """Clip the gradients, take one step, prune, and zero the gradients."""
        if self._pruning:
            self._pruning.observe()
        torch.nn.utils.clip_grad_norm_(self._tensors, MAX_GRAD_NORM)
        for group in self._adamw.param_groups:
            group["lr"] = self._learning_rate * self._schedule()
        self._adamw.step()
        self.zero_grad()
        self.done += 1
        if self._pruning:
            self._pruning.prune(step=self.done, steps=self._steps)

    @property
    def state_tensors(self) -> dict[str, Tensor]:
        """AdamW's state by `index of the tensor/name`, and pruning's; not copied, so the next step changes it.

        `step` is a scalar; `exp_avg` and `exp_avg_sq` have the shape of the tensor.
        """
        states = ((index, self._adamw.state.get(tensor, {})) for index, tensor in enumerate(self._tensors))
        adamw = {f"{index}/{name}": value for index, state in states for name, value in state.items()}
        return adamw | (self._pruning.state_tensors if self._pruning else {})

    def _schedule(self) -> float:
        """The fraction of the learning rate at which the next step is taken."""
        rise = (self.done + 1) / self._warmup_steps
        return min(rise, max(self._steps - self.done, 0) / max(self._steps - self._warmup_steps, 1))
