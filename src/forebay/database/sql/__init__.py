"""The statements, in both databases' SQL, built from the model's tables."""
