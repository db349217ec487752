from fastrnn._kernels.check cimport check_flat
