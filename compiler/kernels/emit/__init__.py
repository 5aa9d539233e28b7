"""Describe what kernels are written with: the emitter, epilogues, arithmetic, estimates."""
