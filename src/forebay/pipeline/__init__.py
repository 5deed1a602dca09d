"""From an accepted change to a committed row: order, bounds, batches, retries, and who may read.

Its door: `Drain`, `Pipeline`.

`pipeline` builds the parts, begins and ends them. Where is it decided?

- order, folding, when a batch is ready: `queue`
- whether a change is taken, where it waits, when it is refused: `intake`
- what is done about what the database answers, and how often: `batch_writer`; for one thread alone: `lanes`
- who waits until it is written: `barrier`
- in which event loop all of it lives: `home`
- what others have left behind: `recovery`, and from outside `drain`
"""

from __future__ import annotations

from forebay.pipeline.drain import Drain
from forebay.pipeline.pipeline import Pipeline

__all__ = ["Drain", "Pipeline"]
