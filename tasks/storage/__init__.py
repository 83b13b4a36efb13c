"""The store: tensors, records and pictures under keys, local or remote, read and written with retries."""
