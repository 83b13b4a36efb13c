"""A fleet of workers and the jobs that arrive: on real workers, as many as one machine carries, and simulated."""
