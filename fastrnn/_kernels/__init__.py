"""Compiled kernels, private: the public names are in fastrnn and fastrnn.functional.

`sequence` walks time, `stream` takes one step. `linear` is the head, `loss` the cross-entropy, `update`
the gradients' norm and the optimisers. `runtime` is what they share.
"""
