from fastrnn._kernels.machine cimport Machine


cdef Machine make_machine(object program, object dtype)
