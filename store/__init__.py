"""The one truth: SQL rows, every SQL query, and the artifact store."""
