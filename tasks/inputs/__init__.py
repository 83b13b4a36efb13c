"""What a person hands in: job files and images, what they may name, and how large they may be."""
