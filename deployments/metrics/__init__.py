"""Metrics of a worker for Prometheus: what its runs tell, collected, and an endpoint."""
