"""Blocks on the SMs of a card: waves, their tail, and what the order of tiles makes DRAM carry."""

import heapq
import math


def cycles_of_grid(lengths, sms, figure):
    """Cycles until the last of the blocks is done, which begin in this order and are so many rounds long.

    An SM with a free place takes the next block, the emptiest one first; the blocks of an SM go on at the same
    speed, which is that of so many residents.
    """
    waiting, placed = iter(lengths), [Sm(figure) for _ in range(sms)]
    events = [(0.0, number, 0) for number in range(sms)]
    now = 0.0
    while events:
        now, freed = events[0][0], []
        while events and events[0][0] <= now * (1 + 1e-12):
            _, number, version = heapq.heappop(events)
            if version == placed[number].version:
                placed[number].advance(now)
                freed.append(number)
        for number in deal(waiting, freed, placed, figure.residents):
            placed[number].version += 1
            heapq.heappush(events, (placed[number].next_end(), number, placed[number].version))
    return now


def deal(waiting, freed, sms, residents):
    """Gives waiting blocks to the SMs with room, one to the emptiest at a time. Those with blocks come back."""
    room = [(len(sms[number].ends), number) for number in freed if len(sms[number].ends) < residents]
    heapq.heapify(room)
    while room and (length := next(waiting, None)) is not None:
        held, number = heapq.heappop(room)
        heapq.heappush(sms[number].ends, sms[number].gone + length)
        if held + 1 < residents:
            heapq.heappush(room, (held + 1, number))
    return [number for number in freed if sms[number].ends]


class Sm:
    """The blocks of an SM, by the number of rounds that the SM has gone through when they end."""

    def __init__(self, figure):
        self.figure, self.ends, self.gone, self.now, self.version = figure, [], 0.0, 0.0, 0

    def advance(self, now):
        """Goes on to `now`, when blocks end."""
        if self.ends:
            self.gone += (now - self.now) / self.figure.cycles(len(self.ends))
            while self.ends and self.ends[0] <= self.gone + 1e-6:
                heapq.heappop(self.ends)
        self.now = now

    def next_end(self):
        return self.now + max(self.ends[0] - self.gone, 0) * self.figure.cycles(len(self.ends))


def traffic(card, residents, tile, shape, right_bytes=2.0):
    """Bytes of DRAM of a product: tiles of a row follow each other, so a wave reads the right operand as far as its
    tiles reach, unless it has stayed in L2 since the wave before."""
    m, n, k = shape
    across, down = math.ceil(n / tile), math.ceil(m / tile)
    left, right, out = m * k * 2, n * k * right_bytes, m * n * 2
    if right + left <= card.l2:
        return left + right + out
    waves = math.ceil(across * down / (card.sms * residents))
    reach = min(1.0, card.sms * residents / across)
    return left + right * max(1.0, waves * reach) + out


def together(compute, memory):
    """Seconds of work that overlaps: the longer of both, and more where they are alike and neither hides the other.

    The third power is assumed: alike, both take a quarter more than one.
    """
    return (compute**3 + memory**3) ** (1 / 3)
