"""The ceiling: when most of what a worker handles is refused, the fault is not in the data."""

from collections import Counter, deque


class Ceiling:
    """Watches a worker's last `window` records; pure.

    It trips when more than `ratio` of a full window was rejected and the rejected came from more than `devices`
    devices, so that one broken device never stops a pipeline, and a bad deploy does not pour a topic into the dead
    letters. Once tripped it stays so until `reset`.
    """

    def __init__(self, window: int = 10_000, devices: int = 20, ratio: float = 0.5) -> None:
        self.window = window
        self.devices = devices
        self.ratio = ratio
        self.tripped = False
        #: Runs of outcomes, oldest first: (how many records, the rejected device or None for good ones).
        self._runs: deque[tuple[int, str | None]] = deque()
        self._total = 0
        self._rejected: Counter[str] = Counter()
        self._rejected_total = 0

    def good(self, records: int) -> None:
        """Count records that were handled."""
        if records:
            self._add(records, None)

    def rejected(self, device: str) -> None:
        """Count one record that was rejected; `device` is its device id, or its key where it was not decoded."""
        self._add(1, device)

    def reset(self) -> None:
        """Start anew, as after a restart."""
        self.__init__(self.window, self.devices, self.ratio)  # type: ignore[misc]

    def _add(self, records: int, device: str | None) -> None:
        self._runs.append((records, device))
        self._total += records
        if device is not None:
            self._rejected[device] += records
            self._rejected_total += records
        while self._total > self.window:
            self._drop(self._total - self.window)
        if (
            self._total == self.window
            and self._rejected_total > self.window * self.ratio
            and len(self._rejected) > self.devices
        ):
            self.tripped = True

    def _drop(self, excess: int) -> None:
        records, device = self._runs.popleft()
        gone = min(records, excess)
        if gone < records:
            self._runs.appendleft((records - gone, device))
        self._total -= gone
        if device is not None:
            self._rejected_total -= gone
            self._rejected[device] -= gone
            if not self._rejected[device]:
                del self._rejected[device]
