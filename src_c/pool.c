/* The thread pool: one job at a time, spread over workers that wait awake for a moment and then sleep.
 *
 * Why not OpenMP: a bundled libgomp hangs after fork, two OpenMP runtimes in one process disturb
 * each other, and a step of a small batch needs a barrier cheaper than a parallel region.
 *
 * fr_run takes the pool or, if somebody else has it, does the whole job alone: with size 1. Workers
 * are made when first needed and never end. After fork the child starts with an empty pool.
 *
 * Why there is no race:
 *  - Who holds `busy` is the owner. Only the owner writes what begins with job_, `workers` and the
 *    tickets, and it gives `busy` back only when `remaining` is 0.
 *  - A job is for the workers of rank 1 to size - 1. The owner counts the ticket of each of them up
 *    (release), and a worker reads the job's fields only after it has seen its own ticket change
 *    (acquire) and before it counts `remaining` down (release). So the fields do not change while
 *    a worker reads them. A worker without a new ticket reads nothing and is not waited for: a job
 *    of two costs the same however many workers there are.
 *  - Sleeping: whoever sleeps first announces it in a flag and then lets sleep_while compare the
 *    word once more; whoever changes the word first changes it and then reads the flag. All four
 *    are sequentially consistent, so at least one of the two sees the other: no wake is lost. A wake
 *    too many does no harm, since every sleeper looks again.
 *
 * Other programs may take the CPU away from a worker for milliseconds, in the midst of its share. The
 * owner then waits: nobody else can compute half of an update in place again. What keeps such waits
 * rare:
 *  - Where a job waits after every step, one long wait ends the team (fr_wait_step): the workers
 *    leave, and the owner takes the other steps alone.
 *  - After two long waits in short time the owner takes all jobs alone for a while, and for LONGER
 *    times as long whenever the next attempt meets a long wait, too.
 *  - A job has no more threads than CPUs on which its owner may run at this time. */
#define _GNU_SOURCE
#include "fastrnn.h"
#include <limits.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <time.h>
#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#if defined(__x86_64__) || defined(__i386__)
#define relax() __builtin_ia32_pause()
#elif defined(__aarch64__)
#define relax() __asm__ volatile("yield")
#else
#define relax() ((void)0)
#endif

/* Times in nanoseconds. A worker waits awake for PATIENT between the calls of a training loop (a small
 * model loses 9% of its time if the worker sleeps in them). Within a job, where a sleep costs more than
 * most waits, one waits awake longer if the job is a long one, up to LONGEST: its parts are never quite
 * equal. Whoever comes still later is late. Once may be chance; after two such waits within AGAIN the
 * owner is ALONE for this long, later for up to LONG_ALONE. LOOK: how often the owner asks on which
 * CPUs it may run. */
enum { PATIENT = 100000, LONGEST = 1000000, AGAIN = 20000000, LOOK = 10000000 };
enum { ALONE = 20000000, LONGER = 4, LONG_ALONE = 640000000 };

typedef struct {
  int ticket;              /* counts the jobs that this worker takes part in */
  int asleep;
  int seen;                /* the ticket before its first job */
  char padding[64 - 3 * sizeof(int)];
} worker_state;

static pthread_mutex_t busy = PTHREAD_MUTEX_INITIALIZER; /* held by the owner of the pool */
static worker_state states[FR_MAX_THREADS] __attribute__((aligned(64))); /* [rank - 1] */
static int workers;
static int remaining;      /* workers that have not finished the job */
static int owner_asleep;
static fr_work job_work;
static void *job_arg;
static int job_size;
static int64_t job_start;
/* written by owners */
static int64_t last_late;   /* when somebody was late */
static int64_t alone_for;   /* how long owners were alone the last time, 0: not lately */
static int64_t alone_until; /* 0: not alone */
static int64_t last_look;
static int cpus = FR_MAX_THREADS;
static int any_number;      /* more threads than CPUs may be used */
static __thread int is_worker;

/* ---- waiting for an int to change ----------------------------------------------------------- */

