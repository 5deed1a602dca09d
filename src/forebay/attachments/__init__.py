"""An element's content: spooled, fetched, uploaded, signed, served, deleted."""
