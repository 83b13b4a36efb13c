"""Models in one safetensors file, in the key layouts of their first releases, opened as diffusers folders."""
