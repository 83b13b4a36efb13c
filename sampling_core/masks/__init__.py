"""Masks: shapes and images in pixels, brought to the latent lattice and weighed against each other."""
