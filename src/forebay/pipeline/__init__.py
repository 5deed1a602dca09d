"""From an accepted change to a committed row: order, bounds, batches, retries, and who may read."""
