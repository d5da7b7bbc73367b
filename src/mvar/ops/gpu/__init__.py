"""Triton kernels for what lies between a block's matrix products on a CUDA GPU, each a torch operator with a gradient.

They never ran on a GPU yet: tests run them in Triton's interpreter and compile them for three generations of cards.
"""
