/* Which kernels this CPU can run, and the one place that knows of the floating-point control
 * register. */
#include "fastrnn.h"

#if defined(__x86_64__)
#include <immintrin.h>

/* The builtins also ask the operating system, whether it saves the registers on a task switch
 * (XGETBV). */
static int has_avx2(void) {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}
static int has_avx512(void) {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq");
}
#endif

static int always(void) { return 1; }

#define DECLARE(isa) extern const fr_table fr_table_##isa##32, fr_table_##isa##64;
#define ROW(isa, supported) {#isa, supported, {&fr_table_##isa##32, &fr_table_##isa##64}}

DECLARE(scalar)
#if defined(__x86_64__)
DECLARE(avx2)
DECLARE(avx512)
#elif defined(__aarch64__)
DECLARE(neon)
#endif

static const struct {
  const char *name;
  int (*supported)(void);
  const fr_table *table[2]; /* float32, float64 */
} isas[] = {
    ROW(scalar, always),
#if defined(__x86_64__)
    ROW(avx2, has_avx2),
    ROW(avx512, has_avx512),
#elif defined(__aarch64__)
    ROW(neon, always), /* part of the base architecture */
#endif
};

int fr_isa_count(void) { return (int)(sizeof isas / sizeof isas[0]); }
const char *fr_isa_name(int isa) { return isas[isa].name; }
int fr_isa_supported(int isa) { return isas[isa].supported(); }
const fr_table *fr_isa_table(int isa, int bits) { return isas[isa].table[bits == 64]; }

#if defined(__x86_64__)
unsigned fr_flush_denormals(int on) {
  const unsigned state = _mm_getcsr();
  if (on) _mm_setcsr(state | 0x8040); /* FTZ: results, DAZ: operands */
  return state;
}
void fr_restore(unsigned state) { _mm_setcsr(state); }
#elif defined(__aarch64__)
unsigned fr_flush_denormals(int on) {
  uint64_t state; /* as wide as the register, everywhere */
  __asm__ volatile("mrs %0, fpcr" : "=r"(state));
  if (on) __asm__ volatile("msr fpcr, %0" : : "r"(state | (1u << 24)));
  return (unsigned)state;
}
void fr_restore(unsigned state) {
  __asm__ volatile("msr fpcr, %0" : : "r"((uint64_t)state));
}
#else
unsigned fr_flush_denormals(int on) { return (unsigned)on; }
void fr_restore(unsigned state) { (void)state; }
#endif

ptrdiff_t fr_pitch(ptrdiff_t h, ptrdiff_t itemsize) {
  ptrdiff_t bytes = (h * itemsize + 63) / 64 * 64;
  /* rows 1024 bytes apart share few cache sets, and loads 4096 apart wait for each other's stores */
  if (bytes >= 1024 && bytes % 1024 == 0) bytes += 64;
  return bytes / itemsize;
}
