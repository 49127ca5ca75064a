"""Distribute a meta batch over devices and processes, and combine the gradients."""
