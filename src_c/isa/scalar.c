/* The templates for scalar; float32, and float64 through scalar_f64.c. */
#ifndef FR_BITS
#define FR_BITS 32
#endif
#define FR_ISA scalar
#include "../step.h"
#include "../vec/scalar.h"
#include "../tmpl/table.h"
