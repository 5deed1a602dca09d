"""What an operator sees: counters, metrics, health, log lines, the listener.

Its door: `app_route`, `Counts`, `Health`, `JournalView`, `limit_repeats`, `Listener`, `Metrics`, `Pulse`.
"""
