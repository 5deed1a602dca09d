"""`forebay bench`: forebay beside Chainlit's own layers and beside what the database alone can do.

Every measurement is a process of its own (`child.py`) on a fresh database; `run.py` starts them one after the
other, the layers alternating over the rounds. Here is code of the command line only: no layer imports it.
"""
