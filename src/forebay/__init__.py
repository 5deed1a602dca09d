"""forebay: a high-throughput data layer for Chainlit."""
