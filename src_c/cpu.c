/* Which kernels this CPU can run, and the one place that knows of the floating-point control
 * register. */
#include "fastrnn.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>

/* By hand: what __builtin_cpu_supports reads is filled by a compiler's runtime library, and with some
 * of them it stays empty. `ebx` are bits of leaf 7, `saved` registers that the operating system saves
 * on a task switch (XCR0). */
static int has(unsigned ebx, unsigned saved) {
  const unsigned fma = 1u << 12, xgetbv = 1u << 27, avx = 1u << 28, all = fma | xgetbv | avx;
  unsigned a, b, c, d, low, high;
  if (!__get_cpuid(1, &a, &b, &c, &d) || (c & all) != all) return 0;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (low & saved) == saved && __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & ebx) == ebx;
}

enum { AVX2 = 1 << 5, AVX512F = 1 << 16, AVX512DQ = 1 << 17 };
enum { XMM = 1 << 1, YMM = 1 << 2, ZMM = 7 << 5 }; /* ZMM: masks, high halves, upper registers */
static int has_avx2(void) { return has(AVX2, XMM | YMM); }
static int has_avx512(void) { return has(AVX2 | AVX512F | AVX512DQ, XMM | YMM | ZMM); }
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

/* Another library may have set a rounding mode, flushing, or exceptions that trap: kernels take nothing
 * of the caller's state, so that results are the same bits in every thread. */
#if defined(__x86_64__)
unsigned fr_flush_denormals(int on) {
  const unsigned state = _mm_getcsr();
  _mm_setcsr(on ? 0x9fc0 : 0x1f80); /* to nearest, no traps; 0x8000 FTZ: results, 0x40 DAZ: operands */
  return state;
}
void fr_restore(unsigned state) { _mm_setcsr(state); }
#elif defined(__aarch64__)
unsigned fr_flush_denormals(int on) {
  uint64_t state; /* as wide as the register, everywhere */
  __asm__ volatile("mrs %0, fpcr" : "=r"(state));
  __asm__ volatile("msr fpcr, %0" : : "r"((uint64_t)(on ? 1u << 24 : 0)));
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
