"""What the flows `render` and `shard` do, as plain functions: without a server they are called as they are."""
