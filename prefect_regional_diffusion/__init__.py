"""Regional diffusion sampling as a Prefect workflow."""
