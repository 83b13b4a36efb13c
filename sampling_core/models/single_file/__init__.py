"""Models in one safetensors file, in the key layouts of their first releases, known as the folders they could be."""
