"""What every method offers to a training loop."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from crest_ext.methods.summary import Summary


class Method(ABC):
    """A change of training that makes a network smaller.

    A plain training loop needs two calls: `step()` after each `optimizer.step()`, and `finish()` at the end.
    """

    @abstractmethod
    def step(self) -> None:
        """Do the method's part of one training iteration. Call it after `optimizer.step()`."""

    @abstractmethod
    def finish(self) -> Summary:
        """End the method: from here on the model trains as an ordinary one, and keeps what was gained."""

    @abstractmethod
    def summary(self) -> Summary:
        """What is left of each layer now."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """What the model's and the optimizer's state_dict lack for resuming; torch.load(weights_only=True) reads it."""

    @abstractmethod
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume from `state_dict()`. Load the model's own state_dict as well, before or after."""
