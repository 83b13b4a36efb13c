"""Job models: jobs, their masks, grids, and error messages for mistakes in them. Imports no torch."""
