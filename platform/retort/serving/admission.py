"""How much speech is promised: requests are admitted by the seconds of audio that they will make."""

from dataclasses import dataclass, field

_MEMORY = 0.9
"""How slowly the estimates follow what is measured."""


@dataclass
class Admission:
    """Book-keeping of one replica.

    Args:
        slots: utterances that are spoken at once.
        max_waiting_s: predicted audio seconds that may wait for a slot; 0 refuses whatever finds none free.
        seconds_per_character: first estimate; it follows what requests turn out to take.
    """

    slots: int
    max_waiting_s: float
    seconds_per_character: float = 0.08
    _speed: float = 1.0
    """Audio seconds that are made in a second."""
    _in_flight: dict[int, float] = field(default_factory=dict)
    _waiting: dict[int, float] = field(default_factory=dict)

    @property
    def in_flight_s(self) -> float:
        """Predicted audio seconds that are being spoken or wait."""
        return sum(self._in_flight.values()) + sum(self._waiting.values())

    @property
    def waiting_s(self) -> float:
        """Predicted audio seconds that wait."""
        return sum(self._waiting.values())

    def predict(self, text: str) -> float:
        """Audio seconds of a text."""
        return self.seconds_per_character * len(text)

    def enter(self, ticket: int, text: str) -> float | None:
        """Take a request; None when it may come in, else the seconds after which to try again."""
        seconds = self.predict(text)
        is_free = len(self._in_flight) + len(self._waiting) < self.slots
        if not is_free and self.waiting_s + seconds > self.max_waiting_s:
            # The time until the longest wait would be short enough, or else until half of what is spoken is over.
            excess_s = self.waiting_s + seconds - self.max_waiting_s
            return max(excess_s, sum(self._in_flight.values()) / 2) / self._speed
        self._waiting[ticket] = seconds
        return None

    def start(self, ticket: int) -> None:
        """A request has got a slot."""
        if ticket in self._waiting:
            self._in_flight[ticket] = self._waiting.pop(ticket)

    def leave(self, ticket: int, text: str, *, audio_s: float | None = None, wall_s: float | None = None) -> None:
        """A request is over; what it took, where it was said to its end, improves the estimates."""
        self._waiting.pop(ticket, None)
        self._in_flight.pop(ticket, None)
        if audio_s and text:
            self.seconds_per_character = _MEMORY * self.seconds_per_character + (1 - _MEMORY) * audio_s / len(text)
            if wall_s:
                together = len(self._in_flight) + 1
                self._speed = _MEMORY * self._speed + (1 - _MEMORY) * together * audio_s / wall_s
