"""A progress bar while loops are compiled, which happens once and takes half a minute."""

from __future__ import annotations

from numba.core import event
from tqdm import tqdm

PATIENCE = 2.0  # seconds without a bar


class CompilationBar(event.Listener):
    """Show in a terminal how many loops are compiled; loops from the cache make no event."""

    def __init__(self) -> None:
        self.depth, self.bar = 0, None

    def on_start(self, event: event.Event) -> None:
        """Open the bar with the first loop; those that it calls are compiled inside."""
        if self.depth == 0:
            text = "Compiling the loops, once"
            self.bar = tqdm(desc=text, unit="loop", delay=PATIENCE, leave=False, disable=None)
        self.depth += 1

    def on_end(self, event: event.Event) -> None:
        """Count the loop; close the bar with the last one."""
        self.depth -= 1
        self.bar.update()
        if self.depth == 0:
            self.bar.close()


def show_compilation() -> None:
    """Show a bar from now on."""
    event.register("numba:compile", CompilationBar())
