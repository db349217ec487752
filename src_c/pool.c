/* The thread pool: one job at a time, spread over workers that spin for a moment and then sleep.
 *
 * Why not OpenMP: a bundled libgomp hangs after fork, two OpenMP runtimes in one process disturb
 * each other, and a step of a small batch needs a barrier cheaper than a parallel region.
 *
 * fr_run takes the pool or, if somebody else has it, does the whole job alone: with size 1. Workers
 * are made when first needed and never end. After fork the child starts with an empty pool. */
#include "fastrnn.h"
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>

#if defined(__x86_64__) || defined(__i386__)
#define relax() __builtin_ia32_pause()
#elif defined(__aarch64__)
#define relax() __asm__ volatile("yield")
#else
#define relax() ((void)0)
#endif

/* About 100 us of spinning: longer than the gaps between the calls of a training loop, which cost a
 * small model 9% of its time if the worker sleeps in them; far shorter than what others spin. */
enum { SPINS = 10000 };
/* Within a job the others are running; after as many looks one of them is probably not on a core,
 * and may be waiting for this one. */
enum { BARRIER_SPINS = 2000 };

static pthread_mutex_t busy = PTHREAD_MUTEX_INITIALIZER; /* held by whoever has the pool */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* guards sleeping */
static pthread_cond_t wake = PTHREAD_COND_INITIALIZER;
static _Atomic int workers;        /* written under `busy` */
static _Atomic unsigned job;       /* counts jobs; a change is the signal to look */
static _Atomic int remaining;      /* workers that have not finished the job */
static fr_work job_work;
static void *job_arg;
static int job_size;               /* published by `job` */

typedef struct {
  int rank;
  unsigned seen;
} birth;
static birth births[FR_MAX_THREADS];

static void *worker(void *arg) {
  const int rank = ((birth *)arg)->rank;
  unsigned seen = ((birth *)arg)->seen;
  for (;;) {
    for (int i = 0; i < SPINS && atomic_load_explicit(&job, memory_order_acquire) == seen; i++)
      relax();
    if (atomic_load_explicit(&job, memory_order_acquire) == seen) {
      pthread_mutex_lock(&lock);
      while (atomic_load_explicit(&job, memory_order_acquire) == seen)
        pthread_cond_wait(&wake, &lock);
      pthread_mutex_unlock(&lock);
    }
    seen = atomic_load_explicit(&job, memory_order_acquire);
    /* every worker answers every job, so that none can read the next job's fields as this one's */
    if (rank < job_size) job_work(job_arg, rank, job_size);
    atomic_fetch_sub_explicit(&remaining, 1, memory_order_release);
  }
  return NULL;
}

static void after_fork_in_child(void) {
  pthread_mutex_init(&busy, NULL);
  pthread_mutex_init(&lock, NULL);
  pthread_cond_init(&wake, NULL);
  workers = 0;
}

static void watch_forks(void) { pthread_atfork(NULL, NULL, after_fork_in_child); }

/* Makes workers until there are n; fewer if the system has no more threads to give. */
static void hire(int n) {
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  pthread_once(&once, watch_forks);
  while (workers < n) {
    pthread_t thread;
    births[workers] =
        (birth){.rank = workers + 1, .seen = atomic_load_explicit(&job, memory_order_relaxed)};
    if (pthread_create(&thread, NULL, worker, &births[workers])) return;
    pthread_detach(thread);
    workers++;
  }
}

void fr_run(fr_work work, void *arg, int threads) {
  if (threads > FR_MAX_THREADS) threads = FR_MAX_THREADS;
  if (threads <= 1 || pthread_mutex_trylock(&busy)) {
    work(arg, 0, 1);
    return;
  }
  hire(threads - 1);
  if (threads > workers + 1) threads = workers + 1;
  if (threads > 1) {
    job_work = work;
    job_arg = arg;
    job_size = threads;
    atomic_store_explicit(&remaining, workers, memory_order_relaxed);
    /* under the lock: a worker that is about to sleep sees the new number or gets the wake */
    pthread_mutex_lock(&lock);
    atomic_fetch_add_explicit(&job, 1, memory_order_release);
    pthread_cond_broadcast(&wake);
    pthread_mutex_unlock(&lock);
  }
  work(arg, 0, threads);
  for (int i = 0; threads > 1 && atomic_load_explicit(&remaining, memory_order_acquire) > 0; i++)
    if (i < BARRIER_SPINS)
      relax();
    else
      sched_yield();
  pthread_mutex_unlock(&busy);
}

int fr_workers(void) { return workers; }

/* A sense-free barrier: the last to come opens the next phase. */
void fr_wait(fr_barrier *b, int size) {
  if (size <= 1) return;
  const int phase = __atomic_load_n(&b->phase, __ATOMIC_RELAXED);
  if (__atomic_add_fetch(&b->count, 1, __ATOMIC_ACQ_REL) == size) {
    __atomic_store_n(&b->count, 0, __ATOMIC_RELAXED);
    __atomic_store_n(&b->phase, phase + 1, __ATOMIC_RELEASE);
    return;
  }
  for (int i = 0; __atomic_load_n(&b->phase, __ATOMIC_ACQUIRE) == phase; i++)
    if (i < BARRIER_SPINS)
      relax();
    else
      sched_yield();
}
