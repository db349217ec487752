"""Compiled kernels, private: the public names are in fastrnn and fastrnn.functional.

`sequence` walks time, `stream` takes one step, `linear` is a head, `loss` softmax cross-entropy,
`update` the gradients' norm and the optimisers. `runtime` is what they share.
"""

from fastrnn._kernels import threadpool

threadpool.register()
