"""Regional diffusion sampling: torch in, torch out; no workflow engine, no files, no network.

Read in this order: `job` (what is asked for), `plan` (what it means), `sampler` (the only loop),
`solvers` (one file a method), `regions` (how regions become one latent).
"""
