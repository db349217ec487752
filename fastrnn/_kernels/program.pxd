from fastrnn._kernels.packed_program cimport PackedProgram, sized_run
