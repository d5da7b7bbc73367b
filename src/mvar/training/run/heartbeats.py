"""Signs of life: which rank is at which step, so that the one that is gone can be named."""

import json
import time
from contextlib import suppress
from pathlib import Path

from mvar.files import write_text
from mvar.training.parallel import Ranks

BEAT = 10.0  # seconds between heartbeats
LAST_WORDS = 2.0  # seconds in which the ranks that live write theirs before one is named as dead


class Heartbeats:
    """One file for each rank: its last step, and when that was."""

    def __init__(self, folder: Path, ranks: Ranks) -> None:
        self.folder, self.ranks = folder, ranks
        self._last, self._step = 0.0, 0

    def beat(self, step: int) -> None:
        """Note that this rank is at this step, every few seconds."""
        self._step = step
        if time.time() - self._last >= BEAT:
            self._last = time.time()
            self._write()

    def _write(self) -> None:
        text = json.dumps({"step": self._step, "time": time.time()})
        write_text(self.folder / f"rank-{self.ranks.rank}.json", text + "\n")

    def silent_rank(self) -> str:
        """The other rank that was heard of longest ago, once communication has failed and all that live noticed."""
        self._write()
        time.sleep(LAST_WORDS)
        beats = {}
        for rank in range(self.ranks.size):
            with suppress(OSError, ValueError):
                text = (self.folder / f"rank-{rank}.json").read_text(encoding="utf-8")
                beats[rank] = json.loads(text)
        beats.pop(self.ranks.rank, None)
        if not beats:
            return "another rank does not answer"
        rank, beat = min(beats.items(), key=lambda item: item[1]["time"])
        ago = f"{time.time() - beat['time']:.0f} s ago, near step {beat['step']}"
        return f"another rank does not answer: rank {rank} was last heard of {ago}"
