"""Compiled kernels, private: the public names are in fastrnn and fastrnn.functional.

`sequence` walks time, `stream` takes one step, `dense` is the rest of training, `runtime` is what
they share.
"""
