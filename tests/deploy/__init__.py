"""What is in deploy/: checked by the programs that will read it, and against the code that it names."""
