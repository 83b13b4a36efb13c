"""What a person asks for: jobs, their masks, grids, and how mistakes in them are told. Imports no torch."""
