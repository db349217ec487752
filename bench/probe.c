/* What one core of this machine can do: prints JSON. cc -O3 -march=native -pthread probe.c
 *
 *   probe THREADS
 *
 * fma_gflops   fused multiply-adds on float32, independent chains, counted as two operations
 * read_gbs     for working sets of 16 KB ... 64 MB in all (each thread reads its own part):
 *              bytes per second that arrive in registers
 *
 * Vectors are GCC's extension, so no instruction set is named here. Both are the best of many short
 * runs: the peak is what we look for, not an average.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#if defined __AVX512F__
enum { BYTES = 64, CHAINS = 24 };
#elif defined __AVX__
enum { BYTES = 32, CHAINS = 12 }; /* two units times a latency of 4 or 5; 16 registers */
#else
enum { BYTES = 16, CHAINS = 24 };
#endif

typedef float vec __attribute__((vector_size(BYTES)));
enum { LANES = BYTES / sizeof(float), LOADS = 16, RUNS = 30 };

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + 1e-9 * t.tv_nsec;
}

static volatile float sink;

/* flops of `turns` turns over all chains */
static double multiply_add(long turns) {
    vec acc[CHAINS], a, b;
    for (int l = 0; l < LANES; l++) a[l] = 0.999f, b[l] = 1e-3f;
    for (int i = 0; i < CHAINS; i++) acc[i] = b * (float)i;
    for (long t = 0; t < turns; t++) {
#pragma GCC unroll 32
        for (int i = 0; i < CHAINS; i++) acc[i] = acc[i] * a + b;
    }
    for (int i = 1; i < CHAINS; i++) acc[0] += acc[i];
    sink = acc[0][0];
    return 2.0 * turns * CHAINS * LANES;
}

/* sum of all of data: one addition per load, LOADS chains */
static void read_all(const vec *data, long count, long turns) {
    vec acc[LOADS];
    memset(acc, 0, sizeof acc);
    for (long t = 0; t < turns; t++) {
        __asm__ volatile("" ::: "memory"); /* each turn reads again */
        for (long k = 0; k < count; k += LOADS) {
#pragma GCC unroll 32
            for (int i = 0; i < LOADS; i++) acc[i] += data[k + i];
        }
    }
    for (int i = 1; i < LOADS; i++) acc[0] += acc[i];
    sink = acc[0][0];
}

typedef struct {
    pthread_barrier_t *barrier;
    long bytes; /* 0: multiply_add */
    double best; /* seconds of the fastest run */
    long turns;
} job;

static void *work(void *arg) {
    job *j = arg;
    vec *data = NULL;
    if (j->bytes) {
        data = aligned_alloc(4096, (j->bytes + 4095) / 4096 * 4096);
        if (!data) exit(1);
        memset(data, 0, j->bytes);
    }
    j->best = 1e9;
    for (int r = 0; r < RUNS; r++) {
        pthread_barrier_wait(j->barrier);
        double start = now();
        if (j->bytes)
            read_all(data, j->bytes / BYTES, j->turns);
        else
            multiply_add(j->turns);
        double time = now() - start;
        if (time < j->best) j->best = time;
    }
    free(data);
    return NULL;
}

/* the seconds of all threads doing the same at once */
static double together(int threads, long bytes, long turns) {
    pthread_t id[64];
    job jobs[64];
    pthread_barrier_t barrier;
    pthread_barrier_init(&barrier, NULL, threads);
    for (int k = 0; k < threads; k++) {
        jobs[k] = (job){&barrier, bytes, 0, turns};
        if (pthread_create(&id[k], NULL, work, &jobs[k])) exit(1);
    }
    double slowest = 0;
    for (int k = 0; k < threads; k++) {
        pthread_join(id[k], NULL);
        if (jobs[k].best > slowest) slowest = jobs[k].best;
    }
    pthread_barrier_destroy(&barrier);
    return slowest;
}

int main(int argc, char **argv) {
    int threads = argc > 1 ? atoi(argv[1]) : 1;
    if (threads < 1 || threads > 64) return 2;
    long turns = 200000;
    double flops = 2.0 * turns * CHAINS * LANES * threads;
    printf("{\"vector_bytes\": %d, \"fma_gflops\": %.2f, \"read_gbs\": [", BYTES,
           flops / together(threads, 0, turns) * 1e-9);
    for (long total = 16 << 10; total <= 64 << 20; total *= 2) {
        long bytes = total / threads / (BYTES * LOADS) * (BYTES * LOADS);
        long passes = (8L << 20) / bytes;
        if (passes < 1) passes = 1;
        double seconds = together(threads, bytes, passes);
        printf("%s[%ld, %.2f]", total > 16 << 10 ? ", " : "", total,
               (double)bytes * passes * threads / seconds * 1e-9);
        fflush(stdout);
    }
    printf("]}\n");
    return 0;
}
