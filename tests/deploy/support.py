"""Links without a network: sites that answer in this process, and fail on command."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from fedvad.federation.mailboxes.flower.messages import Instruction, Reply

Answer = Callable[[Instruction], Reply | str | None]


class FakeLinks:
    """See `rounds.Links`. An answer of None never comes; time passes only in `wait`.

    away: sites that cannot be reached before some moment.
    """

    def __init__(self, answers: dict[str, Answer], *, away: dict[str, float] | None = None) -> None:
        self.answers = answers
        self.away = away or {}
        self.now = 0.0
        self.asked: list[tuple[str, Instruction]] = []
        self._inbox: list[tuple[str, Reply | str]] = []

    def clock(self) -> float:
        return self.now

    def connected(self) -> set[str]:
        return {site for site in self.answers if self.now >= self.away.get(site, 0.0)}

    def ask(self, site: str, instruction: Instruction) -> None:
        self.asked.append((site, instruction))
        answer = self.answers[site](instruction)
        if answer is not None:
            self._inbox.append((site, answer))

    def collect(self) -> Iterator[tuple[str, Reply | str]]:
        inbox, self._inbox = self._inbox, []
        yield from inbox

    def forget(self) -> None:
        self._inbox.clear()

    def wait(self) -> None:
        self.now += 1.0

    def say(self, site: str, answer: Reply | str) -> None:
        """An answer that nobody waits for."""
        self._inbox.append((site, answer))
