"""What an operator sees: counters, metrics, health, log lines, the listener."""
