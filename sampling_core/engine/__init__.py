"""The sampling loop: solvers' requests are answered in batches, and states are named by what determined them."""
