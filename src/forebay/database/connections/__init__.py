"""Connections: opened to the right server, lent, watched, and dropped when they are not what they were."""
