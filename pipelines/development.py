"""What looks at the development documents decide: which teacher is the best, when to go back to it, when to end."""

from __future__ import annotations

from pipelines.config import DevelopmentConfig
from pipelines.records import DevelopmentRecord


class Progress:
    """Keeps the best teacher so far."""

    def __init__(self, config: DevelopmentConfig) -> None:
        """Start without a teacher."""
        self._config = config
        self._best = -float("inf")
        self._stale = 0
        self.best_policy: str | None = None
        """The state with the highest mean reward; the last one looked at while none had a reward."""
        self.goes_on_from: str | None = None
        """The state that the next round starts from."""
        self.ended = False

    def look(self, policy: str, mean: float | None) -> DevelopmentRecord | None:
        """Return what a look decides; None where no self-edit had a reward, which decides nothing.

        Args:
            policy: The teacher's state.
            mean: Its mean reward on the development documents.
        """
        self.goes_on_from = policy
        if mean is None:
            self.best_policy = self.best_policy or policy
            return None
        if mean > self._best:
            self._best, self.best_policy, self._stale = mean, policy, 0
            return DevelopmentRecord(mean=mean, best=mean, decision="best")
        self._stale += 1
        if self._stale >= self._config.patience:
            self.ended = True
            return DevelopmentRecord(mean=mean, best=self._best, decision="stop")
        if mean < self._best - self._config.fall:
            self.goes_on_from = self.best_policy
            return DevelopmentRecord(mean=mean, best=self._best, decision="back to the best")
        return DevelopmentRecord(mean=mean, best=self._best, decision="go on")
