"""The pages: up to date, linked, and true as far as a machine can tell."""
