"""The HTTP surface: thin routes, response schemas, one handler per error. Never loads torch."""
