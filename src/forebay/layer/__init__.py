"""Chainlit's face: its methods come in, its dicts go out; the start and the end of all the rest.

Its door: `Deleted`, `ForebayDataLayer`, `lifespan`, `patience_for`.
"""
