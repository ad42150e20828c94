"""Decoding of block-diffusion models: sampling, remasking, the engine and its oracle."""
