"""Kernels in torch and Triton; import the module of the operation you want."""
