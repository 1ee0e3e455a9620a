"""Kernels for inference and training that compute what timm's and PyTorch's modules compute, faster on some processors.

`dispatch` decides which one runs, and holds the switch that turns all of them off.
"""
