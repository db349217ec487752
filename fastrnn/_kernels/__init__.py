"""Compiled kernels, private: the public names are in fastrnn and fastrnn.functional.

`sequence` walks time, `stream` takes one step, `linear` is a head, `loss` softmax cross-entropy,
`update` the gradients' norm and the optimisers. `runtime` is what they share. `checked` compares
every call with the scalar table, if FASTRNN_CHECK=1 is in the environment.
"""

import os

from fastrnn._kernels import threadpool

threadpool.register()

if os.environ.get("FASTRNN_CHECK") == "1":
    from fastrnn._kernels import checked

    checked.install()