static int load(const int *word) { return __atomic_load_n(word, __ATOMIC_ACQUIRE); }

static int64_t now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* Waits until *word is not `value`, but not longer than about `patience`; returns whether it is. A
 * pause takes 10 to 150 cycles, depending on the CPU: only the clock knows how long it was. */
static int spin_while(const int *word, int value, int64_t patience) {
  int64_t start = 0;
  for (;;) {
    for (int i = 0; i < 32; i++) {
      if (load(word) != value) return 1;
      relax();
    }
    const int64_t time = now();
    if (!start) start = time;
    if (time - start >= patience) return 0;
  }
}

#if defined(__linux__)
/* Sleeps until somebody wakes `word`, unless it is not `value` any more. May return early. */
static void sleep_while(const int *word, int value) {
  syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, NULL, NULL, 0);
}

static void wake(const int *word) {
  syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

static void forget_sleepers(void) {}
#else
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t woken = PTHREAD_COND_INITIALIZER;

static void sleep_while(const int *word, int value) {
  pthread_mutex_lock(&lock);
  while (__atomic_load_n(word, __ATOMIC_SEQ_CST) == value) pthread_cond_wait(&woken, &lock);
  pthread_mutex_unlock(&lock);
}

static void wake(const int *word) {
  (void)word; /* every sleeper checks its own word */
  pthread_mutex_lock(&lock);
  pthread_cond_broadcast(&woken);
  pthread_mutex_unlock(&lock);
}

static void forget_sleepers(void) {
  pthread_mutex_init(&lock, NULL);
  pthread_cond_init(&woken, NULL);
}
#endif

/* Waits until *word is not `value`; returns whether awake. `sleepers` counts who sleeps. */
static int wait_while(int *word, int value, int *sleepers, int64_t patience) {
  if (spin_while(word, value, patience)) return 1;
  __atomic_add_fetch(sleepers, 1, __ATOMIC_SEQ_CST);
  while (__atomic_load_n(word, __ATOMIC_SEQ_CST) == value) sleep_while(word, value);
  __atomic_sub_fetch(sleepers, 1, __ATOMIC_SEQ_CST);
  return 0;
}

/* The owner has waited too long for another thread. */
static void note_late(void) {
  const int64_t time = now();
  if (any_number) return; /* tests want their threads */
  if (time - last_late < AGAIN + alone_for) {
    alone_for = alone_for ? LONGER * alone_for : ALONE;
    if (alone_for > LONG_ALONE) alone_for = LONG_ALONE;
    alone_until = time + alone_for;
  } else {
    alone_for = 0;
  }
  last_late = time;
}

/* Waits within a job, awake at first. What is too long for the owner depends on how long the job has
 * taken so far: half of it, or with `slow`, which is then set to 1, an eighth. */
static void wait_for_others(int *word, int value, int *sleepers, int *slow) {
  if (spin_while(word, value, PATIENT)) return;
  const int64_t start = now(), enough = (start - job_start) / (slow ? 8 : 2);
  const int64_t awake = (enough < LONGEST ? enough : LONGEST) - PATIENT;
  if (awake > 0 && spin_while(word, value, awake)) return;
  if (slow && !is_worker) __atomic_store_n(slow, 1, __ATOMIC_RELAXED);
  wait_while(word, value, sleepers, 0);
  /* an owner that is late would be late alone, too */
  if (!is_worker && (slow || now() - start > enough)) note_late();
}

static void wake_if_any(const int *word, const int *sleepers) {
  if (__atomic_load_n(sleepers, __ATOMIC_SEQ_CST)) wake(word);
}

/* ---- the pool ------------------------------------------------------------------------------- */

static void *worker(void *arg) {
  worker_state *me = arg;
  const int rank = (int)(me - states) + 1;
  int seen = me->seen;
  is_worker = 1;
  for (;;) {
    wait_while(&me->ticket, seen, &me->asleep, PATIENT);
    seen = load(&me->ticket);
    job_work(job_arg, rank, job_size);
    if (__atomic_sub_fetch(&remaining, 1, __ATOMIC_SEQ_CST) == 0)
      wake_if_any(&remaining, &owner_asleep);
  }
  return NULL;
}

static void after_fork_in_child(void) {
  pthread_mutex_init(&busy, NULL);
  forget_sleepers();
  workers = owner_asleep = 0;
}

static void watch_forks(void) { pthread_atfork(NULL, NULL, after_fork_in_child); }

/* Makes workers until there are n; fewer if the system has no more threads to give. Signals are for
 * the threads of the program: workers block them all. */
static void hire(int n) {
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  if (workers >= n) return;
  pthread_once(&once, watch_forks);
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  while (workers < n) {
    pthread_t thread;
    worker_state *state = &states[workers];
    state->seen = state->ticket;
    state->asleep = 0;
    if (pthread_create(&thread, NULL, worker, state)) break;
    pthread_detach(thread);
    __atomic_store_n(&workers, workers + 1, __ATOMIC_RELAXED);
  }
  pthread_sigmask(SIG_SETMASK, &before, NULL);
}

/* Asks now and then on how many CPUs the caller may run; returns how many threads a job may have. */
static int most_threads(int64_t time) {
#if defined(__linux__)
  if (time - last_look >= LOOK) {
    cpu_set_t set;
    last_look = time;
    if (!sched_getaffinity(0, sizeof set, &set)) cpus = CPU_COUNT(&set);
  }
#endif
  return any_number ? FR_MAX_THREADS : cpus;
}

void fr_any_number(int on) { any_number = on; }

void fr_run(fr_work work, void *arg, int threads) {
  if (threads > FR_MAX_THREADS) threads = FR_MAX_THREADS;
  if (threads <= 1 || pthread_mutex_trylock(&busy)) {
    work(arg, 0, 1);
    return;
  }
  job_start = now();
  const int most = job_start < alone_until ? 1 : most_threads(job_start);
  if (threads > most) threads = most;
  if (threads > 1) hire(threads - 1);
  if (threads > workers + 1) threads = workers + 1;
  if (threads == 1) {
    pthread_mutex_unlock(&busy);
    work(arg, 0, 1);
    return;
  }
  job_work = work;
  job_arg = arg;
  job_size = threads;
  __atomic_store_n(&remaining, threads - 1, __ATOMIC_RELAXED); /* published by the tickets */
  for (int i = 0; i < threads - 1; i++) {
    __atomic_add_fetch(&states[i].ticket, 1, __ATOMIC_SEQ_CST);
    wake_if_any(&states[i].ticket, &states[i].asleep);
  }
  work(arg, 0, threads);
  for (int left; (left = load(&remaining)) > 0;)
    wait_for_others(&remaining, left, &owner_asleep, NULL);
  pthread_mutex_unlock(&busy);
}

int fr_workers(void) { return __atomic_load_n(&workers, __ATOMIC_RELAXED); }

/* A barrier: the last to come opens the next phase. */
static void meet(fr_barrier *b, int size, int *slow) {
  const int phase = __atomic_load_n(&b->phase, __ATOMIC_RELAXED);
  if (__atomic_add_fetch(&b->count, 1, __ATOMIC_ACQ_REL) < size) {
    wait_for_others(&b->phase, phase, &b->sleepers, slow);
    return;
  }
  __atomic_store_n(&b->count, 0, __ATOMIC_RELAXED);
  b->apart = __atomic_load_n(&b->slow, __ATOMIC_RELAXED); /* published by the phase */
  __atomic_store_n(&b->phase, phase + 1, __ATOMIC_SEQ_CST);
  wake_if_any(&b->phase, &b->sleepers);
}

void fr_wait(fr_barrier *b, int size) {
  if (size > 1) meet(b, size, NULL);
}

int fr_wait_step(fr_barrier *b, int size) {
  if (size <= 1) return 1;
  meet(b, size, &b->slow);
  return !b->apart;
}
