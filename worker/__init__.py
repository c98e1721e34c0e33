"""The worker: Celery's app, the process that runs stages, the keeper, and the local service."""
