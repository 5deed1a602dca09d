"""What was acknowledged, kept until the database has it; and what the database refused."""
