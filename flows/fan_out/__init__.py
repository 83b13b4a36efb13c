"""Many jobs, cut into shards, drawn here or on other machines, and merged."""
